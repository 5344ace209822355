"""`safe_tool`: limits a tool's time, retries it, and returns its error text to the model."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from anyio import to_thread
from pydantic_ai import exceptions as pydantic_ai_errors

from ..errors import CostBudgetExceededError, DispatchSkippedError
from ..redaction import redact
from ..retries import Backoff, retry

logger = logging.getLogger("fastroai.tools")

DEFAULT_TOOL_TIMEOUT = 30
"""Seconds for one attempt."""
DEFAULT_TOOL_MAX_RETRIES = 3
"""Attempts in total."""

BACKOFF = Backoff(0.1)

P = ParamSpec("P")
R = TypeVar("R")

_CONTROL_FLOW = (
    # How a tool speaks to pydantic-ai
    pydantic_ai_errors.ApprovalRequired,
    pydantic_ai_errors.CallDeferred,
    pydantic_ai_errors.ModelRetry,
    # pydantic-ai has it since 2.66.
    getattr(pydantic_ai_errors, "RetryModelRequest", pydantic_ai_errors.ModelRetry),
    pydantic_ai_errors.SkipModelRequest,
    pydantic_ai_errors.SkipToolExecution,
    pydantic_ai_errors.SkipToolValidation,
    pydantic_ai_errors.ToolFailed,
    # How an agent inside a tool is stopped: trying again would defeat the limit
    pydantic_ai_errors.RunCancelled,
    pydantic_ai_errors.UsageLimitExceeded,
    CostBudgetExceededError,
    DispatchSkippedError,
)


class _SafeToolDecorator(Protocol):
    @overload
    def __call__(
        self, func: Callable[P, Awaitable[R]], /
    ) -> Callable[P, Coroutine[Any, Any, R | str]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R | str]]: ...


def safe_tool(
    timeout: float | None = DEFAULT_TOOL_TIMEOUT,
    max_retries: int = DEFAULT_TOOL_MAX_RETRIES,
    on_timeout: str | None = None,
    on_error: str | None = None,
) -> _SafeToolDecorator:
    """Make a tool that returns a text when it fails or takes too long.

    The result is an async function with the name, docstring and signature of the tool. A tool that
    is not async runs in a worker thread; after a timeout or a cancellation that thread is abandoned
    and ends by itself.

    Not turned into text: cancellation, pydantic-ai's control flow (`ModelRetry`, `CallDeferred`,
    `ApprovalRequired`, …) and limits reached by an agent inside the tool. These are not tried again
    either.

    Args:
        timeout: Seconds for one attempt. None: no limit.
        max_retries: Attempts in total, at least 1. Between two of them it waits 0.1 s, 0.2 s, 0.4
            s, …
        on_timeout: Returned when the last attempt timed out.
        on_error: Returned when the last attempt failed, with `{error}` replaced by the error's
            text.

    Raises:
        ValueError: `max_retries` is less than 1, or `timeout` is not greater than 0.
        TypeError: Used without parentheses.
    """
    if callable(timeout):
        raise TypeError("safe_tool must be used with parentheses: @safe_tool()")
    if max_retries < 1:
        raise ValueError(
            f"max_retries counts all attempts and must be at least 1, got {max_retries!r}."
        )
    if timeout is not None and not timeout > 0:
        raise ValueError(
            f"timeout must be greater than 0 seconds, or None for no limit, got {timeout!r}."
        )

    def explain(error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return on_timeout or f"Tool timed out after {max_retries} attempts"
        text = redact(str(error))
        return on_error.replace("{error}", text) if on_error else f"Tool failed: {text}"

    def decorate(func: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        name = getattr(func, "__name__", type(func).__name__)
        call = _as_async(func)

        @functools.wraps(func)
        async def safe(*args: Any, **kwargs: Any) -> Any:
            async def attempt(number: int) -> Any:
                async with asyncio.timeout(timeout):
                    return await call(*args, **kwargs)

            def delay_after(error: Exception, failures: int) -> float | None:
                if _is_control_flow(error):
                    return None
                is_timeout = isinstance(error, TimeoutError)
                what = "timed out" if is_timeout else f"failed: {redact(repr(error))}"
                logger.warning("Tool %s %s (attempt %d of %d)", name, what, failures, max_retries)
                return BACKOFF.after(failures) if failures < max_retries else None

            try:
                return await retry(attempt, delay_after)
            except Exception as error:
                if _is_control_flow(error):
                    raise
                return explain(error)

        return safe

    return decorate


def _is_control_flow(error: Exception) -> bool:
    # RunTimedOut is a RunCancelled, but to a tool it is a timeout like any other.
    return isinstance(error, _CONTROL_FLOW) and not isinstance(error, TimeoutError)


def _as_async(func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    inner: Any = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    # Its function is asked for, not whether it is callable.
    call = getattr(inner, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call):
        return func

    async def in_thread(*args: Any, **kwargs: Any) -> Any:
        result = await to_thread.run_sync(
            functools.partial(func, *args, **kwargs), abandon_on_cancel=True
        )
        return await result if inspect.isawaitable(result) else result

    return in_thread
