"""FastroAgent.run_stream on scripted models."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.toolsets import FunctionToolset

from fastroai import FastroAgent, StreamChunk
from fastroai.ledger.entries import EntryState
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope, current_scope
from fastroai.testing import ScriptedModel, ToolCall


class City(BaseModel):
    name: str
    people: int


async def chunks_of(agent: FastroAgent[Any], message: str = "Hi") -> list[StreamChunk[Any]]:
    return [chunk async for chunk in agent.run_stream(message)]


async def test_pieces_add_up_to_the_answer() -> None:
    *pieces, last = await chunks_of(FastroAgent(model=ScriptedModel("one two three")))
    assert [piece.content for piece in pieces] == ["one ", "two ", "three"]
    assert last.is_final
    assert last.usage_data is not None
    assert last.usage_data.output == "one two three"


async def test_the_last_chunk_has_the_settled_books() -> None:
    streamed = (await chunks_of(FastroAgent(model=ScriptedModel("one two three"))))[-1].usage_data
    plain = await FastroAgent(model=ScriptedModel("one two three")).run("Hi")
    assert streamed is not None
    assert streamed.entries[0].state is EntryState.CHARGED
    assert streamed.cost_usd == plain.cost_usd
    assert streamed.input_tokens == plain.input_tokens


@pytest.mark.parametrize("output_type", [City, NativeOutput(City)])
async def test_a_structured_output_comes_as_pieces_of_its_json(output_type: Any) -> None:
    agent: FastroAgent[City] = FastroAgent(
        model=ScriptedModel(City(name="New York City", people=7)), output_type=output_type
    )
    *pieces, last = await chunks_of(agent)
    assert len(pieces) > 1
    assert json.loads("".join(piece.content for piece in pieces)) == {
        "name": "New York City",
        "people": 7,
    }
    assert last.usage_data is not None
    assert last.usage_data.output == City(name="New York City", people=7)
    assert last.usage_data.tool_calls == []


async def test_requests_before_the_answer_are_in_the_response() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    model = ScriptedModel(ToolCall("add", {"a": 1, "b": 2}), "It is 3.")
    last = (await chunks_of(FastroAgent(model=model, toolsets=[FunctionToolset([add])])))[-1]
    assert last.usage_data is not None
    assert [entry.state for entry in last.usage_data.entries] == [EntryState.CHARGED] * 2
    assert [call["tool_name"] for call in last.usage_data.tool_calls] == ["add"]


async def test_a_ready_agent_streams_and_is_metered() -> None:
    last = (await chunks_of(FastroAgent(agent=Agent(ScriptedModel("one two")))))[-1]
    assert last.usage_data is not None
    assert len(last.usage_data.entries) == 1


async def test_leaving_early_is_in_the_books() -> None:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        async with aclosing(
            FastroAgent(model=ScriptedModel("one two three")).run_stream("Hi")
        ) as chunks:
            async for _ in chunks:
                break
    (entry,) = ledger.entries
    assert entry.state is EntryState.UNSETTLED
    assert entry.cost_usd is None
    assert "Left before its end" in (entry.error or "")


async def test_leaving_early_without_closing_disturbs_nobody() -> None:
    ledger, complaints = RequestRecorder(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    agent = FastroAgent(model=ScriptedModel("one two three", repeat=True))
    with DispatchScope(ledger):
        async for _ in agent.run_stream("Hi"):
            break
        gc.collect()
        for _ in range(50):
            await asyncio.sleep(0)
        response = await agent.run("Again")
    assert response.output == "one two three"
    assert [entry.state for entry in ledger.entries] == [EntryState.UNSETTLED, EntryState.CHARGED]
    assert complaints == []


async def test_a_cancelled_consumer_cancels_the_request() -> None:
    ledger, asked = RequestRecorder(), asyncio.Event()

    async def never(*_: object) -> str:
        asked.set()
        await asyncio.Event().wait()
        return "never"

    with DispatchScope(ledger):
        task = asyncio.create_task(chunks_of(FastroAgent(model=ScriptedModel(never))))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (entry,) = ledger.entries
    assert entry.state is EntryState.UNSETTLED
    assert "CancelledError" in (entry.error or "")


async def test_an_error_is_raised_where_the_chunks_are_read() -> None:
    error = RuntimeError("broken")
    with pytest.raises(RuntimeError) as raised:
        await chunks_of(FastroAgent(model=ScriptedModel(error)))
    assert raised.value is error


async def test_context_variables_of_the_run_do_not_show_between_chunks() -> None:
    seen_by_tool: list[str] = []
    variable = ContextVar("variable", default="outside")

    def look() -> str:
        seen_by_tool.append(variable.get())
        variable.set("changed by a tool")
        return "seen"

    model = ScriptedModel(ToolCall("look"), "one two")
    agent = FastroAgent(model=model, toolsets=[FunctionToolset([look])])
    variable.set("set by the caller")
    async for _ in agent.run_stream("Hi"):
        assert variable.get() == "set by the caller"
        assert current_scope() is None
    assert seen_by_tool == ["set by the caller"]


async def test_nothing_is_sent_until_a_chunk_is_asked_for() -> None:
    model = ScriptedModel("one")
    chunks = FastroAgent(model=model).run_stream("Hi")
    await asyncio.sleep(0)
    assert model.calls == 0
    await chunks.aclose()
