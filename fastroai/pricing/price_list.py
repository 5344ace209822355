"""Finds the price list entry of a model request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from functools import cache
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING

from ..errors import UnknownModelPriceError
from ..providers import DECISIONS, PROVIDERS, UNMETERED, host_and_port
from .endpoints import is_of_a_plan, is_own_host, is_private_endpoint, on_domain, plain_url
from .model_names import BEDROCK, ModelRef
from .money import EXACT
from .premiums import NONE, regional_factor
from .rate_sheets import BILLED_TOOLS, Counts, RateSheet
from .token_counts import TOKEN_COUNTERS

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider


@dataclass(frozen=True, slots=True)
class Price:
    """What one model request costs.

    Attributes:
        total: USD, exact, not rounded, fees included.
        source: Data set, version, provider and model of the price, or which override.
        request_fees: The part of `total` that is charged per request, search or message and not per
            token. None: not told apart.
        version: Of the data set. None: the price is from no data set.
        cache_saved: What the cached tokens cost less than they would have outside of the cache.
            None: there are none, or nobody can say.
    """

    total: Decimal
    source: str
    request_fees: Decimal | None = Decimal(0)
    version: str | None = None
    cache_saved: Decimal | None = None

    def times(self, factor: Decimal) -> Price:
        """Multiplied as agreed with the provider, fees included."""
        if factor == 1:
            return self
        with localcontext(EXACT):
            fees = None if self.request_fees is None else self.request_fees * factor
            total = self.total * factor
        source = f"{self.source}, {factor} times as agreed"
        return replace(self, total=total, request_fees=fees, source=source)


# What genai-prices calls otherwise than a service tier.
_TIERS = {"batch": {"processing": "batch"}, "fast-mode": {"speed": "fast"}}
# Names of what is billed at the standard rates. Any other tier may cost otherwise.
_STANDARD = {
    "service_tier": frozenset(
        {"auto", "default", "on_demand", "ondemand", "standard", "standard_only", "unspecified"}
    ),
    "processing": frozenset({"default", "standard"}),
    "speed": frozenset({"standard"}),
}
# Groq sells its flex tier at the rates of the standard one.
_STANDARD_AFTER_ALL = {"groq": frozenset({"flex"})}
_NO_TOOLS = dict.fromkeys(BILLED_TOOLS, 0)


def list_price(
    usage: object,
    refs: Iterable[ModelRef],
    *,
    url: str | None = None,
    at: datetime | None = None,
    context: Mapping[str, object] | None = None,
) -> Price:
    """The price that genai-prices lists for one request.

    The URL says best who sends the bill, then the provider's name. By the model's name alone is
    priced what names no provider, or one that is nobody's and has no URL: pydantic-ai's `function`
    and `test` models, offline models.

    Args:
        usage: Token counts as attributes, under genai-prices' names.
        refs: Readings of the model's name; the first that is listed counts.
        url: Base URL of the API that answered. A local or private one is nobody's list price.
        at: When the request was sent, timezone-aware. None: now.
        context: What the response says of itself, such as its service tier; values that are not
            strings are left out.

    Raises:
        UnknownModelPriceError: None of the readings is listed.
        ValueError: The counts contradict each other.
    """
    tags = {key: value for key, value in (context or {}).items() if isinstance(value, str)}
    asked = _Asked(_counts(usage), url, at or datetime.now(UTC), tags)
    refusals = []
    for ref in refs:
        try:
            return asked.price_of(ref)
        except UnknownModelPriceError as error:
            refusals.append(error)
    refusals.append(UnknownModelPriceError("No price is listed: no model is named."))
    raise refusals[0]  # that of the likeliest reading


# Google's own models where its endpoints name them with their publisher.
_PUBLISHER = re.compile(r"^(?:publishers/google/models/|google/|models/)(?=gemini-)")


def listed_name(ref: ModelRef, url: str | None) -> str:
    """What the list calls a model."""
    is_googles = url is not None and on_domain(url, "googleapis.com")
    return _PUBLISHER.sub("", ref.model) if is_googles else ref.model


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be priced, of whichever model; `counts` is the usage as genai-prices reads it."""

    counts: Counts
    url: str | None
    at: datetime
    tags: Mapping[str, str]

    def price_of(self, ref: ModelRef) -> Price:
        """The price of one reading of a model's name."""
        listed = _list().find(ref, self.url, self.tags)
        sheet = listed.sheet_at(self.at)
        with localcontext(EXACT):
            total, fees = self._total(listed, sheet), sheet.fees(self.counts)
            if listed.factor != NONE:
                total = fees + (total - fees) * listed.factor
        if why := listed.unlisted_tier or sheet.missing(self.counts) or listed.unknown_region:
            raise _unlisted(ref, self.url, why)
        return Price(total, listed.source, request_fees=fees, version=listed.version)

    def _total(self, listed: _Listed, sheet: RateSheet) -> Decimal:
        amount = sheet.amount(self.counts)
        if amount is not None and sheet.is_confirmed(amount[0]):
            return amount[1]
        from genai_prices import Usage

        usage = Usage()
        # Not as arguments: its counts are checked when it is priced, and need not be twice.
        vars(usage).update(self.counts)
        found = listed.model.calc_price(
            usage,
            listed.provider,
            genai_request_timestamp=self.at,
            price_context=dict(listed.tags) or None,
        )
        if amount is not None and amount[1] == found.total_price:
            sheet.confirm(amount[0])
        return found.total_price


