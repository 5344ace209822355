"""Prices in a file: rates of one's own, and what is taken off or put on top of listed ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import SettingsError
from ..providers import canonical_provider, host_and_port
from .model_names import ModelRef, read_model_name, spellings
from .overrides import Overrides, holds, read_date, read_table, read_usd

if TYPE_CHECKING:
    from ..settings import FastroAISettings


@dataclass(frozen=True, slots=True)
class Discount:
    """By what listed prices are multiplied: below 1 a discount, above it a premium.

    Attributes:
        factor: For all that is billed, fees included. What an answer states as its bill stays.
        provider: Whose prices. None: anyone's.
        model: Of which model, and of its versions where none is named. None: of all.
        host: At which host, which tells accounts apart (`acme.openai.azure.com`). None: at all.
        valid_from: From when on. None: always.
    """

    factor: Decimal
    provider: str | None = None
    model: str | None = None
    host: str | None = None
    valid_from: date | None = None

    @classmethod
    def parse(cls, entry: Mapping[str, object]) -> Discount:
        """Read one entry of `discounts`.

        Raises:
            ValueError: It lacks a factor, or has an unknown key.
        """
        read_table(entry, f"A discount must be a table, got {entry!r}.")
        if unknown := sorted(set(map(str, entry)) - set(_KEYS)):
            raise ValueError(f"A discount has unknown keys {unknown}. Allowed: {', '.join(_KEYS)}.")
        provider, model, host = (_name_in(entry, key) for key in ("provider", "model", "host"))
        if model is not None:
            ref = read_model_name(model)[-1]
            provider, model = provider or ref.provider, ref.model
        return cls(
            factor=read_usd(entry.get("factor"), "The factor of a discount"),
            provider=canonical_provider(provider) if provider else None,
            model=model,
            host=host,
            valid_from=read_date(entry.get("valid_from"), "A discount"),
        )

    @property
    def rank(self) -> tuple[int, date]:
        """Which of several that apply counts: the most special one, then the latest."""
        given = sum(part is not None for part in (self.provider, self.model, self.host))
        return given, self.valid_from or date.min

    def applies(self, refs: Sequence[ModelRef], host: str | None) -> bool:
        """Whether it is for a request to a model by one of these names, at whichever time."""
        if self.provider not in (None, *(ref.provider for ref in refs)):
            return False
        if self.host not in (None, host):
            return False
        return self.model is None or any(self.model in spellings(ref.model) for ref in refs)


def _name_in(entry: Mapping[str, object], key: str) -> str | None:
    return str(entry[key]).strip().lower() if entry.get(key) else None


_KEYS: Final = ("provider", "model", "host", "factor", "valid_from")


@dataclass(frozen=True, slots=True)
class OwnPrices:
    """What someone pays otherwise than listed."""

    overrides: Overrides = field(default_factory=Overrides)
    discounts: tuple[Discount, ...] = ()

    def factor(
        self, provider: str | None, model: str, url: str | None, at: datetime | None
    ) -> Decimal:
        """By what a listed price is multiplied; of several that apply, the most special one counts,
        then the latest.
        """
        found = [one for one in self._applying(provider, model, url) if holds(one.valid_from, at)]
        return max(found, key=lambda one: one.rank).factor if found else Decimal(1)

    def highest_factor(self, provider: str | None, model: str, url: str | None) -> Decimal:
        """The highest that can apply to a request, whichever days lie between."""
        found = self._applying(provider, model, url)
        return max([Decimal(1), *(one.factor for one in found)])

    def _applying(self, provider: str | None, model: str, url: str | None) -> Sequence[Discount]:
        if not self.discounts:
            return ()
        refs = read_model_name(model, provider)
        host = host_and_port(url)[0] if url else None
        return [one for one in self.discounts if one.applies(refs, host)]


def read_discounts(entries: Iterable[Mapping[str, object]]) -> tuple[Discount, ...]:
    """Read a list of discounts; see `Discount`."""
    return tuple(map(Discount.parse, entries))


def read_price_file(path: Path) -> OwnPrices:
    """The prices in a JSON or YAML file: `models`, rates by model as `CostCalculator` takes them,
    and `discounts`.

    Raises:
        SettingsError: It can't be read, or says what can't be a price; which line, model or
            discount it is about.
    """
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise SettingsError(
            f"FASTROAI_PRICES={str(path)!r} can't be read: {problem}. Correct the file, or unset "
            "the variable to have list prices."
        ) from error


def with_readable_prices(settings: FastroAISettings) -> FastroAISettings:
    """The settings of a run that is about to send requests: what they say of prices is read, so
    that none is sent whose price can't be told for it.

    Raises:
        SettingsError: See `read_price_file`.
    """
    if settings.prices is not None:
        read_price_file(settings.prices)
    return settings


@lru_cache(maxsize=8)
def _read(path: Path, _changed: int) -> OwnPrices:
    found = parse_file(path)
    document = read_table(found, f"expected a table of models and discounts, got {found!r}")
    if unknown := sorted(set(map(str, document)) - {"models", "discounts"}):
        raise ValueError(f"expected models and discounts, got {unknown}")
    models, discounts = document.get("models") or {}, document.get("discounts") or []
    tables = read_table(models, f"models must map models to their rates, got {models!r}")
    if not isinstance(discounts, list):
        raise ValueError(f"discounts must be a list, got {discounts!r}")
    return OwnPrices(Overrides.parse(tables, origin=path.name), _read_listed(discounts))


def _read_listed(discounts: list[Mapping[str, object]]) -> tuple[Discount, ...]:
    found: list[Discount] = []
    for number, entry in enumerate(discounts, start=1):
        try:
            found.append(Discount.parse(entry))
        except ValueError as error:
            raise ValueError(f"discount {number} of {len(discounts)}: {error}") from error
    return tuple(found)


def parse_file(path: Path) -> object:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return json.loads(text, parse_float=Decimal)
    import yaml  # type: ignore[import-untyped]  # only for those who write it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
