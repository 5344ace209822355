"""A diamond under Prefect, read back through the server's API: names, edges, cost artifacts."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest

from fastroai import BaseStep, Pipeline, PipelineConfig, StepConfig, StepExecutionError
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import graph_of, read_run, table, usd
from tests.support.steps import Give

pytestmark = pytest.mark.usefixtures("prefect_api")

DIAMOND = {"left": ["top"], "right": ["top"], "bottom": ["left", "right"]}
EDGES = {("top", "left"), ("top", "right"), ("left", "bottom"), ("right", "bottom")}
STEPS = ("top", "left", "right", "bottom")


def diamond(
    name: str, steps: dict[str, BaseStep[Any, Any]], **options: Any
) -> Pipeline[Any, Any, Any]:
    return Pipeline(name, steps, DIAMOND, **options)


def usd_of(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def asking(model: CountingModel) -> dict[str, BaseStep[Any, Any]]:
    agent = model.agent(name="writer")
    return {step_id: Ask(agent, *DIAMOND.get(step_id, [])) for step_id in STEPS}


async def test_the_flow_run_is_named_after_the_pipeline_and_its_task_runs_after_the_steps():
    result = await diamond("named diamond", asking(CountingModel())).execute({"topic": "t"}, None)
    run = await read_run(result.run_id, tasks=4)
    assert run.flow_name == "named diamond"
    assert run.flow_run.state_name == "Completed"
    assert sorted(run.task_runs) == sorted(STEPS)
    assert {t.state_name for t in run.task_runs.values()} == {"Completed"}
    assert all(t.name == step_id for step_id, t in run.task_runs.items())


async def test_the_edges_are_on_the_server_whatever_the_steps_return():
    values = (None, True, 0, "top", [])
    steps: dict[str, BaseStep[Any, Any]] = {}
    dependencies: dict[str, list[str]] = {}
    for n, value in enumerate(values):
        steps |= {f"{n}-{step_id}": Give(value) for step_id in STEPS}
        dependencies |= {
            f"{n}-{id_}": [f"{n}-{needed}" for needed in ids] for id_, ids in DIAMOND.items()
        }
    result = await Pipeline("edges", steps, dependencies, output_step="0-bottom").execute({}, None)
    run = await read_run(result.run_id, tasks=len(steps))
    assert run.edges() == {
        (f"{n}-{up}", f"{n}-{down}") for n in range(len(values)) for up, down in EDGES
    }
    assert len(run.task_runs["0-bottom"].task_inputs["wait_for"]) == 2


async def test_the_graph_that_the_ui_draws_is_the_diamond():
    result = await diamond("drawn", {step_id: Give(None) for step_id in STEPS}).execute({}, None)
    await read_run(result.run_id, tasks=4)
    assert await graph_of(result.run_id) == {
        "top": set(),
        "left": {"top"},
        "right": {"top"},
        "bottom": {"left", "right"},
    }


async def test_every_task_has_one_cost_artifact_and_the_run_has_one():
    result = await diamond("costs", asking(CountingModel())).execute({"topic": "t"}, None)
    run = await read_run(result.run_id, tasks=4, artifacts=5)
    for step_id in STEPS:
        assert run.artifact(step_id).type == "table"
        assert str(run.artifact(step_id).key).startswith("costs-costs-")
        [row] = run.rows(step_id)
        assert row["agent"] == "writer"
        assert row["model"] == "gpt-5-mini"
        assert (row["requests"], row["replayed"]) == (1, 0)
        assert (row["input_tokens"], row["output_tokens"]) == (1_000, 100)
        assert row["cost_usd"] == str(PRICE)
    assert run.artifact().key == "costs-costs"
    assert [row["step"] for row in run.rows()] == ["top", "left", "right", "bottom"]
    assert {row["state"] for row in run.rows()} == {"completed"}


async def test_the_artifacts_add_up_to_the_cost_of_the_run():
    result = await diamond("sums", asking(CountingModel())).execute({"topic": "t"}, None)
    assert result.usage is not None
    run = await read_run(result.run_id, tasks=4, artifacts=5)
    steps = sum(usd(run.rows(step_id)) for step_id in STEPS)
    assert steps == usd(run.rows()) == result.usage.total_cost_usd == 4 * PRICE


async def test_a_failed_step_has_its_artifact_with_what_it_spent():
    model = CountingModel()
    steps = asking(model) | {"left": Ask(model.agent(), "top", then=ValueError("too late"))}
    with pytest.raises(StepExecutionError) as caught:
        await diamond("failing", steps).execute({"topic": "t"}, None)
    partial = caught.value.partial_result
    assert partial is not None
    run = await read_run(partial.run_id, tasks=3)
    assert run.flow_run.state_name == "Failed"
    assert run.task_runs["left"].state_name == "Failed"
    [row] = run.rows("left")
    assert row["cost_usd"] == str(PRICE)
    assert "failed" in str(run.artifact("left").description)
    by_step = {row["step"]: row for row in run.rows()}
    assert by_step["left"]["state"] == "failed"
    assert by_step["bottom"]["state"] == "not run"
    assert usd(run.rows()) == partial.usage.total_cost_usd
    steps_sum = sum(usd(table(a)) for a in run.cost_tables() if a.task_run_id is not None)
    assert steps_sum == partial.usage.total_cost_usd


async def test_attempts_are_shown_and_failed_ones_are_paid_for():
    model = CountingModel()
    agent = model.agent()
    failures = [ValueError("once"), ValueError("twice")]

    class Flaky(Ask):
        async def execute(self, context: Any) -> str:
            await context.run(agent, f"attempt {context.attempt}")
            if failures:
                raise failures.pop()
            return "done"

    pipeline = Pipeline(
        "attempts",
        {"flaky": Flaky(agent)},
        step_configs={"flaky": StepConfig(retries=2, retry_delay=0)},
    )
    result = await pipeline.execute({}, None)
    run = await read_run(result.run_id, tasks=1, artifacts=2)
    assert run.task_runs["flaky"].run_count == 3
    [row] = run.rows()
    assert row["attempts"] == 3
    assert row["requests"] == 3
    assert usd([row]) == usd(run.rows("flaky")) == result.usage.total_cost_usd == 3 * PRICE
    assert "3 attempts" in str(run.artifact("flaky").description)


async def test_the_keys_are_the_same_in_the_next_run_so_that_the_ui_shows_a_history():
    pipeline = diamond("history", asking(CountingModel()))
    keys = []
    for topic in ("one", "two"):
        result = await pipeline.execute({"topic": topic}, None)
        run = await read_run(result.run_id, tasks=4, artifacts=5)
        keys.append(sorted(str(a.key) for a in run.cost_tables()))
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 5
    assert all(key.startswith("costs-history") for key in keys[0])


async def test_the_states_of_run_and_steps_say_what_they_cost_and_so_does_the_log(
    caplog: pytest.LogCaptureFixture,
):
    steps = asking(CountingModel())
    with caplog.at_level("INFO"):
        result = await diamond("telling diamond", steps).execute({"topic": "t"}, None)
    run = await read_run(result.run_id, tasks=4)
    assert run.flow_run.state is not None
    assert run.flow_run.state.message == f"${usd_of(4 * PRICE)} for 4 requests"
    costs = f"${usd_of(PRICE)} for 1 request"
    messages = {step_id: run.task_runs[step_id].state.message for step_id in STEPS}
    assert messages == dict.fromkeys(STEPS, costs)
    by_logger: dict[str, list[str]] = defaultdict(list)
    for record in caplog.records:
        by_logger[record.name].append(record.getMessage())
    finished = f"Finished in state Completed({costs!r})"
    assert by_logger["prefect.task_runs"].count(finished) == len(STEPS)
    told = by_logger["prefect.flow_runs"]
    assert not any(line.startswith("Step") for line in told)
    assert f"Run of 'telling diamond': ${usd_of(4 * PRICE)} for 4 requests" in told


async def test_the_log_says_what_a_step_cost_whose_state_says_something_else(
    caplog: pytest.LogCaptureFixture,
):
    agent = CountingModel().agent(name="writer")
    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        "retelling",
        {"ask": Ask(agent), "fail": Ask(agent, "ask", then=RuntimeError("no paper"))},
        {"fail": ["ask"]},
        config=PipelineConfig(cache_policy="inputs"),
    )
    for _ in range(2):
        with caplog.at_level("INFO"), pytest.raises(StepExecutionError, match="no paper"):
            await pipeline.execute({"topic": "retold"}, None)
    told = [record.getMessage() for record in caplog.records if record.name == "prefect.flow_runs"]
    price = usd_of(PRICE)
    assert f"Step 'fail' failed: ${price} for 1 request" in told
    assert f"Step 'ask' replayed: $0 for 0 requests · 1 replayed, which saved ${price}" in told


async def test_the_state_of_a_failed_run_says_what_it_cost_and_why_it_failed():
    steps = asking(CountingModel()) | {"bottom": Give(RuntimeError("no paper"))}
    with pytest.raises(StepExecutionError, match="no paper") as caught:
        await diamond("failing diamond", steps).execute({"topic": "t"}, None)
    run = await read_run(caught.value.partial_result.run_id, tasks=4)
    state = run.flow_run.state
    assert state is not None
    assert (state.name, state.message) == (
        "Failed",
        f"Step 'bottom' failed: no paper · ${usd_of(3 * PRICE)} for 3 requests",
    )
