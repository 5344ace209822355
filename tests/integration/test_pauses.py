"""What becomes of runs at a budget that pauses, besides what a worker does with them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import asuspend_flow_run
from prefect.states import Pending, Running

from fastroai import (
    CostBudgetExceededError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.executors.prefect import report_ended_runs, resume_run, tracked_runs
from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseRecord, LeaseRequest, Outcome
from fastroai.settings import load_settings
from tests.integration.models import PRICE, Ask, CountingModel
from tests.support.deployed_runs import deployed, work

INPUTS = {"topic": "t"}
PAUSES = Budget(usd=PRICE, at_limit="pause")


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")


def pausing(name: str, model: CountingModel, **config: Any) -> Pipeline[Any, Any, Any]:
    """Its budget admits the first of two steps; a third needs none, and only the first."""
    agent = model.agent()

    @step
    async def free(ctx: StepContext[Any]) -> str:
        return f"free of {ctx.get_dependency('first')}"

    return Pipeline(
        name,
        {"first": Ask(agent), "second": Ask(agent, "first"), "free": free},
        {"second": ["first"], "free": ["first"]},
        output_step="second",
        config=PipelineConfig(budget=PAUSES, **config),
    )


async def read(run: UUID) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(run)


async def suspended() -> list[LeaseRecord]:
    heartbeat = configured_heartbeat(load_settings())
    return await asyncio.wrap_future(heartbeat.holdings("suspended_run"))


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_that_goes_on_after_failures_does_what_it_can_before_it_pauses() -> None:
    model = CountingModel()
    flow = pausing("goes-on", model, on_error="continue").to_flow()
    run = await deployed(flow, INPUTS)
    assert await work(flow, run) is None
    assert (await read(run)).state_name == "Suspended"
    [paused], elsewhere = await tracked_runs(load_settings())
    assert (paused.flow_run.id, paused.is_paused, paused.is_dead, elsewhere) == (
        run,
        True,
        False,
        0,
    )
    await resume_run(paused, load_settings())  # without a raise
    assert await work(flow, run) is None
    assert model.prompts == ["first|t"]
    [paused], _ = await tracked_runs(load_settings())
    await resume_run(paused, load_settings(), 4 * PRICE)
    result = await work(flow, run)
    assert (await read(run)).run_count == 1  # so Prefect counts
    assert result.step_outputs["free"] == "free of answer:first|t"
    assert model.prompts == ["first|t", "second|t|answer:first|t"]
    assert result.usage.total_cost_usd == PRICE
    assert await suspended() == []


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_without_a_deployment_fails_and_says_how_it_goes_on() -> None:
    model = CountingModel()
    pipeline = pausing("alone", model)
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute(INPUTS, None, run_key="alone-1")
    assert isinstance(caught.value.original_error, CostBudgetExceededError)
    async with get_client() as client:
        named = FlowFilter(name=FlowFilterName(any_=["alone"]))
        [run] = await client.read_flow_runs(flow_filter=named)
    assert run.state_name == "BudgetExceeded"
    assert run.state is not None
    assert "Execute it again with run_key='alone-1' to go on" in (run.state.message or "")


async def end_unseen(run: UUID, outcome: Outcome) -> None:
    """As if the server had not answered at the end of a run."""
    async with get_client() as client:
        await client.set_flow_run_state(run, Pending())
        await client.set_flow_run_state(run, Running())
    heartbeat = configured_heartbeat(load_settings())
    claim = LeaseRequest(kind="flow_run", name=str(run), seconds=30)
    await asyncio.wrap_future(heartbeat.take(claim, lambda: None))
    await asyncio.wrap_future(heartbeat.end(claim.token, outcome))
    await asyncio.wrap_future(heartbeat.expire(claim.token))


@pytest.mark.usefixtures("prefect_api")
async def test_a_pause_that_the_server_did_not_see_is_reported_later_and_resumed() -> None:
    model = CountingModel()
    flow = pausing("unseen", model).to_flow()
    run = await deployed(flow, INPUTS)
    await end_unseen(run, "paused")
    [line] = await report_ended_runs(load_settings())
    assert line.endswith("it is Suspended now.")
    assert await report_ended_runs(load_settings()) == []
    [paused], _ = await tracked_runs(load_settings())
    await resume_run(paused, load_settings())
    assert await suspended() != []
    assert await work(flow, run) is None
    assert model.calls == 1
    assert (await read(run)).state_name == "Suspended"


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_that_a_budget_stopped_unseen_is_reported_as_that() -> None:
    flow = pausing("stopped-unseen", CountingModel()).to_flow()
    run = await deployed(flow, INPUTS)
    await end_unseen(run, "over_budget")
    await report_ended_runs(load_settings())
    assert (await read(run)).state_name == "BudgetExceeded"


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_that_somebody_suspends_is_not_taken_for_a_crashed_one() -> None:
    model = CountingModel()
    agent = model.agent()
    runs: list[UUID] = []

    @step
    async def first(ctx: StepContext[Any]) -> str:
        output = (await ctx.run(agent, "first")).output
        if model.calls == 1 and not runs[1:]:
            runs.append(runs[0])
            await asuspend_flow_run(flow_run_id=runs[0])
        return output

    steps = {"first": first, "second": Ask(agent, "first")}
    flow = Pipeline("by-hand", steps, {"second": ["first"]}).to_flow()
    runs.append(await deployed(flow, INPUTS))
    assert await work(flow, runs[0]) is None
    assert await report_ended_runs(load_settings()) == []
    assert (await read(runs[0])).state_name == "Suspended"
    [paused], _ = await tracked_runs(load_settings())
    await resume_run(paused, load_settings())
    assert (await work(flow, runs[0])).output == "answer:second|t|answer:first"
    assert model.prompts == ["first", "second|t|answer:first"]


async def test_in_memory_what_runs_is_let_finish_and_the_error_is_raised() -> None:
    model, finished = CountingModel(), []

    @step
    async def slow(ctx: StepContext[Any]) -> None:
        await refused.wait()
        await asyncio.sleep(0)
        finished.append("slow")

    @step
    async def asks(ctx: StepContext[Any]) -> None:
        try:
            await ctx.run(model.agent(), "no")
        finally:
            refused.set()

    refused = asyncio.Event()
    pipeline = Pipeline(
        "in-memory",
        {"slow": slow, "asks": asks},
        output_step="asks",
        step_configs={"asks": StepConfig(budget=Budget(usd="0", at_limit="pause"))},
        executor="memory",
    )
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None)
    assert isinstance(caught.value.original_error, CostBudgetExceededError)
    assert (finished, model.calls) == (["slow"], 0)
