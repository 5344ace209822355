"""Rates by kind of token, call and request: what someone's own price may consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Final

from .max_cost import MaxCost
from .money import EXACT

Rate = float | Decimal
"""USD per million tokens, or per call."""

REQUIRED: Final = ("input_per_mtok", "output_per_mtok")

_INPUT_KINDS: Final = {
    "input_audio_per_mtok": "input_audio_tokens",
    "input_image_per_mtok": "input_image_tokens",
    "input_video_per_mtok": "input_video_tokens",
}
_OUTPUT_KINDS: Final = {
    "output_audio_per_mtok": "output_audio_tokens",
    "output_image_per_mtok": "output_image_tokens",
    "output_video_per_mtok": "output_video_tokens",
    "output_reasoning_per_mtok": "output_reasoning_tokens",
    "output_citation_per_mtok": "output_citation_tokens",
}
_CALLS: Final = {
    "per_web_search": "web_searches",
    "per_social_search": "social_searches",
    "per_file_search": "storage_searches",
    "per_code_execution": "code_executions",
}
_CACHE: Final = (
    "cache_read_per_mtok",
    "cache_write_per_mtok",
    "cache_write_1h_per_mtok",
    "cache_audio_read_per_mtok",
)
KINDS: Final = (*REQUIRED, *_CACHE, *_INPUT_KINDS, *_OUTPUT_KINDS, "per_request", *_CALLS)
"""The names of all rates. Those `per_mtok` are USD per million tokens, the others USD each."""

_CACHE_READ_SHARE: Final = Decimal("0.10")
_CACHE_WRITE_SHARE: Final = Decimal("1.25")


@dataclass(frozen=True, slots=True)
class Rates:
    """What each kind of token, call and request costs.

    Kinds that are not given cost what they are part of: audio and images as other tokens, cached
    audio as cached tokens, writes for an hour as those for five minutes; calls are free. Cached
    tokens cost 10 % of the input rate, tokens written to the cache 125 %.

    Attributes:
        given: By name, in USD.
        steps: What holds instead for all of a request with more input tokens than so many,
            ascending.
    """

    given: Mapping[str, Decimal]
    steps: tuple[tuple[int, Mapping[str, Decimal]], ...] = ()

    def of(self, input_tokens: int) -> Rates:
        """Those of a request with so many input tokens."""
        given = dict(self.given)
        for start, instead in self.steps:
            given |= instead if input_tokens > start else {}
        return Rates(given)

    def usd(self, usage: object) -> tuple[Decimal, Decimal]:
        """What usage costs, exact, and which part of it is for requests and calls."""
        if self.steps:
            return self.of(_count(usage, "input_tokens")).usd(usage)
        with localcontext(EXACT):
            tokens = self._of_input(usage) + self._of_output(usage)
            fees = self.given.get("per_request", Decimal(0))
            for rate in _CALLS.keys() & self.given.keys():
                if calls := _count(usage, _CALLS[rate]):
                    fees += self.given[rate] * Decimal(str(calls))
            return tokens / 1_000_000 + fees, fees

    def _of_input(self, usage: object) -> Decimal:
        # What has a rate of its own is taken off the whole before the rest is priced at the text's
        # rate: no token is paid twice, and counts that overlap can't make it negative.
        given = self.given
        read, written = _count(usage, "cache_read_tokens"), _count(usage, "cache_write_tokens")
        hour = min(_count(usage, "cache_write_1h_tokens"), written)
        full = _count(usage, "input_tokens") - read - written
        total = (written - hour) * self.cache_write
        total += hour * given.get("cache_write_1h_per_mtok", self.cache_write)
        if "cache_audio_read_per_mtok" in given:
            audio_read = min(_count(usage, "cache_audio_read_tokens"), read)
            read -= audio_read
            total += audio_read * given["cache_audio_read_per_mtok"]
        total += read * self.cache_read
        for rate, name in _INPUT_KINDS.items():
            if rate not in given:
                continue
            tokens = _count(usage, name)
            if name == "input_audio_tokens":
                tokens -= _count(usage, "cache_audio_read_tokens")  # these are paid already
            tokens = max(0, min(tokens, full))
            full -= tokens
            total += tokens * given[rate]
        return total + full * given["input_per_mtok"]

    def _of_output(self, usage: object) -> Decimal:
        total, plain = Decimal(0), _count(usage, "output_tokens")
        for rate, name in _OUTPUT_KINDS.items():
            if rate in self.given:
                tokens = min(_count(usage, name), plain)
                plain -= tokens
                total += tokens * self.given[rate]
        return total + plain * self.given["output_per_mtok"]

    @property
    def cache_read(self) -> Decimal:
        with localcontext(EXACT):
            share = self.given["input_per_mtok"] * _CACHE_READ_SHARE
        return self.given.get("cache_read_per_mtok", share)

    @property
    def cache_write(self) -> Decimal:
        with localcontext(EXACT):
            share = self.given["input_per_mtok"] * _CACHE_WRITE_SHARE
        return self.given.get("cache_write_per_mtok", share)

    @property
    def max_cost(self) -> MaxCost:
        """What a request for text can cost at most."""
        if self.steps:
            sizes = (-1, *(start for start, _ in self.steps))
            costs = [(size, self.of(size + 1).max_cost) for size in sizes]
            steps = tuple((size, *cost.steps[0][1:]) for size, cost in costs)
            return MaxCost(steps, max(cost.per_request for _, cost in costs))
        given = self.given
        into = max(
            given["input_per_mtok"],
            self.cache_read,
            self.cache_write,
            given.get("cache_write_1h_per_mtok", Decimal(0)),
        )
        out = max(
            given["output_per_mtok"],
            given.get("output_reasoning_per_mtok", Decimal(0)),
            given.get("output_citation_per_mtok", Decimal(0)),
        )
        return MaxCost(((-1, into, out),), given.get("per_request", Decimal(0)))


def _count(usage: object, name: str) -> int:
    return getattr(usage, name, None) or 0
