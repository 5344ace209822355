"""Collector: whoever is around what begins somewhere in a context sees it, and is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")


class Collector(Generic[T]):
    """What begins in a context, for who is around that.

    Ambient, because who looks at a run does not start what is in it.

    Args:
        name: Of the context variable, for who looks at one.
    """

    def __init__(self, name: str) -> None:
        self._collected: ContextVar[list[T] | None] = ContextVar(name, default=None)

    @contextmanager
    def collected(self) -> Iterator[list[T]]:
        """All that begins in this context while this is open, in that order."""
        found: list[T] = []
        token = self._collected.set(found)
        try:
            yield found
        finally:
            self._collected.reset(token)

    def add(self, one: T) -> None:
        """Show what begins to whoever collects here."""
        found = self._collected.get()
        if found is not None:
            found.append(one)
