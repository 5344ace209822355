"""Progress of a run: live on a terminal, one line for each start and end elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from uuid import uuid4

from rich.console import Console
from rich.progress import (
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from ...pipelines.map_state import MapProgress, watched_maps
from .console import printable
from .map_progress import ItemsBar, ItemsText, LinesOfMap, items_in_words
from .tables import exact

STEP_SPAN = "step."
LOOK_SECONDS = 1.0
"""Between two looks at how far a mapped step is, where lines tell of it."""
_COLOURS = {"done": "green", "failed": "red", "stopped": "yellow"}


class ProgressTracer:
    """Writes a line when a step ends, with how long it took and what the run cost so far, and when
    it starts.

    Of a mapped step there are lines in between. On a terminal that shows colours, active steps are
    shown live instead, mapped ones with a bar.

    Args:
        spent: USD that the run has cost so far.
    """

    def __init__(self, console: Console, spent: Callable[[], Decimal] = Decimal) -> None:
        self._console = console
        self._spent = spent
        self._attempts: Counter[str] = Counter()
        self._live: Progress | None = None
        self._maps: list[MapProgress] = []

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show active steps while this is open."""
        out = self._console
        with watched_maps() as self._maps:
            if not out.is_terminal or out.is_dumb_terminal or out.no_color:
                yield
                return
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                ItemsBar(self._progress_of),
                ItemsText(self._progress_of),
                TimeElapsedColumn(),
                _Spent(self.so_far),
            )
            with Progress(*columns, console=out, transient=True) as self._live:
                yield

    @asynccontextmanager
    async def span(self, name: str, **attributes: object) -> AsyncIterator[str]:
        """Report a step's span; other spans pass silently."""
        span_id = str(uuid4())
        if not name.startswith(STEP_SPAN):
            yield span_id
            return
        step_id = name.removeprefix(STEP_SPAN)
        self._attempts[step_id] += 1
        attempt = self._attempts[step_id]
        label = printable(step_id if attempt == 1 else f"{step_id}, attempt {attempt}")
        started = time.perf_counter()
        outcome = "stopped"
        try:
            async with self._row(step_id, label) if self._live else self._lines(step_id, label):
                yield span_id
            outcome = "done"
        except Exception:
            outcome = "failed"
            raise
        finally:
            seconds = f"{time.perf_counter() - started:.1f} s"
            self._say(outcome, f"{label} ({seconds}){self._items_of(step_id)}{self.so_far()}")

    @asynccontextmanager
    async def _row(self, step_id: str, label: str) -> AsyncIterator[None]:
        """A live row for a step."""
        assert self._live is not None
        task = self._live.add_task(label, total=None, step_id=step_id)
        try:
            yield
        finally:
            self._live.remove_task(task)

    @asynccontextmanager
    async def _lines(self, step_id: str, label: str) -> AsyncIterator[None]:
        """A line for a step's start, and now and then one for its items."""
        self._say("start", label)
        telling = asyncio.create_task(self._tell_items(step_id, label), name="fastroai-progress")
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait({telling})

    async def _tell_items(self, step_id: str, label: str) -> None:
        lines = LinesOfMap(time.monotonic())
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            progress, now = self._progress_of(step_id), time.monotonic()
            if progress is not None and lines.is_due(progress, now):
                self._say("items", f"{label}: {items_in_words(progress, now)}{self.so_far()}")

    def _progress_of(self, step_id: str) -> MapProgress | None:
        found = (one for one in reversed(self._maps) if one.step_id == step_id)
        return next(found, None)

    def _items_of(self, step_id: str) -> str:
        progress = self._progress_of(step_id)
        return "" if progress is None else f": {progress.in_words()}"

    def so_far(self) -> str:
        """What the run has cost, to be put behind what is said; empty while that is nothing."""
        spent = self._spent()
        return f"  {exact(spent)} USD so far" if spent else ""

    def log_metric(self, trace_id: str, name: str, value: object) -> None:
        """Nothing: the cost table reports it at the end."""

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, object] | None = None
    ) -> None:
        """Nothing: the run's own error is reported once, at the end."""

    def _say(self, event: str, what: str) -> None:
        line = Text.assemble("  ", (f"{event:<7}", _COLOURS.get(event, "")), f" {what}")
        self._console.print(line, soft_wrap=True)
        self._console.file.flush()


class _Spent(ProgressColumn):
    max_refresh = 1.0  # entries are summed for it

    def __init__(self, spent: Callable[[], str]) -> None:
        super().__init__()
        self._spent = spent

    def render(self, task: Task) -> Text:
        return Text(self._spent())
