"""What was answered within a step is not asked again when the step is: on every executor, and in
another flow run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import Base64Bytes, BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.toolsets import FunctionToolset

from fastroai import (
    FastroAgent,
    Pipeline,
    PipelineResult,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.testing import ScriptedModel, ToolCall, fixed_prices
from fastroai.usage import EntryState
from tests.support.models import shared_agent, shared_model
from tests.support.shared import SharedList
from tests.support.steps import Give


class Weather(BaseModel):
    city: str
    degrees: float


NOW = {"retries": 1, "retry_delay": 0.0}


def agent_on(model: Any, **options: Any) -> FastroAgent[Any]:
    return shared_agent(model=model, cost_calculator=fixed_prices(), **options)


def failing_once(asks: Callable[[StepContext[Any]], Any], **config: Any) -> Any:
    """A step that asks, fails behind it in its first attempt, and gives what the last attempt was
    answered.
    """
    behind = Give(RuntimeError("once"), None)

    @step(**(NOW | config))
    async def ask(ctx: StepContext[Any]) -> Any:
        answers = await asks(ctx)
        await behind.execute(ctx)
        return answers

    return ask


async def run(executor: Any, one: Any, **options: Any) -> PipelineResult[Any]:
    return await Pipeline("talk", {"ask": one}, executor=executor).execute({}, None, **options)


def states(result: PipelineResult[Any]) -> list[str]:
    return [entry.state.value for entry in result.entries]


async def test_a_tool_loop_is_neither_sent_nor_executed_again(executor: str) -> None:
    looked_up = SharedList()

    def weather(city: str) -> Weather:
        looked_up.append(city)
        return Weather(city=city, degrees=4.0)

    model = shared_model(ToolCall("weather", {"city": "Oslo"}), "cold")
    agent = agent_on(model, toolsets=[FunctionToolset([weather])])

    async def asks(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "Oslo?")).output

    result = await run(executor, failing_once(asks))
    assert result.output == "cold"
    assert looked_up == ["Oslo"]
    assert len(model.prompts) == 2
    assert states(result) == ["charged", "charged", "replayed", "replayed"]
    assert [entry.replay_of for entry in result.entries[2:]] == [
        entry.id for entry in result.entries[:2]
    ]
    assert result.usage is not None
    assert (result.usage.total_request_count, result.usage.total_replayed_count) == (2, 2)


async def test_a_tool_gets_the_arguments_that_pydantic_ai_made(executor: str) -> None:
    """An iterator is not used up before the tool sees it, and bytes need not be text."""
    given = SharedList()

    def take(numbers: Iterable[int], data: Base64Bytes, unit: str = "C") -> str:
        given.append((list(numbers), data, unit))
        return "taken"

    model = shared_model(ToolCall("take", {"numbers": [1, 2, 3], "data": "/9j/"}), "done")
    agent = agent_on(model, toolsets=[FunctionToolset([take])])

    async def asks(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "take")).output

    result = await run(executor, failing_once(asks))
    assert result.output == "done"
    assert given == [([1, 2, 3], b"\xff\xd8\xff", "C")]
    assert states(result) == ["charged", "charged", "replayed", "replayed"]


async def test_the_requests_of_a_call_that_failed_midway_are_not_sent_again(executor: str) -> None:
    def unlucky(messages: Any, info: Any) -> Any:
        raise ModelHTTPError(500, "scripted")

    def note(text: str) -> str:
        return f"noted {text}"

    model = shared_model(ToolCall("note", {"text": "x"}), unlucky, "done")
    agent = agent_on(model, toolsets=[FunctionToolset([note])], max_retries=0)

    @step(**NOW)
    async def ask(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "x?")).output

    result = await run(executor, ask)
    assert result.output == "done"
    assert states(result) == ["charged", "refused", "replayed", "charged"]


async def test_the_same_question_asked_twice_keeps_its_two_answers(executor: str) -> None:
    model = shared_model("first", "second")
    agent = agent_on(model)

    async def asks(ctx: StepContext[Any]) -> Any:
        return [(await ctx.run(agent, "again?")).output for _ in range(2)]

    result = await run(executor, failing_once(asks))
    assert result.output == ["first", "second"]
    assert len(model.prompts) == 2


async def test_a_fallback_that_answered_is_not_asked_again_nor_is_what_it_stood_in_for(
    executor: str,
) -> None:
    def down(messages: Any, info: Any) -> Any:
        raise ModelHTTPError(503, "scripted")

    first, second = shared_model(down, "too late"), shared_model("answer")
    agent = agent_on(FallbackModel(first, second), max_retries=0)

    async def asks(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "?")).output

    result = await run(executor, failing_once(asks))
    assert result.output == "answer"
    assert states(result) == ["refused", "charged", "replayed"]


async def test_a_stream_is_replayed_as_a_stream(executor: str) -> None:
    model = shared_model("one two three")
    agent = agent_on(model)

    async def asks(ctx: StepContext[Any]) -> Any:
        async with aclosing(agent.run_stream("count")) as chunks:
            return "".join([chunk.content async for chunk in chunks])

    result = await run(executor, failing_once(asks))
    assert result.output == "one two three"
    assert states(result) == ["charged", "replayed"]


async def test_a_structured_answer_is_replayed_as_its_type(executor: str) -> None:
    class City(BaseModel):
        name: str

    agent = agent_on(shared_model({"nom": "Oslo"}, {"name": "Oslo"}), output_type=City)

    async def asks(ctx: StepContext[Any]) -> City:
        response = await ctx.run(agent, "city?")
        assert isinstance(response.output, City)
        return response.output

    result = await run(executor, failing_once(asks))
    assert result.output == City(name="Oslo")
    assert states(result) == ["charged", "charged", "replayed", "replayed"]


@pytest.mark.one_process("an agent of pydantic-ai can't be pickled: a deps factory makes it")
async def test_an_agent_of_the_user_s_own_is_replayed_too(executor: str) -> None:
    calls: list[str] = []
    model = shared_model(ToolCall("note"), "done")
    own = Agent(model)

    @own.tool_plain
    def note() -> str:
        calls.append("note")
        return "noted"

    agent = FastroAgent(agent=own, cost_calculator=fixed_prices())

    async def asks(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "?")).output

    result = await run(executor, failing_once(asks))
    assert (result.output, calls, len(model.prompts)) == ("done", ["note"], 2)


async def test_a_step_that_is_the_unit_asks_again(executor: str) -> None:
    model = shared_model("first", "second")
    agent = agent_on(model)

    async def asks(ctx: StepContext[Any]) -> Any:
        return (await ctx.run(agent, "?")).output

    result = await run(executor, failing_once(asks, durable="step"))
    assert result.output == "second"
    assert states(result) == ["charged", "charged"]


class TestAnotherFlowRun:
    """What was answered before a run failed is not asked again when it is executed under the same
    key.
    """

    pytestmark = pytest.mark.usefixtures("prefect_api")

    async def fail_then_finish(
        self, model: ScriptedModel, tmp_path: Path, spoil: Any = None
    ) -> PipelineResult[Any]:
        agent = agent_on(model)
        behind = Give(RuntimeError("crash"), None)

        @step
        async def ask(ctx: StepContext[Any]) -> Any:
            first = (await ctx.run(agent, "one?")).output
            await behind.execute(ctx)
            return [first, (await ctx.run(agent, "two?")).output]

        with pytest.raises(StepExecutionError, match="crash"):
            await run("prefect", ask, run_key="work-1")
        if spoil is not None:
            (record,) = (tmp_path / "prefect-results" / "requests").iterdir()
            record.write_bytes(spoil(record.read_bytes()))
        return await run("prefect", ask, run_key="work-1")

    async def test_only_what_was_not_answered_is_sent(self, tmp_path: Path) -> None:
        model = shared_model("first", "second")
        result = await self.fail_then_finish(model, tmp_path)
        assert result.output == ["first", "second"]
        assert states(result) == ["replayed", "charged"]
        assert model.prompts == ["one?", "two?"]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda record: record[:-20],
            lambda record: b"cos\nsystem\n(S'true'\ntR.",
            pytest.param(lambda record: b"[" * 100_000, marks=pytest.mark.long),
        ],
        ids=["cut off", "pickled", "nested"],
    )
    async def test_a_spoilt_record_is_asked_for_again(self, tmp_path: Path, spoil: Any) -> None:
        model = shared_model("first", "anew", "second")
        result = await self.fail_then_finish(model, tmp_path, spoil)
        assert result.output == ["anew", "second"]
        assert states(result) == ["charged", "charged"]

    async def test_another_key_is_another_run(self, tmp_path: Path) -> None:
        model = shared_model("first", "second")
        agent = agent_on(model)

        @step
        async def ask(ctx: StepContext[Any]) -> Any:
            return (await ctx.run(agent, "one?")).output

        assert (await run("prefect", ask, run_key="work-1")).output == "first"
        assert (await run("prefect", ask, run_key="work-2")).output == "second"
        again = await run("prefect", ask, run_key="work-1")
        assert again.output == "first"
        assert [entry.state for entry in again.entries] == [EntryState.REPLAYED]
