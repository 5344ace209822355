"""Custom rates, which take precedence over the price list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from typing import Any, Protocol

from ..providers import PROVIDERS
from .max_cost import MaxCost
from .model_names import read_model_name, spellings
from .price_list import Price
from .rates import KINDS, REQUIRED, Rate, Rates

_KNOWN_OR_NONE = {None, *PROVIDERS}
RateTable = Mapping[str, object]
"""Rates by name, and optionally `tiers`, `batch` and `valid_from`."""


class Tokens(Protocol):
    """What overrides price; both `RequestUsage` and `TokenCounts` have it."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_read_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Override:
    """Someone's own rates for a model, under the name they gave it.

    Attributes:
        tiers: By service tier, `batch` and `fast-mode` among them; any other one costs `rates`.
        valid_from: From when on they hold. None: always.
        origin: Where they are from, for the source of a price; empty for those given in code.
    """

    name: str
    rates: Rates
    tiers: Mapping[str, Rates] = field(default_factory=dict)
    valid_from: date | None = None
    origin: str = ""

    @classmethod
    def parse(cls, name: str, table: RateTable, *, origin: str = "") -> Override:
        """Read the rates of a model.

        Raises:
            ValueError: A rate is missing, negative, not a finite number, or of an unknown kind.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"A pricing override must name a model, got {name!r}.")
        what = f"Pricing override for {name!r}"
        problem = f"{what} must map rates to USD per million tokens, got {table!r}."
        rates = dict(read_table(table, problem))
        valid_from = read_date(rates.pop("valid_from", None), what)
        tiers = take_tiers(rates, what)
        base = read_rates(name, rates)
        if missing := sorted(set(REQUIRED) - base.given.keys()):
            raise ValueError(f"{what} lacks {', '.join(missing)} (USD per million tokens).")
        by_tier = {
            str(tier): _beside(base, read_rates(f"{name}, {tier}", own))
            for tier, own in tiers.items()
        }
        return cls(name, base, by_tier, valid_from, origin)

    def price(self, tokens: Tokens, context: Mapping[str, object] | None = None) -> Price:
        """What usage costs; a tier that the context names and that has rates counts."""
        tier = tier_of(context or {})
        total, fees = self.tiers.get(tier, self.rates).usd(tokens)
        source = f"override {self.name!r}"
        if tier in self.tiers:
            source = f"{source}, {tier}"
        if self.origin:
            source = f"{source} of {self.origin}"
        return Price(total=total, source=source, request_fees=fees)

    @property
    def max_cost(self) -> MaxCost:
        """What a request for text can cost at most, at whichever tier."""
        costs = [rates.max_cost for rates in (self.rates, *self.tiers.values())]
        steps = sorted(chain.from_iterable(cost.steps for cost in costs))
        return MaxCost(tuple(steps), max(cost.per_request for cost in costs))


def _beside(base: Rates, own: Rates) -> Rates:
    """The rates of a tier: its own, else the model's; a plain rate of its own holds at each size of
    request.
    """
    kept = (
        (start, {name: usd for name, usd in instead.items() if name not in own.given})
        for start, instead in base.steps
    )
    return Rates({**base.given, **own.given}, tuple(sorted((*kept, *own.steps), key=itemgetter(0))))


def tier_of(context: Mapping[str, object]) -> str:
    """The tier that a request's context names; empty: none."""
    if context.get("processing") == "batch":
        return "batch"
    if context.get("speed") == "fast":
        return "fast-mode"
    tier = context.get("service_tier")
    return tier if isinstance(tier, str) else ""


def take_tiers(rates: dict[str, object], what: str) -> dict[str, object]:
    """Take the rates of tiers out of a table; `batch` is one of them, which may stand by itself."""
    problem = f"{what}: tiers must map tiers to rates."
    tiers = dict(read_table(rates.pop("tiers", None) or {}, problem))
    if (batch := rates.pop("batch", None)) is not None:
        tiers["batch"] = batch
    return tiers


def read_rates(name: str, rates: object) -> Rates:
    """The rates of a table by kind: a number, or as the price list has it where a long context
    costs more, `{"base": 2.5, "tiers": [{"start": 200_000, "price": 5}]}`.

    Raises:
        ValueError: One is unknown, negative or not a finite number.
    """
    problem = f"Pricing override for {name!r} must map rates to USD, got {rates!r}."
    given = read_table(rates, problem)
    if unknown := sorted(set(map(str, given)) - set(KINDS)):
        raise ValueError(
            f"Pricing override for {name!r} has unknown keys {unknown}. Allowed: "
            f"{', '.join((*KINDS, 'tiers', 'batch', 'valid_from'))}."
        )
    base: dict[str, Decimal] = {}
    steps: dict[int, dict[str, Decimal]] = {}
    for key, value in given.items():
        what = f"Pricing override for {name!r}: {key}"
        if isinstance(value, Mapping):
            base[key] = read_usd(value.get("base"), f"{what}: base")
            for start, usd in _read_steps(value, what):
                steps.setdefault(start, {})[key] = usd
        elif value is not None:
            base[key] = read_usd(value, what)
    return Rates(base, tuple(sorted(steps.items(), key=itemgetter(0))))