class _Listed:
    """A model of the list, as one reading of its name at a URL means it.

    Attributes:
        tags: What the response says of itself that the list tells apart.
        factor: By what tokens are multiplied for their region.
        source: As `Price` has it, like the version.
        unlisted_tier: Why it has no price in its service tier; None: it has.
        unknown_region: Why it has none for its region.
    """

    def __init__(
        self, price_list: _PriceList, ref: ModelRef, url: str | None, tags: Mapping[str, str]
    ) -> None:
        where = where_listed(ref, url)
        place = where.get("provider_id"), where.get("provider_api_url")
        try:
            found = price_list.snapshot.find_provider_model(listed_name(ref, url), None, *place)
        except LookupError:
            raise _unlisted(ref, url, "the price list does not have it") from None
        self.provider, self.model = provider, model = found
        self.tags, self.version = tags, price_list.version
        self.unlisted_tier = self.unknown_region = None
        if tier := unlisted_tier(provider, model, tags):
            self.unlisted_tier = f"the price list does not have its service tier {tier!r}"
        factor = regional_factor(provider.id, premium_name(provider, model, ref), url, tags)
        if isinstance(factor, str):
            self.unknown_region, factor = factor, NONE
        self.factor = factor
        by = "" if where else ", by model name"
        self.source = f"genai-prices {self.version}: {provider.id}/{model.id}{by}"
        if factor != NONE:
            self.source = f"{self.source}, {factor} times for its region"
        self._is_own = _is_own_model(provider, model)
        self._varies = isinstance(model.prices, list) or any(
            variant.constraint is not None for variant in model.price_variants or ()
        )
        self._sheets: list[RateSheet] = []

    def sheet_at(self, at: datetime) -> RateSheet:
        """The rates that hold at a time."""
        if self._sheets and not self._varies:
            return self._sheets[0]
        rates = self.model.get_prices(at, dict(self.tags) if self._is_own else None)
        for sheet in self._sheets:
            if sheet.rates is rates or sheet.rates == rates:
                return sheet
        self._sheets.append(RateSheet(self.provider.id, self.model.id, rates))
        return self._sheets[-1]


class _PriceList:
    """A price list, with what was found in it so far."""

    def __init__(self, snapshot: DataSnapshot) -> None:
        from genai_prices import __version__

        self.snapshot = snapshot
        updated = f" updated {snapshot.timestamp:%Y-%m-%d}" if snapshot.from_auto_update else ""
        self.version = f"{__version__}{updated}"
        models = chain.from_iterable(provider.models for provider in snapshot.providers)
        variants = chain.from_iterable(model.price_variants or () for model in models)
        self._told_apart = {*_STANDARD, "inference_geo"}.union(*(each.when for each in variants))
        self._found: dict[tuple[ModelRef, str | None, frozenset[tuple[str, str]]], _Listed] = {}

    def find(self, ref: ModelRef, url: str | None, tags: Mapping[str, str]) -> _Listed:
        """The model that a name means.

        Raises:
            UnknownModelPriceError: None is listed.
        """
        tags = {name: tags[name] for name in self._told_apart.intersection(tags)}
        key = ref, url, frozenset(tags.items())
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            found = self._found[key] = _Listed(self, ref, url, tags)
        return found


