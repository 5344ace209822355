"""A conversation over several turns under one run key: each turn pays only for what its new input
changes.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastroai import (
    ConversationState,
    ConversationStatus,
    Pipeline,
    PipelineResult,
    StepContext,
    step,
)
from tests.integration.read_back import read_run
from tests.support.models import counted_agent

pytestmark = pytest.mark.usefixtures("prefect_api")


class Conversation:
    """Researches a topic, gathers a name from messages, and greets once it has one."""

    def __init__(self) -> None:
        agent, self._model = counted_agent()

        @step
        async def research(ctx: StepContext[Any]) -> str:
            return str((await ctx.run(agent, f"research {ctx.get_input('topic')}")).output)

        @step
        async def gather(ctx: StepContext[Any]) -> ConversationState[dict[str, Any]]:
            message = ctx.get_input("message", "nothing")
            await ctx.run(agent, f"gather from {message}")
            status = (
                ConversationStatus.COMPLETE if "name" in message else ConversationStatus.INCOMPLETE
            )
            return ConversationState(status=status, data={"message": message})

        @step
        async def greet(ctx: StepContext[Any]) -> str:
            return str(
                (
                    await ctx.run(agent, f"greet {ctx.get_dependency('gather').data['message']}")
                ).output
            )

        steps = {"research": research, "gather": gather, "greet": greet}
        self.pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "conversation",
            steps,
            {"gather": ["research"], "greet": ["gather"]},
            output_step="greet",
        )

    async def turn(self, **inputs: Any) -> tuple[PipelineResult[Any], list[str]]:
        """The result of a turn, and what was sent for it."""
        sent = len(self._model.prompts)
        result = await self.pipeline.execute(
            {"topic": "bees"} | inputs, None, run_key="talk with Ada"
        )
        return result, self._model.prompts[sent:]


async def test_a_turn_pays_for_the_steps_that_read_the_new_message_and_those_behind_them() -> None:
    talk = Conversation()
    first, sent = await talk.turn(message="hello")
    assert (first.stopped_early, sent) == (True, ["research bees", "gather from hello"])
    second, sent = await talk.turn(message="my name is Ada")
    assert (second.stopped_early, sent) == (
        False,
        ["gather from my name is Ada", "greet my name is Ada"],
    )
    assert second.output == "answer"
    run = await read_run(second.run_id, tasks=3)
    assert {t.name: t.state_name for t in run.all_task_runs}["research"] == "Cached"


async def test_the_same_turn_again_is_replayed_whole() -> None:
    talk = Conversation()
    await talk.turn(message="hello")
    again, sent = await talk.turn(message="hello")
    assert (again.stopped_early, sent) == (True, [])
    assert again.conversation_state is not None
    assert again.conversation_state.data == {"message": "hello"}


async def test_a_value_that_no_step_reads_changes_nothing() -> None:
    talk = Conversation()
    await talk.turn(message="my name is Ada")
    _, sent = await talk.turn(message="my name is Ada", language="en")
    assert sent == []


async def test_a_value_whose_default_was_read_counts_once_it_is_given() -> None:
    talk = Conversation()
    _, sent = await talk.turn()
    assert sent == ["research bees", "gather from nothing"]
    _, sent = await talk.turn(message="hello")
    assert sent == ["gather from hello"]
