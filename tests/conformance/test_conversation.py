"""Conversation states that end a run early or let it go on; the same on every executor."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastroai import (
    ConversationState,
    ConversationStatus,
    Pipeline,
    PipelineConfig,
    StepContext,
    step,
)
from tests.support.models import COST, counted_agent
from tests.support.steps import Give, Join, Signal, soon


def state(status: str, data: Any = None) -> ConversationState[Any]:
    return ConversationState(status=ConversationStatus(status), data=data)


async def test_an_incomplete_state_starts_nothing_further(executor: str) -> None:
    asking, later = state("incomplete", {"name": None}), Give()
    steps = {"gather": Give(asking), "later": later, "last": Give()}
    result = await Pipeline(
        "talk", steps, {"later": ["gather"], "last": ["later"]}, executor=executor
    ).execute({}, None)
    assert result.stopped_early
    assert result.output is None
    assert result.conversation_state is not None
    assert result.conversation_state.status is ConversationStatus.INCOMPLETE
    assert result.conversation_state.data == {"name": None}
    assert set(result.step_outputs) == {"gather"}
    assert result.step_outputs["gather"].status is ConversationStatus.INCOMPLETE
    assert later.runs == 0
    assert (result.errors, result.skipped) == ({}, ())


@pytest.mark.one_process("it looks at the tasks of the run's event loop")
async def test_what_runs_at_that_time_is_finished_and_kept(executor: str) -> None:
    running, gathered = Signal(), Signal()
    callers_loop = asyncio.get_running_loop()
    agent, _ = counted_agent()

    def watch() -> None:
        # Whichever engine runs it, `gather` has ended for the scheduler once its task is done.
        tasks = asyncio.all_tasks()
        (gathering,) = (task for task in tasks if task.get_name() == "gather")
        gathering.add_done_callback(lambda _: gathered.set())
        running.set()

    @step
    async def gather(ctx: StepContext[Any]) -> Any:
        await soon(running.wait())
        return state("incomplete")

    @step
    async def sibling(ctx: StepContext[Any]) -> str:
        callers_loop.call_soon_threadsafe(watch)
        await soon(gathered.wait())
        return str((await ctx.run(agent, "one")).output)

    behind = Give()
    steps = {"gather": gather, "sibling": sibling, "behind": behind}
    dependencies = {"behind": ["sibling"]}
    result = await Pipeline(
        "talk", steps, dependencies, output_step="behind", executor=executor
    ).execute({}, None)
    assert result.stopped_early
    assert result.step_outputs["sibling"] == "answer"
    assert set(result.step_outputs) == {"gather", "sibling"}
    assert behind.runs == 0
    assert result.usage is not None
    assert result.usage.total_cost_microcents == COST


@pytest.mark.same_under_prefect
async def test_an_output_that_was_there_before_is_the_output(executor: str) -> None:
    steps = {"answer": Give("A"), "gather": Give(state("incomplete")), "later": Give()}
    dependencies = {"gather": ["answer"], "later": ["gather"]}
    result = await Pipeline(
        "talk", steps, dependencies, output_step="answer", executor=executor
    ).execute({}, None)
    assert (result.stopped_early, result.output) == (True, "A")


@pytest.mark.same_under_prefect
async def test_a_complete_state_goes_on(executor: str) -> None:
    @step
    async def greet(ctx: StepContext[Any]) -> str:
        return "Hello " + ctx.get_dependency("gather").data["name"]

    steps = {"gather": Give(state("complete", {"name": "Ada"})), "greet": greet}
    result = await Pipeline("talk", steps, {"greet": ["gather"]}, executor=executor).execute(
        {}, None
    )
    assert result.output == "Hello Ada"
    assert not result.stopped_early
    assert result.conversation_state is not None
    assert result.conversation_state.status is ConversationStatus.COMPLETE


@pytest.mark.same_under_prefect
async def test_the_last_of_several_states_is_the_runs(executor: str) -> None:
    steps = {"a": Give(state("complete", 1)), "b": Give(state("complete", 2)), "c": Join("a")}
    result = await Pipeline(
        "talk", steps, {"b": ["a"], "c": ["b", "a"]}, executor=executor
    ).execute({}, None)
    assert result.conversation_state is not None
    assert result.conversation_state.data == 2


@pytest.mark.parametrize("on_error", ["fail", "continue"])
async def test_an_early_stop_is_no_failure(executor: str, on_error: Any) -> None:
    steps = {"gather": Give(state("incomplete")), "later": Give()}
    config = PipelineConfig(on_error=on_error)
    result = await Pipeline(
        "talk", steps, {"later": ["gather"]}, config=config, executor=executor
    ).execute({}, None)
    assert result.stopped_early
    assert (result.errors, result.skipped) == ({}, ())