_MOST_FOUND = 4096
_lists_in_use: list[_PriceList] = []
"""The one that was asked last. Of the process, as genai-prices' own list is."""


def _list() -> _PriceList:
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    if not _lists_in_use or _lists_in_use[0].snapshot is not snapshot:
        _lists_in_use[:] = [_PriceList(snapshot)]
    return _lists_in_use[0]


def further_usage(usage: object) -> dict[str, float]:
    """What a usage object counts besides the tokens that the ledger has fields for, under
    genai-prices' names.
    """
    further = {}
    for name in filter(_further_names().__contains__, vars(usage)):
        value = getattr(usage, name)
        # A provider's answer may hold anything: what can't be added up is no count.
        if value and type(value) in (int, float) and isfinite(value):
            further[name] = value
    return further


def tier_context(tier: str | None) -> dict[str, str]:
    """A service tier as `list_price` takes it; genai-prices calls some of them otherwise."""
    return dict(_TIERS.get(tier, {"service_tier": tier})) if tier else {}


def _counts(usage: object) -> Counts:
    """A usage object as genai-prices would read it, which takes it longer than all the rest."""
    # What is not named is looked for among all there is, so it is named even where it is 0.
    counts: dict[str, float] = dict(_NO_TOOLS)
    names = _named_by(type(usage))  # type: ignore[arg-type]  # mypy finds classes unhashable
    for name in names.union(_usage_names().intersection(getattr(usage, "__dict__", ()))):
        if (count := getattr(usage, name, None)) is not None:
            counts[name] = count
    return counts


@cache
def _usage_names() -> frozenset[str]:
    from genai_prices.data_units import unit_data

    return frozenset(unit_data) - {"requests"}  # each usage is of one


@cache
def _named_by(usage_type: type) -> frozenset[str]:
    """What each usage of a type may have: fields, slots, properties, or whatever it is asked."""
    answers_all = hasattr(usage_type, "__getattr__")
    return frozenset(name for name in _usage_names() if answers_all or hasattr(usage_type, name))


@cache
def _further_names() -> frozenset[str]:
    return _usage_names().difference(TOKEN_COUNTERS)


def premium_name(provider: Provider, model: ModelInfo, ref: ModelRef) -> str:
    """The name of a model that says whether a region's premium is taken for it."""
    # The list calls gpt-5.4-2026-03-05 just gpt-5.4; for AWS it says which profile was meant.
    return model.id if provider.id == "aws" else ref.model


def unlisted_tier(provider: Provider, model: ModelInfo, tags: Mapping[str, str]) -> str | None:
    """The tier of a request that is billed otherwise than the standard one, at a price that the
    list does not have.
    """
    listed = listed_tiers(provider, model)
    after_all = _STANDARD_AFTER_ALL.get(provider.id, frozenset())
    for key, standard in _STANDARD.items():
        tier = tags.get(key, "")
        if tier.lower() not in {"", *standard, *after_all} and (key, tier) not in listed:
            return tier
    return None


def listed_tiers(provider: Provider, model: ModelInfo) -> set[tuple[str, str]]:
    """The tiers that a provider's model has rates of its own for, each with what it is a kind of:
    `service_tier`, `processing` or `speed`.
    """
    if not _is_own_model(provider, model):
        return set()
    conditions = (variant.when.items() for variant in model.price_variants or ())
    return set(chain.from_iterable(conditions))


def _is_own_model(provider: Provider, model: ModelInfo) -> bool:
    """Whether a model is a provider's own: its variants are; another one that serves it has other
    rates.
    """
    return any(own is model for own in provider.models)


