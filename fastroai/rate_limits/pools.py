"""How much of a limit is used: the arithmetic, without a clock, a database or a thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..provider_limits import ProviderLimit

MINUTE = 60.0
"""Seconds in which a provider counts; a test counts in fewer."""
SHARE: Final = 0.95
"""Of a limit that is used: between clocks and over a network, a minute is not quite a minute."""
BURST: Final = 1 / 40
"""Of a minute, whose share may go at once. With `SHARE`, no minute has more than the limit; and
what providers enforce by the second, as OpenAI says it does, is not passed by far.
"""
LONGEST_DEBT: Final = 5.0
"""Minutes that may be owed: a clock that was set back must not stop everything."""


class Amounts(NamedTuple):
    """What requests count for, by each thing that is limited."""

    requests: float
    tokens: float
    input_tokens: float
    output_tokens: float

    @classmethod
    def of(cls, input_tokens: float, output_tokens: float, *, requests: float = 1) -> Amounts:
        """Of one request, or of none."""
        return cls(requests, input_tokens + output_tokens, input_tokens, output_tokens)

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(*(mine - its for mine, its in zip(self, other, strict=True)))


NOTHING: Final = Amounts(0, 0, 0, 0)
Paces = tuple[float | None, ...]
"""Seconds for each request or token, in the order of `Amounts`; None: it is not limited."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pool of requests may use.

    Attributes:
        burst: Seconds whose share may go at once after a pause.
        concurrency: Requests under way at once; None: not limited.
    """

    paces: Paces = (None, None, None, None)
    burst: float = 0.0
    concurrency: int | None = None

    @classmethod
    def of(cls, limit: ProviderLimit, *, burst: float = BURST) -> Terms:
        """Those of a limit.

        Args:
            burst: Of a minute.
        """
        per_minute = (
            limit.requests_per_minute,
            limit.tokens_per_minute,
            limit.input_tokens_per_minute,
            limit.output_tokens_per_minute,
        )
        return cls(paces_of(per_minute), burst * MINUTE, limit.concurrency)


def paces_of(per_minute: Iterable[float | None]) -> Paces:
    """Seconds for each one, of how many a minute has."""
    return tuple(MINUTE / (SHARE * many) if many else None for many in per_minute)


@dataclass(slots=True)
class PoolState:
    """What is known of a pool by all who share it; times are seconds by the clock they share.

    A request may go as soon as nothing is owed of those before it, however many tokens it has
    itself: so none starves behind smaller ones. What it has is owed then, for as long as the
    limit takes to allow it.

    Attributes:
        free_at: When nothing is owed any more, in the order of `Amounts`.
        blocked_until: Until when the provider has asked to send nothing.
    """

    free_at: list[float] = field(default_factory=lambda: [0.0] * len(NOTHING))
    blocked_until: float = 0.0

    def start(self, terms: Terms, now: float, ahead: Amounts = NOTHING) -> float:
        """When the next request may go; in the past: at once.

        Args:
            ahead: Of others, who may go before it.
        """
        latest = now + LONGEST_DEBT * MINUTE
        start = self.blocked_until if self.blocked_until <= latest else now
        for pace, free_at, others in zip(terms.paces, self.free_at, ahead, strict=True):
            if pace is not None and free_at <= latest:
                start = max(start, free_at + others * pace)
        return start

    def take(self, terms: Terms, amounts: Amounts, now: float) -> None:
        """A request goes as soon as it may."""
        latest = now + LONGEST_DEBT * MINUTE
        for index, (pace, amount) in enumerate(zip(terms.paces, amounts, strict=True)):
            if pace is not None:
                free_at = self.free_at[index] if self.free_at[index] <= latest else now
                self.free_at[index] = max(free_at, now - terms.burst) + amount * pace

    def add(self, terms: Terms, amounts: Amounts) -> None:
        """So much more was used, or less, than was taken."""
        for index, pace in enumerate(terms.paces):
            if pace is not None:
                self.free_at[index] += amounts[index] * pace

    def hear(self, terms: Terms, remaining: Paces, amounts: Amounts, now: float) -> None:
        """The provider says how much remains, as of now; others may use it, too.

        Args:
            amounts: What a request counts for: less than one may remain.
        """
        for index, (pace, left) in enumerate(zip(terms.paces, remaining, strict=True)):
            if pace is not None and left is not None:
                free_at = now - (left - amounts[index]) * pace
                self.free_at[index] = max(self.free_at[index], free_at)
