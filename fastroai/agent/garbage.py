"""Has Python look for garbage less often while many agents are at work."""

from __future__ import annotations

import gc
from threading import RLock
from typing import Final

MANY: Final = 100
"""Runs of agents at once in this process, from which on it does."""
ALLOCATIONS: Final = 10_000
"""Objects made, beyond those let go, before Python looks again."""
_PYTHONS_OWN: Final = frozenset({(700, 10, 10), (2_000, 10, 10), (2_000, 10, 0)})
"""Thresholds that nobody has set: those of the versions of Python."""


class AgentsAtWork:
    """Counts runs of agents that are under way.

    What a run holds, a thousand objects and more, lives until it is answered. With Python's own
    thresholds the collector walks through all of it again and again while it comes together: at a
    thousand runs a third of the processor's time, for next to no garbage.
    """

    def __init__(self) -> None:
        self._number = 0
        # Taken again where the collector, called for within it, ends a run that nobody reads.
        self._lock = RLock()
        self._before: tuple[int, int, int] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._number += 1
            if self._number == MANY and gc.get_threshold() in _PYTHONS_OWN:
                self._before = gc.get_threshold()
                gc.set_threshold(ALLOCATIONS, *self._before[1:])

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._number -= 1
            if self._number or self._before is None:
                return
            before, self._before = self._before, None
            # else somebody else has set them meanwhile
            if gc.get_threshold() == (ALLOCATIONS, *before[1:]):
                gc.set_threshold(*before)


AT_WORK: Final = AgentsAtWork()
"""Of the process, as the collector is."""
