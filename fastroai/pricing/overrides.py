"""Rates of one's own, which come before the price list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Protocol

from ..providers import PROVIDERS
from .max_cost import MaxCost
from .model_names import ModelRef, read_model_name, spellings
from .money import EXACT
from .price_list import Price

if TYPE_CHECKING:
    pass


Rate = float | Decimal
"""USD per million tokens."""

_CACHE_READ_SHARE = Decimal("0.10")
_CACHE_WRITE_SHARE = Decimal("1.25")
_REQUIRED = ("input_per_mtok", "output_per_mtok")
_OPTIONAL = ("cache_read_per_mtok", "cache_write_per_mtok")


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
    """Someone's own rates for a model, in USD per million tokens, under the name they gave it."""

    name: str
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal

    @classmethod
    def parse(cls, name: str, rates: Mapping[str, Rate | None]) -> Override:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"A pricing override must name a model, got {name!r}.")
        if not isinstance(rates, Mapping):
            raise ValueError(
                f"Pricing override for {name!r} must map rates to USD per million tokens, got "
                f"{rates!r}."
            )
        if unknown := sorted(set(rates) - {*_REQUIRED, *_OPTIONAL}):
            allowed = ", ".join((*_REQUIRED, *_OPTIONAL))
            raise ValueError(
                f"Pricing override for {name!r} has unknown keys {unknown}. Allowed: {allowed}."
            )
        given = {key: _rate(name, key, value) for key, value in rates.items() if value is not None}
        if missing := [key for key in _REQUIRED if key not in given]:
            raise ValueError(
                f"Pricing override for {name!r} lacks {', '.join(missing)} (USD per million "
                "tokens)."
            )
        with localcontext(EXACT):
            return cls(
                name=name,
                input=given["input_per_mtok"],
                output=given["output_per_mtok"],
                cache_read=given.get(
                    "cache_read_per_mtok", given["input_per_mtok"] * _CACHE_READ_SHARE
                ),
                cache_write=given.get(
                    "cache_write_per_mtok", given["input_per_mtok"] * _CACHE_WRITE_SHARE
                ),
            )

    def price(self, tokens: Tokens) -> Price:
        full = tokens.input_tokens - tokens.cache_read_tokens - tokens.cache_write_tokens
        with localcontext(EXACT):
            total = (
                full * self.input
                + tokens.cache_read_tokens * self.cache_read
                + tokens.cache_write_tokens * self.cache_write
                + tokens.output_tokens * self.output
            ) / 1_000_000
        return Price(total=total, source=f"override {self.name!r}")

    @property
    def max_cost(self) -> MaxCost:
        """What a request can cost at most at these rates."""
        return MaxCost(((-1, max(self.input, self.cache_read, self.cache_write), self.output),))


def _rate(name: str, key: str, value: Rate) -> Decimal:
    problem = (
        f"Pricing override for {name!r}: {key} must be a finite number of USD, 0 or more, got "
        f"{value!r}."
    )
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(problem)
    rate = Decimal(str(value))
    if not rate.is_finite() or rate < 0:
        raise ValueError(problem)
    return rate


class Overrides:
    """Overrides by model, then by provider; what counts for requests of an unknown provider is last
    in its group.
    """

    def __init__(self, overrides: Iterable[Override]) -> None:
        self._by_model: dict[str, dict[str | None, Override]] = {}
        placed = [(read_model_name(override.name)[-1], override) for override in overrides]
        for ref, override in sorted(placed, key=lambda item: item[0].provider is None):
            self._by_model.setdefault(ref.model, {})[ref.provider] = override

    def replace(self, override: Override) -> None:
        """A name without a provider replaces all there is for the model; with one, what there is
        for that provider.
        """
        ref = read_model_name(override.name)[-1]
        group = self._by_model.setdefault(ref.model, {})
        if ref.provider is None:
            group.clear()
        group.pop(ref.provider, None)
        group[ref.provider] = override

    def find(self, model: str, provider: str | None = None) -> Override | None:
        if not self._by_model:
            return None
        refs = read_model_name(model, provider)
        own = read_model_name(model)[-1]
        if own.provider is not None and own.provider not in PROVIDERS:
            refs = (*refs, own)  # `phi:latest` is one name, whoever serves it
        for ref, spelling in _most_exact_first(refs):
            if not (group := self._by_model.get(spelling)):
                continue
            if ref.provider is None:
                return next(reversed(group.values()))
            if found := group.get(ref.provider) or group.get(None):
                return found
        return None


def _most_exact_first(refs: tuple[ModelRef, ...]) -> Iterator[tuple[ModelRef, str]]:
    for ref in refs:
        for spelling in spellings(ref.model):
            yield ref, spelling
