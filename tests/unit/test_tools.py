"""safe_tool beyond its contract: control flow, threads, cancellation, schemas."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunContext,
    Tool,
    exceptions,
)
from pydantic_ai.models.test import TestModel

from fastroai.errors import CostBudgetExceededError, DispatchSkippedError
from fastroai.retries import Backoff
from fastroai.tools import FunctionToolsetBase, SafeToolset, decorators, safe_tool


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decorators, "BACKOFF", Backoff(0))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens at the latest when the test ends, so that no thread is left waiting."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    "error",
    [
        ModelRetry("try a shorter query"),
        CallDeferred(),
        ApprovalRequired(),
        exceptions.SkipToolExecution("result"),
        exceptions.ToolFailed("gone for good"),
        exceptions.UsageLimitExceeded("10 requests"),
        exceptions.RunCancelled("stop"),
        CostBudgetExceededError(budget=1, actual=2),
        DispatchSkippedError("not now"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_control_flow_passes_through_at_once(error: Exception) -> None:
    calls = 0

    @safe_tool(max_retries=3)
    async def tool() -> str:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)) as caught:
        await tool()

    assert caught.value is error
    assert calls == 1


def test_all_control_flow_of_pydantic_ai_is_classified() -> None:
    """What pydantic-ai raises straight from Exception is how tools and hooks steer it; a new one
    must be decided on.
    """
    steering = {
        error
        for name in exceptions.__all__
        if isinstance(error := getattr(exceptions, name), type) and error.__bases__ == (Exception,)
    }

    assert steering <= set(decorators._CONTROL_FLOW)


async def test_the_time_limit_of_an_agent_inside_the_tool_is_a_timeout(no_pause: None) -> None:
    @safe_tool(max_retries=2, on_timeout="too slow")
    async def tool() -> str:
        raise exceptions.RunTimedOut("5 s")

    assert await tool() == "too slow"


async def test_cancelling_the_caller_cancels_the_tool_and_is_not_answered() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    @safe_tool()
    async def tool() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    task = asyncio.create_task(tool())
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_cancelling_during_a_pause_is_not_answered() -> None:
    failed = asyncio.Event()

    @safe_tool()
    async def tool() -> str:
        failed.set()
        raise ValueError("x")

    task = asyncio.create_task(tool())
    await failed.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_sync_tool_runs_in_a_thread_with_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set by the caller")

    @safe_tool()
    def tool(a: int, *, b: int) -> tuple[int, str, bool]:
        return a + b, variable.get(), threading.current_thread() is threading.main_thread()

    assert await tool(1, b=2) == (3, "set by the caller", False)


async def test_a_failing_sync_tool_is_tried_again(no_pause: None) -> None:
    calls = 0

    @safe_tool(max_retries=2)
    def tool() -> str:
        nonlocal calls
        calls += 1
        raise ValueError("broken")

    assert await tool() == "Tool failed: broken"
    assert calls == 2


async def test_a_blocking_sync_tool_times_out_and_its_thread_is_abandoned(
    gate: threading.Event,
) -> None:
    ended = threading.Event()

    @safe_tool(timeout=0.01, max_retries=1)
    def tool() -> str:
        gate.wait()
        ended.set()
        return "late"

    answer = await tool()

    assert "timed out" in str(answer)
    assert not ended.is_set()


async def test_partials_callable_objects_and_functions_that_return_coroutines_are_awaited() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    def forward(a: int, b: int) -> Any:
        return add(a, b)

    for func in (
        functools.partial(add, 1),
        functools.partial(Adder(), 1),
        functools.partial(forward, 1),
    ):
        assert await safe_tool()(func)(2) == 3


@pytest.mark.parametrize("text", ['{"failed": "{error}"}', "{error} {} {other} {0"])
async def test_braces_in_the_error_text_are_literal(text: str) -> None:
    @safe_tool(max_retries=1, on_error=text)
    async def tool() -> str:
        raise ValueError("{why}")

    assert await tool() == text.replace("{error}", "{why}")


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_tool_that_could_never_run_is_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match=r"max_retries .* at least 1, got"):
        safe_tool(max_retries=attempts)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        safe_tool(timeout=timeout)


async def test_no_timeout_at_all() -> None:
    @safe_tool(timeout=None)
    async def tool() -> str:
        return "done"

    assert await tool() == "done"


def test_parentheses_are_asked_for() -> None:
    async def tool() -> str:
        return "x"

    with pytest.raises(TypeError, match=r"@safe_tool\(\)"):
        safe_tool(tool)  # type: ignore[arg-type]


def _weather(city: str, days: int = 1) -> str:
    """Weather of a city.

    Args:
        city: Where.
        days: How many.
    """
    return f"{city} {days}"


async def _weather_async(city: str, days: int = 1) -> str:
    """Weather of a city.

    Args:
        city: Where.
        days: How many.
    """
    return f"{city} {days}"


async def _with_context(ctx: RunContext[str], city: str) -> str:
    """Weather of a city, for someone."""
    return f"{ctx.deps} {city}"


@pytest.mark.parametrize("func", [_weather, _weather_async])
def test_the_model_sees_the_schema_of_the_bare_function(func: Any) -> None:
    bare, safe = Tool(func), Tool(safe_tool()(func))

    assert safe.function_schema.json_schema == bare.function_schema.json_schema
    assert (safe.name, safe.description) == (bare.name, bare.description)


async def test_safe_tools_work_in_an_agent_with_and_without_a_run_context() -> None:
    toolset = SafeToolset[str](tools=[safe_tool()(_weather), safe_tool()(_with_context)])
    agent = Agent(TestModel(), deps_type=str, toolsets=[toolset])

    result = await agent.run("Weather?", deps="Ada")

    assert result.output == '{"_weather":"a 1","_with_context":"Ada a"}'


async def test_model_retry_reaches_the_model() -> None:
    calls = 0

    @safe_tool()
    async def tool() -> str:
        """Fail once."""
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ModelRetry("again, please")
        return "done"

    result = await Agent(TestModel(), tools=[tool]).run("go")

    assert calls == 2
    assert "again, please" in str(result.all_messages())


def test_a_toolsets_name_is_its_id() -> None:
    assert FunctionToolsetBase([_weather], name="weather").id == "weather"
    assert SafeToolset([_weather]).id == "SafeToolset"
