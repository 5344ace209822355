"""Progress of a run on a terminal."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TextIO
from uuid import uuid4

STEP_SPAN = "step."


class ProgressTracer:
    """Writes one line when a step starts and one when it ends, with how long it took."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._attempts: dict[str, int] = {}

    @asynccontextmanager
    async def span(self, name: str, **attributes: Any) -> AsyncIterator[str]:
        """Report a step's span; other spans pass silently."""
        span_id = str(uuid4())
        if not name.startswith(STEP_SPAN):
            yield span_id
            return
        step_id = name.removeprefix(STEP_SPAN)
        attempt = self._attempts[step_id] = self._attempts.get(step_id, 0) + 1
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._say(f"  start   {step_id}{again}")
        started = time.perf_counter()
        outcome = "stopped"
        try:
            yield span_id
            outcome = "done"
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._say(f"  {outcome:<7} {step_id}{again} ({time.perf_counter() - started:.1f} s)")

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """Nothing: the cost table says it at the end."""

    def log_error(
        self, trace_id: str, error: Exception, context: dict[str, Any] | None = None
    ) -> None:
        """Nothing: the run's own error is reported once, at the end."""

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
