"""Steps at once in the flow's own loop; what a failure and a cancellation leave behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from fastroai import BaseStep, Pipeline, PipelineConfig, StepContext, StepExecutionError
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import read_run, usd
from tests.support.steps import Gauge, Give, WaitsForever, soon

pytestmark = pytest.mark.usefixtures("prefect_api")


class Meets(BaseStep[Any, int]):
    """Goes on when all are there; gives the identity of its event loop."""

    def __init__(self, barrier: asyncio.Barrier) -> None:
        self.barrier = barrier

    async def execute(self, context: StepContext[Any]) -> int:
        await soon(self.barrier.wait())
        return id(asyncio.get_running_loop())


async def test_independent_steps_run_at_once_in_the_callers_loop():
    barrier = asyncio.Barrier(8)
    steps = {f"s{n}": Meets(barrier) for n in range(8)}
    result = await Pipeline("at once", steps, output_step="s0").execute({}, None)
    assert set(result.step_outputs.values()) == {id(asyncio.get_running_loop())}


async def test_no_more_steps_run_at_once_than_allowed():
    gauge = Gauge()
    steps = {f"s{n}": gauge.step(lambda: asyncio.sleep(0.01)) for n in range(8)}
    config = PipelineConfig(max_concurrency=3)
    await Pipeline("limited", steps, output_step="s0", config=config).execute({}, None)
    assert gauge.peak == 3


class FailsAfter(BaseStep[Any, None]):
    def __init__(self, *others: WaitsForever) -> None:
        self.others = others

    async def execute(self, context: StepContext[Any]) -> None:
        for other in self.others:
            await soon(other.started.wait())
        raise ValueError("first")


async def test_a_failure_cancels_the_siblings_and_every_task_run_ends():
    siblings = {f"waits{n}": WaitsForever() for n in range(3)}
    steps: dict[str, BaseStep[Any, Any]] = {
        **siblings,
        "fails": FailsAfter(*siblings.values()),
        "after": Give(1),
    }
    pipeline = Pipeline("cancelling", steps, {"after": ["fails"]}, output_step="after")
    before = asyncio.all_tasks()
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None)
    assert caught.value.step_id == "fails"
    assert all(s.cleaned_up for s in siblings.values())
    assert not leftover(before)
    run = await read_run(caught.value.partial_result.run_id, tasks=4)
    assert run.flow_run.state_name == "Failed"
    assert run.task_runs["fails"].state_name == "Failed"
    states = {run.task_runs[name].state_name for name in siblings}
    assert states <= {"Crashed", "Cancelled", "Failed"}, states
    rows = {row["step"]: row["state"] for row in run.rows()}
    assert rows["fails"] == "failed"
    assert {rows[name] for name in siblings} == {"cancelled"}
    assert rows["after"] == "not run"


async def test_on_error_continue_completes_the_flow_and_says_what_failed():
    model = CountingModel()
    agent = model.agent()
    pipeline = Pipeline(
        "going on",
        {"fails": Ask(agent, then=ValueError("no")), "after": Give(1), "other": Ask(agent)},
        {"after": ["fails"]},
        output_step="other",
        config=PipelineConfig(on_error="continue"),
    )
    result = await pipeline.execute({"topic": "t"}, None)
    assert set(result.errors) == {"fails"}
    assert result.skipped == ("after",)
    run = await read_run(result.run_id, tasks=2, artifacts=3)
    assert run.flow_run.state_name == "Completed"
    assert {row["step"]: row["state"] for row in run.rows()} == {
        "fails": "failed",
        "other": "completed",
        "after": "not run",
    }
    assert usd(run.rows()) == result.usage.total_cost_usd == 2 * PRICE


async def test_cancelling_the_caller_ends_the_steps_and_the_run():
    waits = [WaitsForever(), WaitsForever()]
    name = "cancelled from outside"
    pipeline = Pipeline(name, {f"s{n}": w for n, w in enumerate(waits)}, output_step="s0")
    before = asyncio.all_tasks()
    running = asyncio.create_task(pipeline.execute({}, None))
    for step in waits:
        await soon(step.started.wait())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert all(step.cleaned_up for step in waits)
    assert not leftover(before)
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[name])))
    run = await read_run(runs[0].id, tasks=2)
    assert run.flow_run.state.is_final(), run.flow_run.state_name
    assert run.flow_run.state_name != "Completed"
    assert {row["state"] for row in run.rows()} == {"cancelled"}


async def test_a_run_that_took_too_long_for_its_caller_is_ended_too():
    waits = WaitsForever()
    deadline = asyncio.timeout(60)

    async def over_once_it_waits() -> None:
        await waits.started.wait()
        deadline.reschedule(asyncio.get_running_loop().time())

    over = asyncio.create_task(over_once_it_waits())
    with pytest.raises(TimeoutError):
        async with deadline:
            await Pipeline("too long", {"s": waits}).execute({}, None)
    await over
    assert waits.cleaned_up


async def test_what_a_cancelled_step_had_spent_is_in_its_artifact():
    model = CountingModel()
    agent = model.agent()
    spent = asyncio.Event()

    class SpendsThenWaits(BaseStep[Any, None]):
        async def execute(self, context: StepContext[Any]) -> None:
            await context.run(agent, "hello")
            spent.set()
            await asyncio.Event().wait()

    class Fails(BaseStep[Any, None]):
        async def execute(self, context: StepContext[Any]) -> None:
            await soon(spent.wait())
            raise ValueError("now")

    pipeline = Pipeline(
        "spent", {"spends": SpendsThenWaits(), "fails": Fails()}, output_step="fails"
    )
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None)
    partial = caught.value.partial_result
    run = await read_run(partial.run_id, tasks=2)
    assert usd(run.rows("spends")) == usd(run.rows()) == partial.usage.total_cost_usd == PRICE


async def test_a_shared_agent_answers_many_steps_at_once():
    model = CountingModel()
    agent = model.agent()
    steps: dict[str, BaseStep[Any, Any]] = {f"s{n}": Ask(agent) for n in range(24)}
    result = await Pipeline("shared", steps, output_step="s0").execute({"topic": "t"}, None)
    assert result.step_outputs == {f"s{n}": f"answer:s{n}|t" for n in range(24)}
    assert result.usage.total_cost_usd == 24 * PRICE


def leftover(before: set[asyncio.Task[Any]]) -> list[str]:
    """Tasks of fastroai or of a step that a run left behind; Prefect's own services may go on."""
    return [
        t.get_name()
        for t in asyncio.all_tasks() - before
        if not t.done() and "prefect" not in repr(t.get_coro())
    ]
