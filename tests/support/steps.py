"""Steps for tests that wait for events, never for the clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from fastroai import BaseStep, StepContext, step

PATIENCE = 30.0
"""Seconds after which something that should have happened by now counts as never happening."""


class Signal:
    """An event for steps that may run in different threads and event loops."""

    def __init__(self) -> None:
        self._reached: Future[None] = Future()

    def set(self) -> None:
        if not self._reached.done():
            self._reached.set_result(None)

    def is_set(self) -> bool:
        return self._reached.done()

    async def wait(self) -> None:
        # Shielded: a cancelled waiter must not cancel it for the others.
        await asyncio.shield(asyncio.wrap_future(self._reached))


class Meeting:
    """A barrier for steps that may run in different threads and event loops."""

    def __init__(self, parties: int) -> None:
        self._parties = self._missing = parties
        self._complete = Signal()
        self._lock = threading.Lock()

    async def join(self) -> None:
        with self._lock:
            complete = self._complete
            self._missing -= 1
            if not self._missing:
                self._missing, self._complete = self._parties, Signal()
                complete.set()
        await soon(complete.wait())


class Give(BaseStep[Any, Any]):
    """Gives a value, or raises it.

    Given several, one for each run, the last one again and again.
    """

    def __init__(self, *values: Any) -> None:
        self._values = list(values) or [None]
        self.runs = 0

    async def execute(self, context: StepContext[Any]) -> Any:
        value = self._values[min(self.runs, len(self._values) - 1)]
        self.runs += 1
        if isinstance(value, BaseException):
            raise value
        return value


class Join(BaseStep[Any, str]):
    """Joins the outputs of its dependencies with its own id."""

    def __init__(self, *step_ids: str) -> None:
        self._step_ids = step_ids

    async def execute(self, context: StepContext[Any]) -> str:
        return (
            f"{context.step_id}({','.join(str(context.get_dependency(s)) for s in self._step_ids)})"
        )


class WaitsForever(BaseStep[Any, None]):
    """Says that it has started, and hangs until it is cancelled; its cleaning up takes several
    turns of the loop.
    """

    def __init__(self) -> None:
        self.started = Signal()
        self.cleaned_up = False

    async def execute(self, context: StepContext[Any]) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.cleaned_up = True


def after(events: Iterable[Signal], value: Any = None) -> BaseStep[Any, Any]:
    """A step that waits for events, then gives a value or raises it."""

    @step
    async def wait_and_give(context: StepContext[Any]) -> Any:
        for event in events:
            await soon(event.wait())
        if isinstance(value, BaseException):
            raise value
        return value

    return wait_and_give


def announcing(event: Signal, value: Any = None) -> BaseStep[Any, Any]:
    """A step that sets an event and gives a value."""

    @step
    async def announce(context: StepContext[Any]) -> Any:
        event.set()
        return value

    return announce


async def soon(awaitable: Any) -> Any:
    """Wait for something that needs other code to go on; a deadlock becomes a TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


class RecordingTracer:
    """Notes spans, metrics and errors in their order."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self.ended: list[str] = []
        self.failed: list[str] = []
        self.metrics: dict[str, dict[str, Any]] = {}
        """By the name of their span."""
        self._names: dict[str, str] = {}

    @asynccontextmanager
    async def span(self, name: str, **attributes: Any) -> AsyncIterator[str]:
        self.spans.append(name)
        trace_id = str(uuid4())
        self._names[trace_id] = name
        try:
            yield trace_id
        except BaseException:
            self.failed.append(name)
            raise
        finally:
            self.ended.append(name)

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        self.metrics.setdefault(self._names[trace_id], {})[name] = value

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None: ...


class Gauge:
    """Counts how many steps run at once."""

    def __init__(self) -> None:
        self.running = self.peak = 0
        self._lock = threading.Lock()

    def step(self, body: Callable[[], Any]) -> BaseStep[Any, Any]:
        @step
        async def counted(context: StepContext[Any]) -> Any:
            with self._lock:
                self.running += 1
                self.peak = max(self.peak, self.running)
            try:
                return await body()
            finally:
                with self._lock:
                    self.running -= 1

        return counted