# On AWS what is deployed, imported, tuned or routed is billed otherwise than the model whose name
# it may have in its own.
_OWN_MODEL = re.compile(
    r"(?:arn:)?aws[a-z-]*:bedrock:[^:]*:\d*:(?!foundation-model/|inference-profile/)"
)


def where_listed(ref: ModelRef, url: str | None) -> dict[str, str]:
    """The part of the price list that may be asked about a model, as keyword arguments of
    `calc_price`.

    Raises:
        UnknownModelPriceError: It can be on none.
    """
    if url:
        _refuse_nobodys(ref, url)
        url = plain_url(url)
    if ref.provider in UNMETERED:
        raise _unlisted(ref, url, f"{ref.provider} does not bill by token")
    if _OWN_MODEL.match(ref.model):
        raise _unlisted(ref, url, "the price list has no models of one's own, nor routers")
    # OpenAI and Google serve two price lists under one URL; only the provider's name tells them
    # apart.
    if url and ref.provider not in DECISIONS and _lists(None, url):
        return {"provider_api_url": url}
    return _where_listed_by_name(ref, url)


def _where_listed_by_name(ref: ModelRef, url: str | None) -> dict[str, str]:
    """The same where the URL does not say who sends the bill."""
    if ref.provider is None:
        return {"provider_id": "aws"} if BEDROCK.match(ref.model) else {}
    if _lists(ref.provider, None):
        # Who only speaks a provider's protocol may bill at other rates.
        if url and not is_own_host(ref.provider, url):
            reason = f"that is no host of {ref.provider}"
            raise _unlisted(ref, url, f"{reason}, and not named in FASTROAI_PROVIDER_HOSTS")
        return {"provider_id": ref.provider}
    if ref.provider in PROVIDERS or url:
        raise _unlisted(ref, url, "the price list does not have this provider")
    return {}


def _refuse_nobodys(ref: ModelRef, url: str) -> None:
    if host_and_port(url)[0] is None:
        raise _unlisted(ref, None, "the URL of its endpoint names no host")
    if is_private_endpoint(url):
        reason = "it is answered by a local or private endpoint"
        raise _unlisted(ref, url, f"{reason}, not named in FASTROAI_PROVIDER_HOSTS")
    if is_of_a_plan(url):
        raise _unlisted(ref, url, "that endpoint is of a subscription, which bills no token")


def list_in_use() -> object:
    """The price list as it is now; an update puts another object in its place."""
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def is_listed_host(url: str) -> bool:
    """Whether the price list knows who answers at a URL."""
    return _lists(None, plain_url(url))


def _lists(provider: str | None, url: str | None) -> bool:
    from genai_prices.data_snapshot import get_snapshot

    # not in the list, but genai-prices reads the provider from the model's path
    if provider == "litellm":
        return True
    try:
        found = get_snapshot().find_provider(None, provider, url)
    except LookupError:
        return False
    return url is None or is_whole_host(found.api_pattern, url)


@cache
def is_whole_host(pattern: str, url: str) -> bool:
    """Whether a pattern of the list ends with the host: most of them would also take
    api.openai.com.example.com.
    """
    found = re.match(pattern, url)
    if found is None or found[0].endswith("/"):
        return True
    rest = url[found.end() :]
    if found[0].endswith("."):
        rest = re.sub(r"^[a-z]+", "", rest)  # api.moonshot.ai and .cn
    return rest[:1] in ("", "/", ":")


def _unlisted(ref: ModelRef, url: str | None, why: str) -> UnknownModelPriceError:
    """The error, without the URL itself: it may hold credentials."""
    provider = f" at provider {ref.provider!r}" if ref.provider else ""
    host = f" on {name}" if url and (name := host_and_port(url)[0]) else ""
    return UnknownModelPriceError(
        f"No price is known for model {ref.model!r}{provider}{host}: {why}.",
        f"State it with CostCalculator(pricing_overrides={{{ref.model!r}: "
        "{'input_per_mtok': ..., 'output_per_mtok': ...}}).",
    )


SERVICE_TIERS = frozenset(
    {"fast", "flex", "priority", "provisioned", "reserved", "scale", *_TIERS}
).union(_STANDARD["service_tier"])
"""What may be asked for by name: what is billed otherwise, and names of the standard tier."""