def _read_steps(rate: Mapping[str, Any], what: str) -> Iterator[tuple[int, Decimal]]:
    problem = f"{what} must be a number, or base and tiers of start and price, got {rate!r}."
    tiers = rate.get("tiers")
    if set(rate) != {"base", "tiers"} or not isinstance(tiers, list | tuple) or not tiers:
        raise ValueError(problem)
    for tier in tiers:
        table = read_table(tier, problem)
        start = table.get("start")
        if set(table) != {"start", "price"} or type(start) is not int or start < 0:
            raise ValueError(problem)
        yield start, read_usd(table["price"], f"{what}: price")


def read_table(value: object, problem: str) -> Mapping[str, Any]:
    """A table of somebody's own making.

    Raises:
        ValueError: It is none, which is the problem.
    """
    if not isinstance(value, Mapping):
        raise ValueError(problem)
    return value


def read_usd(value: object, what: str) -> Decimal:
    """A number of USD, 0 or more.

    Raises:
        ValueError: It is none; the message begins with `what`.
    """
    problem = f"{what} must be a finite number of USD, 0 or more, got {value!r}."
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(problem)
    rate = Decimal(str(value))
    if not rate.is_finite() or rate < 0:
        raise ValueError(problem)
    return rate


def read_date(value: object, what: str) -> date | None:
    """A day, given as such or as `2026-11-01`.

    Raises:
        ValueError: It is none; the message begins with `what`.
    """
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        problem = f"{what}: valid_from must be a date like 2026-11-01, got {value!r}."
        raise ValueError(problem) from None


def holds(valid_from: date | None, at: datetime | None) -> bool:
    """Whether something that holds from a day on, of UTC, held at a moment; None: now."""
    return valid_from is None or (at or datetime.now(UTC)).astimezone(UTC).date() >= valid_from


class Revision:
    """One state of overrides, for what is kept for as long as that holds."""


class Overrides:
    """Overrides by model, then by provider; what counts for requests of an unknown provider is last
    in its group.

    Attributes:
        revision: Another one after each change.
    """

    def __init__(self, overrides: Iterable[Override] = ()) -> None:
        self._by_model: dict[str, dict[str | None, list[Override]]] = {}
        self.revision = Revision()
        placed = [(read_model_name(override.name)[-1], override) for override in overrides]
        for ref, override in sorted(placed, key=lambda item: item[0].provider is None):
            dated = self._by_model.setdefault(ref.model, {}).setdefault(ref.provider, [])
            dated.append(override)
            # The latest that holds counts, so it is looked for from the end.
            dated.sort(key=lambda one: one.valid_from or date.min)

    @classmethod
    def parse(
        cls, tables: Mapping[str, RateTable | Sequence[RateTable]], *, origin: str = ""
    ) -> Overrides:
        """Overrides from rates by model; a model may have several, each from a day on."""
        found: list[Override] = []
        for name, table in tables.items():
            dated: Sequence[Any] = table if isinstance(table, list | tuple) else [table]
            found += [Override.parse(name, one, origin=origin) for one in dated]
        return cls(found)

    def replace(self, override: Override) -> None:
        """A name without a provider replaces all there is for the model; with one, what there is
        for that provider.
        """
        ref = read_model_name(override.name)[-1]
        group = self._by_model.setdefault(ref.model, {})
        if ref.provider is None:
            group.clear()
        group.pop(ref.provider, None)
        group[ref.provider] = [override]
        self.revision = Revision()

    def tiers(self) -> set[str]:
        """The service tiers that have rates of their own, of whichever model."""
        by_provider = chain.from_iterable(group.values() for group in self._by_model.values())
        return {tier for override in chain.from_iterable(by_provider) for tier in override.tiers}

    def find(
        self, model: str, provider: str | None = None, at: datetime | None = None
    ) -> Override | None:
        """The closest override for a model at a moment; None: now."""
        if not self._by_model:
            return None
        candidates = self._for_model(model, provider)
        return next((one for one in candidates if holds(one.valid_from, at)), None)

    def _for_model(self, model: str, provider: str | None) -> Iterator[Override]:
        """Those for a model by all of its names, the closest and latest first."""
        refs = read_model_name(model, provider)
        own = read_model_name(model)[-1]
        if own.provider not in _KNOWN_OR_NONE:
            refs = (*refs, own)  # `phi:latest` is one name, whoever serves it
        for ref in refs:
            for spelling in spellings(ref.model):
                yield from self._by_name(spelling, ref.provider)

    def _by_name(self, model: str, provider: str | None) -> Iterator[Override]:
        group = self._by_model.get(model, {})
        last = next(reversed(group), None)
        for own in (last,) if provider is None else (provider, None):
            yield from reversed(group.get(own, ()))


__all__ = [
    "Override",
    "Overrides",
    "Rate",
    "RateTable",
    "Tokens",
    "holds",
    "read_date",
    "read_table",
    "read_usd",
]
