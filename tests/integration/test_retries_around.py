"""Pipelines within flows and tasks that are tried again: what was paid is not paid again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.executors.prefect import PrefectExecutor
from fastroai.testing import fixed_prices
from tests.support.provider_process import ProviderProcess

pytestmark = pytest.mark.usefixtures("prefect_api")


def asking(name: str = "asking") -> Pipeline[Any, Any, Any]:
    """Two steps, each with one request that names its step and the run's topic."""

    def ask(step_id: str) -> Any:
        @step
        async def asks(context: StepContext[Any]) -> str:
            agent = FastroAgent(model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices())
            return (await context.run(agent, f"{step_id}|{context.get_input('topic')}")).output

        return asks

    steps = {step_id: ask(step_id) for step_id in ("a", "b")}
    return Pipeline(name, steps, {"b": ["a"]}, executor=PrefectExecutor())


def sends(provider: ProviderProcess) -> dict[str, int]:
    return dict(Counter(line.prompt for line in provider.lines))


def once_each(*topics: str) -> dict[str, int]:
    return {f"{step_id}|{topic}": 1 for topic in topics for step_id in ("a", "b")}


class Fails:
    """Raises the first time it is called, and then no more."""

    def __init__(self, times: int = 1) -> None:
        self._left = times

    def __call__(self) -> None:
        if self._left:
            self._left -= 1
            raise ConnectionError("after the pipeline")


@pytest.mark.long
async def test_a_retried_task_around_a_pipeline(provider: ProviderProcess) -> None:
    pipeline, fails = asking(), Fails()

    @task(retries=1)
    async def around() -> None:
        await pipeline.execute({"topic": "t"})
        fails()

    @flow
    async def outer() -> None:
        await around()

    await outer()
    assert sends(provider) == once_each("t")


@pytest.mark.filterwarnings("ignore:Logger .prefect.task_runs.")
async def test_a_retried_task_without_a_flow(provider: ProviderProcess) -> None:
    pipeline, fails = asking(), Fails()

    @task(retries=1)
    async def alone() -> None:
        await pipeline.execute({"topic": "t"})
        fails()

    await alone()
    assert sends(provider) == once_each("t")


async def test_a_retried_task_around_a_flow_around_a_pipeline(provider: ProviderProcess) -> None:
    pipeline, fails = asking(), Fails()

    @flow
    async def middle() -> None:
        await pipeline.to_flow()({"topic": "t"})

    @task(retries=1)
    async def around() -> None:
        await middle()
        fails()

    @flow
    async def outer() -> None:
        await around()

    await outer()
    assert sends(provider) == once_each("t")


async def _in_a_task(run: Callable[[], Awaitable[Any]]) -> None:
    await task(name="between")(run)()


async def _in_a_subflow(run: Callable[[], Awaitable[Any]]) -> None:
    await flow(name="between")(run)()


async def _in_a_task_in_a_subflow(run: Callable[[], Awaitable[Any]]) -> None:
    async def in_task() -> None:
        await _in_a_task(run)

    await _in_a_subflow(in_task)


# The last one has both of the others in it.
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(_in_a_task, marks=pytest.mark.long),
        pytest.param(_in_a_subflow, marks=pytest.mark.long),
        _in_a_task_in_a_subflow,
    ],
)
async def test_a_retried_flow_with_something_between(
    provider: ProviderProcess, place: Callable[..., Awaitable[None]]
) -> None:
    pipeline, fails = asking(), Fails()

    async def run() -> None:
        await pipeline.execute({"topic": "t"})

    @flow(retries=1)
    async def outer() -> None:
        await place(run)
        fails()

    await outer()
    assert sends(provider) == once_each("t")


async def test_a_retried_flow_over_mapped_tasks(provider: ProviderProcess) -> None:
    fails = Fails()

    @task
    async def one(topic: str) -> None:
        await asking().execute({"topic": topic})

    @flow(retries=1, task_runner=ThreadPoolTaskRunner(max_workers=2))
    def outer() -> None:
        one.map(["x", "y"]).result()
        fails()

    await asyncio.to_thread(outer)
    assert sends(provider) == once_each("x", "y")


@pytest.mark.long
async def test_a_retried_flow_with_its_runs_at_once(provider: ProviderProcess) -> None:
    pipeline, fails = asking(), Fails()

    @flow(retries=1)
    async def outer() -> None:
        await asyncio.gather(*(pipeline.execute({"topic": topic}) for topic in "xy"))
        fails()

    await outer()
    assert sends(provider) == once_each("x", "y")


async def test_a_retried_flow_that_goes_another_way(provider: ProviderProcess) -> None:
    """Another order, and one run more before the others."""
    pipeline, fails = asking(), Fails()
    orders = [["x", "y"], ["new", "y", "x"]]

    @flow(retries=1)
    async def outer() -> None:
        for topic in orders.pop(0):
            await pipeline.execute({"topic": topic})
        fails()

    await outer()
    assert sends(provider) == once_each("x", "y", "new")


@pytest.mark.long
async def test_equal_runs_are_paid_each_and_none_of_them_again(provider: ProviderProcess) -> None:
    """In one flow, beside each other and in a task that is tried again, within a flow that is."""
    pipeline, fails, task_fails = asking(), Fails(), Fails(2)

    @task(retries=2, retry_condition_fn=lambda task, run, state: run.run_count < 3)
    async def around() -> None:
        await pipeline.execute({"topic": "t"})
        task_fails()

    @flow(retries=1)
    async def outer() -> None:
        await asyncio.gather(pipeline.execute({"topic": "t"}), pipeline.execute({"topic": "t"}))
        await around()
        fails()

    await outer()
    assert sends(provider) == {f"{step_id}|t": 3 for step_id in ("a", "b")}


@pytest.mark.long
async def test_pipelines_of_the_same_steps_do_not_share_results(provider: ProviderProcess) -> None:
    @flow
    async def outer() -> None:
        for name in ("one", "other"):
            await asking(name).execute({"topic": "t"})

    await outer()
    assert sends(provider) == {f"{step_id}|t": 2 for step_id in ("a", "b")}
