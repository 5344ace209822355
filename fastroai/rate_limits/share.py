"""What this process may take of a pool while it decides, beside what others are owed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .answer_headers import Told
from .pools import NOTHING, Amounts, PoolState, Terms
from .shared_pools import Holder
from .turns import Turn

MOST_OWED: Final = 10.0
"""Requests for each of its runs by which a process may be ahead when another begins to wait."""
FRESH: Final = 1.0
"""Seconds after which who waits is believed to do so no longer, unless it says so again."""


@dataclass(slots=True)
class Own:
    """What this process has of a pool.

    Attributes:
        slots: Requests under way.
        served: How much it was given for each of its runs.
        spare: What answers have used less than was expected of them.
        row: What others know of it; None: nothing.
    """

    slots: int = 0
    served: float = 0.0
    spare: Amounts = NOTHING
    row: Holder | None = None

    def net(self, more: Amounts) -> Amounts:
        """What is to be counted of what answers have used more than was expected, or less.

        It is made up for by what others have used less, but that speeds up nothing by itself: it
        would come late, and be in a minute that has its own.
        """
        owed = [one - spare for one, spare in zip(more, self.spare, strict=True)]
        self.spare = Amounts(*(max(-one, 0.0) for one in owed))
        return Amounts(*(max(one, 0.0) for one in owed))


class Share:
    """One process in one pool, within one transaction.

    Between processes, who was given less for each of its runs comes first: as much as it waits
    for, and is behind, is left in the pool for it.

    Args:
        others: Who is in the pool besides.
        now: By the clock that all share.

    Attributes:
        waiting: How many of its requests wait.
        runs: Of how many runs.
    """

    def __init__(
        self, terms: Terms, state: PoolState, own: Own, others: Iterable[Holder], now: float
    ) -> None:
        self.terms = terms
        self.state = state
        self.own = own
        self.waiting = self.runs = 0
        self._now = now
        self._others = list(others)
        self._rivals = [
            other for other in self._others if other.waiting and abs(now - other.asked_at) < FRESH
        ]

    def join(self) -> None:
        """Begin to wait beside the others: neither before all of them nor long after."""
        if self._rivals:
            least = min(rival.served for rival in self._rivals)
            self.own.served = min(max(self.own.served, least), least + MOST_OWED)

    def start(self, turn: Turn) -> float:
        """When a request may go; infinite: not before another one ends."""
        owed = self._owed()
        if self.terms.concurrency is not None and not turn.is_nested:
            used = self.own.slots + sum(other.slots for other in self._others) + owed
            if used + 1 > self.terms.concurrency:
                return float("inf")
        ahead = Amounts(*(owed * amount for amount in turn.amounts))
        return self.state.start(self.terms, self._now, ahead)

    def take(self, turn: Turn) -> None:
        """It goes."""
        self.state.take(self.terms, turn.amounts, self._now)
        self.own.slots += not turn.is_nested
        self.own.served += 1 / max(self.runs, 1)

    def give_back(self, turn: Turn, used: Amounts) -> None:
        """It is no longer under way, and counts for something else."""
        more = used - turn.amounts
        # What was not sent was taken a moment ago.
        self.state.add(self.terms, more if used == NOTHING else self.own.net(more))
        self.own.slots -= not turn.is_nested

    def hear(self, told: Told, amounts: Amounts) -> None:
        """The provider says what is left."""
        self.state.hear(self.terms, told.remaining, amounts, self._now)
        if told.retry_after is not None:
            until = self._now + told.retry_after
            self.state.blocked_until = max(self.state.blocked_until, until)

    def row(self, token: str, beat: int) -> Holder | None:
        """What others are to know of it; None: nothing."""
        slots = self.own.slots if self.terms.concurrency is not None else 0
        if not slots and not self.waiting:
            return None
        return Holder(token, beat, self._now, slots, self.waiting, self.runs, self.own.served)

    def _owed(self) -> float:
        """How many requests of others come first."""
        return sum(
            min(rival.waiting, (self.own.served - rival.served) * rival.runs)
            for rival in self._rivals
            if rival.served < self.own.served
        )
