"""Progress of a run: live on a terminal, one line for each start and end elsewhere."""

from __future__ import annotations

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

from .console import printable
from .tables import exact

STEP_SPAN = "step."
_COLOURS = {"done": "green", "failed": "red", "stopped": "yellow"}


class ProgressTracer:
    """Writes a line when a step ends, with how long it took and what the run cost so far, and when
    it starts.

    On a terminal that shows colours, active steps are shown live instead of their starts.

    Args:
        spent: USD that the run has cost so far.
    """

    def __init__(self, console: Console, spent: Callable[[], Decimal] = Decimal) -> None:
        self._console = console
        self._spent = spent
        self._attempts: Counter[str] = Counter()
        self._live: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show active steps while this is open."""
        out = self._console
        if not out.is_terminal or out.is_dumb_terminal or out.no_color:
            yield
            return
        described = TextColumn("{task.description}")
        columns = (SpinnerColumn(), described, TimeElapsedColumn(), _Spent(self.so_far))
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
        task = None
        if self._live is None:
            self._say("start", label)
        else:
            task = self._live.add_task(label, total=None)
        started = time.perf_counter()
        outcome = "stopped"
        try:
            yield span_id
            outcome = "done"
        except Exception:
            outcome = "failed"
            raise
        finally:
            if self._live is not None and task is not None:
                self._live.remove_task(task)
            seconds = f"{time.perf_counter() - started:.1f} s"
            self._say(outcome, f"{label} ({seconds}){self.so_far()}")

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
