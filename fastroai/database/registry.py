"""What this process has open: each ledger once, closed at its exit."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Protocol, TypeVar, cast

T = TypeVar("T")


class ClosesAtExit(Protocol):
    """Something with a thread or a connection of its own."""

    def close_at_exit(self) -> None:
        """Finish within a few seconds, and close."""
        ...


class OpenLedgers:
    """The stores, heartbeats and in-memory databases of one process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inherited: list[object] = []
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._shared: dict[Hashable, object] = {}
        self._open: weakref.WeakSet[ClosesAtExit] = weakref.WeakSet()

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """The one thing of this key in this process, made when first asked for."""
        with self._lock:
            if self._pid != os.getpid():
                self._leave_the_parents()
            if key not in self._shared:
                self._shared[key] = make()
            return cast(T, self._shared[key])

    def all_shared(self, kind: type[T]) -> list[T]:
        """Everything of one class that is shared."""
        with self._lock:
            if self._pid != os.getpid():
                self._leave_the_parents()
            return [found for found in self._shared.values() if isinstance(found, kind)]

    def add(self, opened: ClosesAtExit) -> None:
        """Have something closed at the exit of this process, if it still exists then."""
        with self._lock:
            if self._pid != os.getpid():
                self._leave_the_parents()
            self._open.add(opened)

    def inherit(self, *parts: object) -> None:
        """Keep what a fork copied from the parent: to close it, or to let it be collected, would
        disturb the parent's connections.
        """
        self._inherited.extend(parts)

    def close(self) -> None:
        """Close all; called at exit."""
        if self._pid != os.getpid():
            self._leave_the_parents()
        for opened in list(self._open):
            with suppress(Exception):
                opened.close_at_exit()

    def _leave_the_parents(self) -> None:
        self.inherit(self._shared, list(self._open))
        self._start()


OPEN_LEDGERS = OpenLedgers()
"""Of the process, because threads and connections are: every event loop and every run shares them,
and only the interpreter knows when it ends.
"""
atexit.register(OPEN_LEDGERS.close)
