"""What must be known of pools to share them, and pools that one process has by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .pools import PoolState

T = TypeVar("T")

Holders = Mapping[str, Sequence["Holder"]]
"""By pool, the processes that have requests under way in it, or waiting."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One process in one pool.

    Attributes:
        beat: Another number after each heartbeat.
        asked_at: When it last was here, by the clock that all share.
        slots: Its requests under way, where their number is limited.
        waiting: Its requests that wait.
        runs: How many runs those are of.
        served: How much it was given for each of its runs: who has less comes first.
    """

    token: str
    beat: int = 0
    asked_at: float = 0.0
    slots: int = 0
    waiting: int = 0
    runs: int = 0
    served: float = 0.0


class Pools(Protocol):
    """The pools within one transaction."""

    def read(self, names: Sequence[str]) -> tuple[float, dict[str, PoolState], Holders]:
        """The time in seconds, the pools and who is in them; nobody else changes them until the
        transaction ends.
        """
        ...

    def write(self, states: Mapping[str, PoolState]) -> None: ...
    def hold(self, pool: str, holder: Holder) -> None: ...
    def leave(self, pool: str, token: str) -> None: ...


class SharedPools(Protocol):
    """Where pools are kept."""

    def transact(self, work: Callable[[Pools], T]) -> T: ...
    def close(self) -> None: ...


class OwnPools:
    """Pools of this process only; used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, PoolState] = {}

    def transact(self, work: Callable[[Pools], T]) -> T:
        return work(self)

    def close(self) -> None: ...

    def read(self, names: Sequence[str]) -> tuple[float, dict[str, PoolState], Holders]:
        return self._clock(), {name: self._states.get(name) or PoolState() for name in names}, {}

    def write(self, states: Mapping[str, PoolState]) -> None:
        self._states |= states

    def hold(self, pool: str, holder: Holder) -> None: ...
    def leave(self, pool: str, token: str) -> None: ...
