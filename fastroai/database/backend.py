"""What each kind of database is spoken to by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import URL, Connection

from .statements import Statements

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds to wait for a database that is locked or slow, before it counts as unreachable."""
CONNECT_PATIENCE = 5.0
"""Seconds to wait for a connection."""


class Backend(Protocol):
    """How one kind of database is spoken to, by one thread at a time."""

    def __init__(self, url: URL, *, writes: bool, keeps: bool) -> None: ...
    def run(self, work: Callable[[Connection], T]) -> T: ...
    def transact(self, work: Callable[[Statements], T]) -> T: ...
    def has_ledger(self) -> bool: ...
    def close(self) -> None: ...
