"""What Prefect shows of budgets: the state of a run that stopped at one, and what is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun

from fastroai import (
    CostBudgetExceededError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget, Budgets, signals
from fastroai.executors import PrefectExecutor
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import PATIENCE, read_run

pytestmark = pytest.mark.usefixtures("prefect_api")

INPUTS = {"topic": "t"}
RUN_COST = "fastroai.run.cost"


def stopping(name: str, model: CountingModel | None = None) -> Pipeline[Any, Any, Any]:
    """Its budget admits the first of two steps."""
    agent = (model or CountingModel()).agent()
    return Pipeline(
        name,
        {"first": Ask(agent), "second": Ask(agent, "first")},
        {"second": ["first"]},
        config=PipelineConfig(budget=Budget(usd=PRICE)),
        executor="prefect",
    )


async def last_run(flow_name: str) -> FlowRun:
    async with get_client() as client:
        [run] = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name]))
        )
    return run


def says_all(run: FlowRun, name: str) -> None:
    assert run.state is not None
    assert run.state.is_failed()
    assert run.state.name == "BudgetExceeded"
    message = run.state.message or ""
    for part in (
        "step 'second'",
        f"run budget {name!r} of 0.00045 USD",
        "0.00045 spent",
        "0 held",
        "0 unknown",
        "To raise it: PipelineConfig(budget=Budget(usd='0.0009'))",
    ):
        assert part in message


async def test_a_run_that_stopped_at_a_budget_has_a_state_that_says_so() -> None:
    with pytest.raises(StepExecutionError) as caught:
        await stopping("stopped").execute(INPUTS, None)
    assert isinstance(caught.value.original_error, CostBudgetExceededError)
    assert caught.value.partial_result.usage.total_cost_usd == PRICE
    says_all(await last_run("stopped"), "stopped")


async def test_a_flow_that_stopped_at_a_budget_has_that_state_and_raises_the_error() -> None:
    flow = stopping("stopped-flow").to_flow()
    with pytest.raises(StepExecutionError) as caught:
        await flow(INPUTS)
    assert isinstance(caught.value.original_error, CostBudgetExceededError)
    assert caught.value.__cause__ is caught.value.original_error
    assert caught.value.partial_result.usage.total_cost_usd == PRICE
    says_all(await last_run("stopped-flow"), "stopped-flow")


async def test_a_flow_with_retries_has_that_state_when_none_is_left_and_pays_nothing_twice() -> (
    None
):
    model = CountingModel()
    flow = stopping("stopped-twice", model).to_flow(retries=1)
    with pytest.raises(StepExecutionError):
        await flow(INPUTS)
    run = await last_run("stopped-twice")
    assert run.run_count == 2
    assert model.calls == 1
    says_all(run, "stopped-twice")


async def test_other_failures_keep_prefects_name() -> None:
    agent = CountingModel().agent()
    pipeline = Pipeline("broken", {"s": Ask(agent, then=ValueError("no"))}, executor="prefect")
    with pytest.raises(StepExecutionError):
        await pipeline.execute(INPUTS, None)
    run = await last_run("broken")
    assert run.state is not None
    assert run.state.name == "Failed"


async def test_the_cost_table_of_a_run_shows_its_budgets_and_what_is_left() -> None:
    agent = CountingModel().agent()
    pipeline = Pipeline(
        "shown",
        {"a": Ask(agent), "b": Ask(agent, "a")},
        {"b": ["a"]},
        config=PipelineConfig(budget=Budget(usd="2.50", name="the|run")),
        step_configs={"b": StepConfig(budget=Budget(usd="1"))},
        executor="prefect",
    )
    result = await pipeline.execute(INPUTS, None)
    run = await read_run(result.run_id, tasks=2, artifacts=3)
    description = run.artifact().description or ""
    assert "| the\\|run | run | 2.5 | 0.0009 | 0 | 0 | 2.4991 |" in description.splitlines()
    assert "| b | step | 1 | 0.00045 | 0 | 0 | 0.99955 |" in description.splitlines()
    assert "left" not in (run.artifact("a").description or "")


async def test_the_cost_table_shows_the_standing_budgets_that_a_run_counts_in() -> None:
    async with Budgets.open() as budgets:
        for name, pipeline in (("mine", "counts in mine"), ("another's", "other")):
            await budgets.set(Budget(name=name, usd=5, window="day", pipeline=pipeline))
    agent = CountingModel().agent()
    pipeline = Pipeline("counts in mine", {"a": Ask(agent)}, executor="prefect")
    result = await pipeline.execute(INPUTS, None)
    run = await read_run(result.run_id, tasks=1, artifacts=2)
    description = run.artifact().description or ""
    assert "| mine | standing, day | 5 | 0.00045 | 0 | 0 | 4.99955 |" in description.splitlines()
    assert "another's" not in description


async def events_of(run: FlowRun, *, until: str) -> list[dict[str, Any]]:
    """Our events of a run, once the server has stored one of a name."""
    body = {"related": {"id": [f"prefect.flow-run.{run.id}"]}, "event": {"prefix": ["fastroai."]}}
    async with get_client() as client, asyncio.timeout(PATIENCE):
        while True:
            answer = await client._client.post("/events/filter", json={"filter": body})
            found = answer.raise_for_status().json()["events"]
            if any(event["event"] == until for event in found):
                return found
            await asyncio.sleep(0.1)


def payloads(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event["payload"] for event in events if event["event"] == name]


async def test_events_say_what_steps_and_the_run_cost_and_that_a_budget_is_reached() -> None:
    with pytest.raises(StepExecutionError):
        await stopping("told").execute(INPUTS, None, run_key="told-1")
    run = await last_run("told")
    events = await events_of(run, until=RUN_COST)
    for event in events:
        related = {one["prefect.resource.role"]: one for one in event["related"]}
        assert related["flow-run"]["prefect.resource.id"] == f"prefect.flow-run.{run.id}"
        assert related["pipeline"]["prefect.resource.id"] == "fastroai.pipeline.told"
        assert event["payload"]["run_key"] == "told-1"
    [warning] = payloads(events, "fastroai.budget.warning")
    assert (warning["share"], warning["spent_usd"], warning["left_usd"]) == ("0.8", "0.00045", "0")
    [exceeded] = payloads(events, "fastroai.budget.exceeded")
    assert (exceeded["step"], exceeded["scope"], exceeded["limit_usd"]) == (
        "second",
        "run",
        "0.00045",
    )
    costs = {p["step"]: p["cost_usd"] for p in payloads(events, "fastroai.step.cost")}
    assert costs == {"first": "0.00045"}  # the second asked nothing
    [total] = payloads(events, RUN_COST)
    assert (total["cost_usd"], total["requests"]) == ("0.00045", 1)


async def test_many_refusals_of_one_step_are_one_event() -> None:
    agent = CountingModel().agent()

    @step
    async def many(ctx: StepContext[Any]) -> None:
        asking = (ctx.run(agent, str(number)) for number in range(9))
        await asyncio.gather(ctx.run(agent, "first"), return_exceptions=True)
        for refused in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(refused, CostBudgetExceededError)

    config = PipelineConfig(budget=Budget(usd=PRICE))
    await Pipeline("often", {"s": many}, config=config, executor="prefect").execute(INPUTS, None)
    events = await events_of(await last_run("often"), until=RUN_COST)
    assert len(payloads(events, "fastroai.budget.exceeded")) == 1


async def test_a_replayed_step_is_not_told_of_again_so_that_the_costs_of_events_add_up() -> None:
    model = CountingModel()
    flow = stopping("replayed", model).to_flow(retries=1)
    with pytest.raises(StepExecutionError):
        await flow(INPUTS)
    run = await last_run("replayed")
    async with asyncio.timeout(PATIENCE):
        while len(totals := payloads(await events_of(run, until=RUN_COST), RUN_COST)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert sorted(total["cost_usd"] for total in totals) == ["0", "0.00045"]
    events = await events_of(run, until=RUN_COST)
    steps = [payload["step"] for payload in payloads(events, "fastroai.step.cost")]
    assert steps.count("first") == 1


async def test_a_budget_listener_ends_with_its_run() -> None:
    before = list(signals._listeners)
    with pytest.raises(StepExecutionError):
        await stopping("leaves").execute(INPUTS, None)
    assert signals._listeners == before


async def test_a_further_budget_finds_the_results_that_were_stored_without_it(
    tmp_path: Path,
) -> None:
    model = CountingModel()
    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        "limited-later",
        {"first": Ask(model.agent())},
        config=PipelineConfig(cache_policy="inputs"),
        executor=PrefectExecutor(result_storage=tmp_path / "results"),
    )
    before = await pipeline.execute(INPUTS, None)
    nothing = Budget(usd=0, strength="reserved")
    again = await pipeline.with_budget(nothing).execute(INPUTS, None)
    assert (again.output, model.calls) == (before.output, 1)
