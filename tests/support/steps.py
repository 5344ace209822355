"""Steps for tests that wait for events, never for the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Any
from uuid import uuid4

from fastroai import BaseStep, StepContext, step
from tests.support.shared import SharedList

PATIENCE = 30.0
"""Seconds after which something that should have happened by now counts as never happening."""
BETWEEN_LOOKS = 0.02
"""Seconds until what another process may have done is looked at again."""


class Signal:
    """An event for steps that may run in different threads, event loops and processes."""

    def __init__(self, sets: SharedList | None = None) -> None:
        self._reached: Future[None] = Future()
        self._sets = SharedList() if sets is None else sets

    def set(self) -> None:
        self._sets.append(None)
        if not self._reached.done():
            self._reached.set_result(None)

    def is_set(self) -> bool:
        return bool(self._sets)

    async def wait(self) -> None:
        reached = asyncio.wrap_future(self._reached)
        while not self.is_set():
            # It may be set in another process. `wait` cancels no future, for the others' sake.
            await asyncio.wait([reached], timeout=BETWEEN_LOOKS)

    def __reduce__(self) -> tuple[Any, ...]:
        return Signal, (self._sets,)


class Meeting:
    """A barrier for steps that may run in different threads, event loops and processes."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._joined = SharedList()

    async def join(self) -> None:
        of_my_round = self._joined.append(None) // self._parties + 1
        async with asyncio.timeout(PATIENCE):
            while len(self._joined) < of_my_round * self._parties:  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS / 4)


class Give(BaseStep[Any, Any]):
    """Gives a value, or raises it.

    Given several, one for each run, the last one again and again.
    """

    def __init__(self, *values: Any) -> None:
        self._values = list(values) or [None]
        self._runs = SharedList()

    @property
    def runs(self) -> int:
        """How often it was run."""
        return len(self._runs)

    async def execute(self, context: StepContext[Any]) -> Any:
        value = self._values[min(self._runs.append(None), len(self._values) - 1)]
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
        self.started, self._cleaned_up = Signal(), Signal()

    @property
    def cleaned_up(self) -> bool:
        """Whether it has ended as it should."""
        return self._cleaned_up.is_set()

    async def execute(self, context: StepContext[Any]) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self._cleaned_up.set()


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
        self._changes = SharedList()

    @property
    def peak(self) -> int:
        """How many there were at most."""
        return max(accumulate(self._changes), default=0)

    def step(self, body: Callable[[], Any]) -> BaseStep[Any, Any]:
        changes = self._changes

        @step
        async def counted(context: StepContext[Any]) -> Any:
            changes.append(1)
            try:
                return await body()
            finally:
                changes.append(-1)

        return counted
