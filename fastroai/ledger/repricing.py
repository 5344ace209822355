"""Costs of recorded usage on another model, or at another service tier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from ..errors import UnknownModelPriceError
from ..pricing.calculator import CostCalculator, refuse_naive
from ..pricing.money import EXACT
from ..pricing.price_list import tier_context
from .entries import EntryState, LedgerEntry


@dataclass(frozen=True, slots=True)
class Repriced:
    """One request at another price.

    Attributes:
        usd: Exact. None: no price is known, or none can be worked out.
        reason: Where the price comes from, or why there is none.
    """

    entry: LedgerEntry
    usd: Decimal | None
    reason: str
    version: str | None = None
    """Of the data set that the price is from, if it is from one."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Recorded requests beside what they would have cost.

    Attributes:
        model: The other model; None: the recorded ones, at another tier.
        requests: Those that count as spend, in the order they were given.
    """

    model: str | None
    service_tier: str | None
    requests: tuple[Repriced, ...]

    @property
    def compared(self) -> tuple[Repriced, ...]:
        """The requests whose cost is known both ways."""
        return tuple(r for r in self.requests if r.usd is not None and r.entry.cost_usd is not None)

    @property
    def left_out(self) -> tuple[Repriced, ...]:
        """The requests that can't be compared: their tokens, their recorded cost or the other price
        is unknown.
        """
        return tuple(r for r in self.requests if r.usd is None or r.entry.cost_usd is None)

    @property
    def recorded_usd(self) -> Decimal:
        """What the compared requests did cost, exact."""
        with localcontext(EXACT):
            return sum((r.entry.cost_usd or Decimal(0) for r in self.compared), Decimal(0))

    @property
    def usd(self) -> Decimal:
        """What they would have cost, exact."""
        with localcontext(EXACT):
            return sum((r.usd or Decimal(0) for r in self.compared), Decimal(0))


def what_if(
    entries: Iterable[LedgerEntry],
    model: str | None = None,
    *,
    service_tier: str | None = None,
    at: datetime | None = None,
    calculator: CostCalculator | None = None,
) -> WhatIf:
    """Price recorded usage otherwise, request by request.

    The tokens are taken as recorded; another model would count and write other ones.

    Args:
        entries: From a ledger. Refused and replayed ones are left aside: they cost nothing.
        model: `provider:model`. None: the model that answered.
        service_tier: For example `flex`, `priority`, `default` or `batch`. None: that of each
            request.
        at: As of which time to price them, timezone-aware: today's tiers may not have been listed
            then. None: as of the time each was sent.
        calculator: Prices; by default the list prices.

    Raises:
        ValueError: Neither a model nor a tier is given, or `at` is naive.
    """
    refuse_naive(at, "The time to price at")
    if model is None and service_tier is None:
        raise ValueError(
            "What should be different? Give a model, as provider:model, or a service tier."
        )
    prices = calculator or CostCalculator()
    requests = tuple(
        reprice(entry, model, service_tier, at or entry.sent_at, prices)
        for entry in entries
        if entry.is_spend
    )
    return WhatIf(model, service_tier, requests)


@dataclass(frozen=True, slots=True)
class PriceCheck:
    """Recorded prices beside those of the price list that is installed.

    Attributes:
        current: Requests whose price is from that list already.
        own: Requests priced by an own rate or a stated bill; no list says otherwise.
        same: Priced from an earlier list, and no different by this one.
        differing: At another price by this list, or unpriced until now.
        unknown: This list has no price for them any more, or still none.
    """

    current: int
    own: int
    same: int
    differing: tuple[Repriced, ...]
    unknown: tuple[Repriced, ...]


def check_prices(
    entries: Iterable[LedgerEntry], *, calculator: CostCalculator | None = None
) -> PriceCheck:
    """Price recorded requests by the installed price list, as of when each was sent.

    Args:
        entries: From a ledger. Those without an outcome, refused and replayed ones are left aside.
        calculator: Prices; by default the list prices.
    """
    prices = calculator or CostCalculator()
    current = own = same = 0
    differing, unknown = list[Repriced](), list[Repriced]()
    for entry in filter(is_answered, entries):
        if entry.cost_usd is not None and entry.price_version is None:
            own += 1
            continue
        found = reprice(entry, None, None, entry.sent_at, prices)
        if found.usd is None:
            unknown.append(found)
        elif (entry.price_version, entry.price_source) == (found.version, found.reason):
            current += 1
        elif found.usd == entry.cost_usd:
            same += 1
        else:
            differing.append(found)
    return PriceCheck(current, own, same, tuple(differing), tuple(unknown))


def is_answered(entry: LedgerEntry) -> bool:
    """Whether it is known what an entry's request was answered, and so what it costs."""
    return entry.is_spend and entry.state is not EntryState.UNSETTLED


def reprice(
    entry: LedgerEntry, model: str | None, tier: str | None, at: datetime, prices: CostCalculator
) -> Repriced:
    if (reason := why_unpriceable(entry)) is not None:
        return Repriced(entry, None, reason)
    provider = url = None
    if not model:
        # Another model is priced where its own name says, not where this one was answered.
        provider = entry.answering_provider
        url = entry.provider_host and f"https://{entry.provider_host}"
    try:
        price = prices.price(
            # It has the counters of a RequestUsage that prices look at.
            _Usage(entry),  # type: ignore[arg-type]
            model or entry.answering_model or "",
            provider=provider,
            provider_url=url,
            at=at,
            context=tier_context(tier or entry.service_tier),
        )
    except (UnknownModelPriceError, ValueError) as error:
        return Repriced(entry, None, getattr(error, "reason", str(error)))
    return Repriced(entry, price.total, price.source, price.version)


def why_unpriceable(entry: LedgerEntry) -> str | None:
    """Why an entry can have no price of its own, whatever the model; None: it can."""
    if not (entry.tokens.input_tokens or entry.tokens.output_tokens):
        return "Its tokens are not known."
    if entry.request_count != 1:
        return f"It is a sum of {entry.request_count} requests; prices are per request."
    return None


class _Usage:
    """An entry's counters under the names by which they are priced; what was not counted is not
    there.
    """

    def __init__(self, entry: LedgerEntry) -> None:
        self._further = entry.further_usage
        self._tokens = entry.tokens

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._further:
            return self._further[name]
        return getattr(self._tokens, name)
