"""safe_tool and toolsets as programs written for fastroai 0.6 use them."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from pydantic_ai import FunctionToolset, RunContext

from fastroai.tools import (
    DEFAULT_TOOL_MAX_RETRIES,
    DEFAULT_TOOL_TIMEOUT,
    FunctionToolsetBase,
    SafeToolset,
    safe_tool,
)


def test_the_defaults() -> None:
    assert DEFAULT_TOOL_TIMEOUT == 30
    assert DEFAULT_TOOL_MAX_RETRIES == 3
    parameters = inspect.signature(safe_tool).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "timeout": 30,
        "max_retries": 3,
        "on_timeout": None,
        "on_error": None,
    }


async def test_a_value_comes_back_untouched() -> None:
    value = {"rows": [1, 2]}

    @safe_tool()
    async def load(key: str) -> dict[str, list[int]]:
        return value

    assert await load("a") is value


async def test_name_docstring_and_signature_are_kept() -> None:
    @safe_tool(timeout=5)
    async def weather(city: str, days: int = 1) -> str:
        """Weather of a city."""
        return city

    assert weather.__name__ == "weather"
    assert weather.__doc__ == "Weather of a city."
    assert list(inspect.signature(weather).parameters) == ["city", "days"]


async def test_max_retries_counts_all_attempts_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[float | str] = []

    async def pause(seconds: float) -> None:
        happened.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)

    @safe_tool(max_retries=3)
    async def fails() -> str:
        happened.append("called")
        raise ValueError("no such row")

    answer = await fails()

    assert answer.startswith("Tool failed:")
    assert "no such row" in answer
    assert happened == ["called", 0.1, "called", 0.2, "called"]


async def test_a_later_attempt_may_succeed() -> None:
    attempts = 0

    @safe_tool(max_retries=3)
    async def unsteady() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 2:
            raise RuntimeError("not yet")
        return "done"

    assert await unsteady() == "done"
    assert attempts == 2


async def test_a_timeout_says_so() -> None:
    @safe_tool(timeout=0.01, max_retries=1)
    async def slow() -> str:
        await asyncio.sleep(60)
        return "never"

    answer = await slow()

    assert "timed out" in answer.lower()
    assert "1 attempts" in answer


async def test_own_texts_for_timeout_and_error() -> None:
    @safe_tool(timeout=0.01, max_retries=1, on_timeout="Search is {slow} today.")
    async def slow() -> str:
        await asyncio.sleep(60)
        return "never"

    @safe_tool(max_retries=1, on_error="Could not look it up: {error}")
    async def fails() -> str:
        raise ValueError("bad key")

    assert await slow() == "Search is {slow} today."
    assert await fails() == "Could not look it up: bad key"


async def test_the_last_failure_decides_the_text() -> None:
    attempts = 0

    @safe_tool(timeout=0.01, max_retries=2, on_timeout="slow", on_error="bad: {error}")
    async def slow_then_broken() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.sleep(60)
        raise ValueError("broken")

    assert await slow_then_broken() == "bad: broken"


def test_a_toolset_has_a_name() -> None:
    class SearchTools(FunctionToolsetBase):
        def __init__(self) -> None:
            super().__init__(tools=[plain_tool], name="search")

    class Unnamed(SafeToolset):
        pass

    assert SearchTools().name == "search"
    assert Unnamed(tools=[plain_tool, context_tool]).name == "Unnamed"
    assert isinstance(Unnamed([]), FunctionToolsetBase)
    assert isinstance(SearchTools(), FunctionToolset)
    assert set(SearchTools().tools) == {"plain_tool"}


async def plain_tool(query: str) -> str:
    """Search."""
    return query


async def context_tool(ctx: RunContext[None], query: str) -> str:
    """Search with deps."""
    return query
