"""An event loop whose clock jumps to the next timer, so that delays are exact and take no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Time passes only while nothing is ready to run.

    Not for code that waits for threads or sockets.
    """

    def __init__(self) -> None:
        super().__init__()
        self._skipped = 0.0
        self._began = super().time()

    def time(self) -> float:
        return self._began + self._skipped

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._skipped = max(self._skipped, self._scheduled[0].when() - self._began)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def on_virtual_clock(main: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, float]:
    """Run a coroutine function on a virtual clock; its result, and the seconds that passed on that
    clock.
    """
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        loop = runner.get_loop()
        began = loop.time()
        result = runner.run(main())
        return result, loop.time() - began
