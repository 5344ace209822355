"""Deadlines that stand still while requests made before them wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from threading import Lock
from types import TracebackType

# Ambient, because between a step's deadline and its requests stands the user's code.
_deadlines: ContextVar[tuple[Deadline, ...]] = ContextVar("fastroai_deadlines", default=())


class Deadline:
    """As `asyncio.timeout`, but the time is not counted in which requests of the block wait for a
    rate limit: that is no failure of theirs.

    Args:
        seconds: After which the block is cancelled, to raise a `TimeoutError`.
    """

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._counting = Lock()
        self._waiting = 0
        self._left = 0.0

    async def __aenter__(self) -> Deadline:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._token: Token[tuple[Deadline, ...]] = _deadlines.set((*_deadlines.get(), self))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _deadlines.reset(self._token)
        await self._timeout.__aexit__(exc_type, exc, traceback)

    def expired(self) -> bool:
        """Whether the block was cancelled."""
        return self._timeout.expired()

    def wait(self, requests: int) -> None:
        """So many requests more wait now, or fewer. In any thread."""
        with self._counting:
            before, self._waiting = self._waiting, self._waiting + requests
            changes = not before or not self._waiting
        if not changes:
            return
        if self._loop is _running_loop():
            self._follow()
        else:
            with suppress(RuntimeError):  # its loop is closed, and it is over
                self._loop.call_soon_threadsafe(self._follow)

    def _follow(self) -> None:
        """Stand still while some wait, else go on; whichever is so by now."""
        when = self._timeout.when()
        with suppress(RuntimeError):  # it is over
            if self._waiting and when is not None:
                self._left = when - self._loop.time()
                self._timeout.reschedule(None)
            elif not self._waiting and when is None:
                self._timeout.reschedule(self._loop.time() + self._left)


@contextmanager
def standing_still() -> Iterator[None]:
    """Have the deadlines around this code stand still meanwhile."""
    deadlines = _deadlines.get()
    for deadline in deadlines:
        deadline.wait(1)
    try:
        yield
    finally:
        for deadline in deadlines:
            deadline.wait(-1)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
