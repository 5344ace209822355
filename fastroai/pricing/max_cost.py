"""The most that a model request can cost, by the price list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import TYPE_CHECKING

from .model_names import ModelRef
from .money import EXACT
from .premiums import highest_factor
from .price_list import premium_name, tier_context, unlisted_tier, where_listed
from .rate_sheets import PER_THOUSAND

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

    _NamedRate = tuple[str, Decimal | TieredPrices]


@dataclass(frozen=True, slots=True)
class MaxCost:
    """What a request for text can cost at most, whichever tier, hour and kind of token it is billed
    by.

    Attributes:
        steps: `(more input tokens than this, USD per million input tokens, USD per million output
            tokens)`, ascending.
        per_request: USD.
    """

    steps: tuple[tuple[int, Decimal, Decimal], ...]
    per_request: Decimal = Decimal(0)

    def times(self, factor: Decimal, *, fees: bool = False) -> MaxCost:
        """With a premium on tokens, and on fees where that is said."""
        if factor == 1:
            return self
        with localcontext(EXACT):
            steps = tuple((start, into * factor, out * factor) for start, into, out in self.steps)
            per_request = self.per_request * factor if fees else self.per_request
        return MaxCost(steps, per_request)

    def usd(self, input_tokens: int, output_tokens: int) -> Decimal:
        """USD for at most so many tokens, exact."""
        into = out = Decimal(0)
        for more_than, input_rate, output_rate in self.steps:
            if input_tokens > more_than:
                into, out = max(into, input_rate), max(out, output_rate)
        with localcontext(EXACT):
            return self.per_request + (input_tokens * into + output_tokens * out) / 1_000_000


# Models that search unasked: what they find is billed as input, and the search as such too.
_SEARCHES = re.compile(r"search|sonar|compound")


def list_max_cost(
    refs: Iterable[ModelRef],
    *,
    url: str | None = None,
    at: datetime | None = None,
    tier: str | None = None,
) -> MaxCost | None:
    """What the price list says a request for text can cost at most, over all tiers, hours and cache
    classes.

    Args:
        refs: As in `list_price`.
        url: As in `list_price`.
        at: When it is sent, timezone-aware. None: now.
        tier: The service tier that is asked for; another one may be given.

    Returns:
        None: no price is listed, or the model bills for what can't be foreseen: seconds, or
            searches of its own.
    """
    tags = tier_context(tier)
    listed = _first_listed(refs, url)
    if listed is None:
        return None
    ref, provider, model = listed
    if _SEARCHES.search(f"{model.id} {ref.model}"):
        return None
    factor = highest_factor(provider.id, premium_name(provider, model, ref), url)
    if factor is None or unlisted_tier(provider, model, tags):
        return None
    day = (at or datetime.now(UTC)).astimezone(UTC).date()
    found = _max_cost_on(_ById(model), day, "speed" in tags)
    return found and found.times(factor)


def _first_listed(
    refs: Iterable[ModelRef], url: str | None
) -> tuple[ModelRef, Provider, ModelInfo] | None:
    from genai_prices.data_snapshot import get_snapshot

    for ref in refs:
        with suppress(LookupError):
            where = where_listed(ref, url)
            place = where.get("provider_id"), where.get("provider_api_url")
            return ref, *get_snapshot().find_provider_model(ref.model, None, *place)
    return None


class _ById:
    """A listed model as a key: the list keeps one object of each, and updates replace it."""

    def __init__(self, model: ModelInfo) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.model is other.model


@lru_cache(maxsize=256)
def _max_cost_on(key: _ById, day: date, fast: bool) -> MaxCost | None:
    rates = list(_rates_that_may_apply(key.model, day, fast))
    if not all(name.endswith(("_mtok", PER_THOUSAND)) for name, _ in rates):
        return None
    # Those of tools are left out, which requests for text alone don't use.
    fees = _steps_of_kind(_FEE, rates)
    into, out = _steps_of_kind(_INPUT_TEXT, rates), _steps_of_kind(_OUTPUT, rates)
    starts = sorted({_FROM_THE_FIRST, *dict([*into, *out])})
    steps = tuple((start, _highest(into, start), _highest(out, start)) for start in starts)
    return MaxCost(steps, _highest(fees, _FROM_THE_FIRST) / 1000)


_FEE = re.compile("requests_kcount$")
_OUTPUT = re.compile("output_.*mtok$")
_INPUT_TEXT = re.compile("(?!output_|.*(?:audio|image|video)).*_mtok$")
_FROM_THE_FIRST = -1
# From more than how many input tokens on, and what holds from there.
_Step = tuple[int, Decimal]


def _steps_of_kind(kind: re.Pattern[str], rates: Iterable[_NamedRate]) -> list[_Step]:
    steps: list[_Step] = []
    for name, rate in rates:
        if not kind.match(name):
            continue
        if isinstance(rate, Decimal):
            steps.append((_FROM_THE_FIRST, rate))
        else:
            steps.append((_FROM_THE_FIRST, rate.base))
            steps += [(tier.start, tier.price) for tier in rate.tiers]
    return steps


def _highest(steps: Iterable[_Step], start: int) -> Decimal:
    """The highest rate of requests with more input tokens than a step's start.

    Whichever step a provider bills by, none is skipped: a later one may be the cheaper one.
    """
    return max([Decimal(0), *(rate for begins, rate in steps if begins <= start)])


def _rates_that_may_apply(model: ModelInfo, day: date, fast: bool) -> Iterator[_NamedRate]:
    for prices in _prices_that_may_apply(model, day, fast):
        for name, rate in vars(prices).items():
            if rate is not None:
                yield name, rate


def _prices_that_may_apply(model: ModelInfo, day: date, fast: bool) -> Iterator[ModelPrice]:
    """Those of all hours, of this date and its neighbours (a provider's day may be another one),
    and of all tiers.
    """

    before, after = day - timedelta(days=1), day + timedelta(days=1)
    yield from _standard_prices(model, before, after)
    for variant in model.price_variants or ():
        may_apply = fast or "speed" not in variant.when
        if may_apply and _starts_by(variant.constraint, after):
            yield variant.prices


def _standard_prices(model: ModelInfo, before: date, after: date) -> Iterator[ModelPrice]:
    if not isinstance(model.prices, list):
        yield model.prices
        return
    yield model.prices[0].prices  # what counts where no condition is met
    for conditional in reversed(model.prices):
        constraint = conditional.constraint
        if _starts_by(constraint, after):
            yield conditional.prices
        # The latest dated price that was in force before ends what may apply; those of an hour
        # come round every day.
        is_dated = constraint is None or hasattr(constraint, "start_date")
        if is_dated and _starts_by(constraint, before):
            return


def _starts_by(constraint: object, day: date) -> bool:
    """Whether a dated price is in force; those of an hour come round every day."""
    start = getattr(constraint, "start_date", None)
    return start is None or day >= start
