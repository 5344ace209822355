"""Tokens of one request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter


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


def summed(counts: Iterable[TokenCounts]) -> dict[str, int]:
    """The sums of several requests, by field."""
    names = TokenCounts.__dataclass_fields__
    sums = map(sum, zip(*map(attrgetter(*names), counts), strict=True))
    return dict.fromkeys(names, 0) | dict(zip(names, sums, strict=False))
