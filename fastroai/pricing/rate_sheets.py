"""What a request costs at listed rates, in a tenth of the time that genai-prices takes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from .money import EXACT

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

Counts = Mapping[str, float]
"""What was used, under genai-prices' names."""

PER_THOUSAND: Final = "_kcount"
BILLED_TOOLS: Final = ("web_searches", "social_searches", "storage_searches", "code_executions")

# Gemini models with one price for input of any kind (ai.google.dev, pricing); the others have one
# for audio.
_ONE_INPUT_RATE = re.compile(r"gemini-(?:pro|1|2\.0-flash-lite|[\d.]+-pro|3\.[5-9]|[4-9])")
# Models whose output is audio or images, at the rate that the list has for output.
_ONE_OUTPUT_RATE = re.compile(r"tts|gpt-image|chatgpt-image")
# Kinds of tokens that are not billed at the rate of text: their rates in the list, and which models
# bill them as text all the same.
_RATES = {
    "input_audio_tokens": ("input_audio_mtok", _ONE_INPUT_RATE.match),
    "output_audio_tokens": ("output_audio_mtok", _ONE_OUTPUT_RATE.search),
    "output_image_tokens": ("output_image_mtok", _ONE_OUTPUT_RATE.search),
    "output_video_tokens": ("output_video_mtok", _ONE_OUTPUT_RATE.search),
}

_Kind = tuple[int, ...]
"""The side of the tiers on which a request is, and for each rate whether something is billed by
it.
"""


class _Unit(NamedTuple):
    """What a rate is for: the name of its count, of how many it is the price, and what it is a
    kind of.
    """

    name: str
    per: int
    dimensions: frozenset[tuple[str, str]]


class RateSheet:
    """The rates of one listed model.

    How counts are split among them is genai-prices' matter. So an amount that is computed here
    counts only once a request of the same kind came to the same amount there.

    Args:
        provider: Its id in the list.
        model: Its id in the list.
        rates: What holds for a request.
    """

    def __init__(self, provider: str, model: str, rates: ModelPrice) -> None:
        self.rates = rates
        self._listed = {name: rate for name, rate in vars(rates).items() if rate is not None}
        self._fees = [
            (name.removesuffix(PER_THOUSAND), rate)
            for name, rate in self._listed.items()
            if name.endswith(PER_THOUSAND)
        ]
        # Perplexity's searches are in the price of a request.
        tools = () if provider == "perplexity" else BILLED_TOOLS
        unlisted = [name for name in tools if name + PER_THOUSAND not in self._listed]
        unlisted += [
            name
            for name, (rate, takes_text_rate) in _RATES.items()
            if rate not in self._listed and not takes_text_rate(model)
        ]
        self._unlisted = tuple(unlisted)
        self._confirmed: set[_Kind] = set()
        self._parts: list[tuple[str, list[int]]] = []
        """By count, the places of those that are kinds of it, which come before it."""
        self._starts: list[int] = []
        """More than so many input tokens begin a tier."""
        self._prices: list[tuple[int, int, list[Decimal]]] = []
        """The place of a count, of how many there is a price, and that price by tier."""
        if _units().keys() >= self._listed.keys():
            self._lay_out([(_units()[name], rate) for name, rate in self._listed.items()])

    def _lay_out(self, priced: list[tuple[_Unit, Decimal | TieredPrices]]) -> None:
        if any("seconds" in unit.name for unit, _ in priced):
            return  # some are billed for a least time
        units = sorted((unit for unit, _ in priced), key=lambda unit: -len(unit.dimensions))
        for place, unit in enumerate(units):
            kinds = [n for n in range(place) if unit.dimensions < units[n].dimensions]
            self._parts.append((unit.name, kinds))
        tiered = [rate for _, rate in priced if not isinstance(rate, Decimal)]
        self._starts = sorted({tier.start for rate in tiered for tier in rate.tiers})
        self._prices = [
            (units.index(unit), unit.per, list(_by_tier(rate, self._starts)))
            for unit, rate in priced
        ]

    def amount(self, counts: Counts) -> tuple[_Kind, Decimal] | None:
        """What a request comes to, in USD, exact, and its kind.

        Returns:
            None: it is to be asked of genai-prices, which may refuse it.
        """
        used = counts.values()
        if not self._prices or {*map(type, used)} != {int} or min(used) < 0:
            return None
        left: list[int] = []
        try:
            for name, kinds in self._parts:
                count = 1 if name == "requests" else int(counts[name])
                left.append(count - sum([left[place] for place in kinds]) if kinds else count)
            tier = bisect_left(self._starts, counts["input_tokens"]) if self._starts else 0
        except KeyError:
            return None
        if min(left) < 0:
            return None
        total = Decimal(0)
        for place, per, prices in self._prices:
            total = EXACT.add(total, EXACT.divide(EXACT.multiply(prices[tier], left[place]), per))
        return (tier, *map(bool, left)), total

    def is_confirmed(self, kind: _Kind) -> bool:
        """Whether amounts of requests of a kind are known to be right."""
        return kind in self._confirmed

    def confirm(self, kind: _Kind) -> None:
        """A request of a kind came to the same amount by genai-prices."""
        self._confirmed.add(kind)

    def fees(self, used: Counts) -> Decimal:
        """USD for the request as such, and for the tools that it used."""
        fees = Decimal(0)
        for name, price in self._fees:
            count = 1 if name == "requests" else used.get(name, 0)
            fees += price * Decimal(str(count)) / 1000
        return fees

    def missing(self, used: Counts) -> str | None:
        """What the list does not have of what was used and is billed at a rate of its own: a
        provider's own tool, or a kind of token.
        """
        if (name := next(filter(used.get, self._unlisted), None)) is None:
            return None
        return f"the price list does not have what its {name.replace('_', ' ')} cost"


@cache
def _units() -> dict[str, _Unit]:
    """What can be priced, by the name of its rate."""
    from genai_prices.data_units import unit_data

    return {
        unit.get("price_key", name): _Unit(
            name, unit["per"], frozenset(unit.get("dimensions", {}).items())
        )
        for name, unit in unit_data.items()
    }


def _by_tier(rate: Decimal | TieredPrices, starts: list[int]) -> Iterator[Decimal]:
    """What a rate is below the first start, and beyond each."""
    if isinstance(rate, Decimal):
        yield from [rate] * (len(starts) + 1)
        return
    prices = {tier.start: tier.price for tier in rate.tiers}
    price = rate.base
    yield price
    for start in starts:
        price = prices.get(start, price)
        yield price
