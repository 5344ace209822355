"""Under what a tool call is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.toolsets import FunctionToolset

from fastroai.replay.journal import Journal
from fastroai.replay.tools import ToolJournal
from fastroai.testing import ScriptedModel, ToolCall


async def returned(journal: Journal, tool: Callable[..., Any], args: dict[str, Any]) -> str:
    journal.begin_attempt()
    answer = ScriptedModel(ToolCall("tool", args, id="call-1"), "done")
    agent = Agent(answer, toolsets=[FunctionToolset([tool])], capabilities=[ToolJournal(journal)])
    result = await agent.run("go")
    return str(result.all_messages()[-2].parts[0].content)


async def test_a_record_of_an_earlier_version_is_found_by_the_validated_arguments() -> None:
    def tool(city: str, degrees: float = 0.0) -> str:
        return f"{city} now"

    journal = Journal("step")
    place = journal.place("tool", "tool", "call-1", {"city": "Oslo", "degrees": 0.0})
    part = {"tool_name": "tool", "tool_call_id": "call-1", "content": "Oslo then"}
    await journal.write(place, returned=part | {"part_kind": "tool-return"})
    assert await returned(journal, tool, {"city": "Oslo"}) == "Oslo then"
    assert await returned(journal, tool, {"city": "Rome"}) == "Rome now"
