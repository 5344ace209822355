"""Chat responses and patched agents, in the idiom existing suites use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import AsyncMock, patch

from fastroai import ChatResponse, FastroAgent


def chat_response(output: Any = "ok", *, cost: int = 100, **fields: Any) -> ChatResponse[Any]:
    """A response with the required fields only; `cost` in microcents."""
    values: dict[str, Any] = {
        "output": output,
        "content": str(output),
        "model": "gpt-4o",
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "cost_microcents": cost,
        "processing_time_ms": 7,
    }
    return ChatResponse(**(values | fields))


def offline_agent(**options: Any) -> FastroAgent[Any]:
    """An agent that needs no key and no network."""
    return FastroAgent(model="test", **options)


@contextmanager
def answering(agent: FastroAgent[Any], *answers: Any) -> Iterator[AsyncMock]:
    """Patch `agent.run` on the instance: it gives or raises the answers in turn, the last one again
    and again.
    """
    remaining = list(answers)

    async def answer(*args: Any, **kwargs: Any) -> Any:
        given = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(given, BaseException):
            raise given
        return given

    with patch.object(agent, "run", AsyncMock(side_effect=answer)) as run:
        yield run
