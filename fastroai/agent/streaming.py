"""A streamed run: its text piece by piece, and a task of its own to run in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

T = TypeVar("T")
HandOver = Callable[[T], Awaitable[bool]]
_END: Final[Any] = object()


async def in_own_task(produce: Callable[[HandOver[T]], Awaitable[None]]) -> AsyncGenerator[T]:
    """What a coroutine function hands over, run from its beginning to its end in one task.

    A generator that is left early is closed by whichever task comes along. pydantic-ai's cancel
    scopes and context variables must be left in the task that entered them (closing them elsewhere
    cancels bystanders), and by leaving their blocks, not by an exception thrown in.

    Args:
        produce: Called with `hand_over`, which waits until the consumer asks for more; it returns
            False when the consumer has left, and then there is nothing more to do.
    """
    asked: asyncio.Queue[bool] = asyncio.Queue()
    given: asyncio.Queue[T] = asyncio.Queue()

    async def hand_over(item: T) -> bool:
        given.put_nowait(item)
        # No further before more is asked for: who leaves early stops the request, and its bill.
        return await asked.get()

    async def run() -> None:
        await produce(hand_over)

    task = asyncio.create_task(run())
    task.add_done_callback(lambda _: given.put_nowait(_END))
    try:
        while (item := await given.get()) is not _END:
            yield item
            asked.put_nowait(True)
        task.result()
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            asked.put_nowait(False)
        else:
            task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            # looked at, so that asyncio does not report it: it was raised here, or nobody is left
            task.exception()
        raise


async def stream_content(stream: Any, output_tools: Collection[str]) -> AsyncGenerator[str]:
    """What is new in a run's answer, as it comes: text, or the JSON of a structured output.

    Args:
        stream: pydantic-ai's streamed run.
        output_tools: Tools whose arguments are the output; read anew for each piece.
    """
    read_anything = False
    async with _closing(stream.stream_text(delta=True, debounce_by=None)) as pieces:
        try:
            async for piece in pieces:
                read_anything = True
                yield piece
        except UserError:
            if read_anything:
                raise
        else:
            return
    # pydantic-ai refused to stream anything but text this way, before it had read from the stream.
    sent = ""
    async with _closing(stream.stream_response(debounce_by=None)) as responses:
        async for response in responses:
            text = output_text(response, output_tools)
            if len(text) > len(sent) and text.startswith(sent):
                yield text[len(sent) :]
                sent = text


@asynccontextmanager
async def _closing(items: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Close a generator at once when it is left early; other iterators have nothing to close."""
    try:
        yield items
    finally:
        if (close := getattr(items, "aclose", None)) is not None:
            await close()


def output_text(response: ModelResponse, output_tools: Collection[str]) -> str:
    """The output within a response that is still growing: the arguments of an output tool, else its
    text.
    """
    for part in response.parts:
        if isinstance(part, ToolCallPart) and part.tool_name in output_tools:
            return _json_of(part.args)
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def _json_of(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments  # not complete yet, and passed on as it comes
    return json.dumps(arguments or {}, separators=(",", ":"))
