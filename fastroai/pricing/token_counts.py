"""Tokens of one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one request.

    `input_tokens` includes cached and audio ones, `output_tokens` includes audio ones.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_audio_read_tokens: int = 0


TOKEN_COUNTERS: Final = tuple(TokenCounts.__dataclass_fields__)
_counts_of: Callable[[TokenCounts], tuple[int, ...]] = attrgetter(*TOKEN_COUNTERS)


def summed(counts: Iterable[TokenCounts]) -> dict[str, int]:
    """The sums of several requests, by field."""
    each = list(map(_counts_of, counts))
    # nearly always there is one
    sums = each[0] if len(each) == 1 else [sum(kind) for kind in zip(*each, strict=True)]
    return dict(zip(TOKEN_COUNTERS, sums or [0] * len(TOKEN_COUNTERS), strict=True))
