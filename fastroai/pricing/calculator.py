"""CostCalculator: prices model requests by custom rates first, then by the price list."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import UnknownModelPriceError
from ..providers import UNMETERED, provider_at
from .max_cost import MaxCost, list_max_cost
from .model_names import ModelRef, read_model_name
from .money import MICROCENTS_PER_USD, usd_to_microcents
from .overrides import Override, Overrides, RateTable, Tokens
from .price_file import OwnPrices, read_discounts, read_price_file
from .price_list import SERVICE_TIERS, Price, list_in_use, list_price
from .rates import Rate
from .token_counts import TokenCounts

if TYPE_CHECKING:
    from pydantic_ai.usage import RequestUsage


logger = logging.getLogger("fastroai.usage")


class CostCalculator:
    """Prices model requests exactly, and rounds once where an integer is asked for.

    Rates of your own beat the price list. Their names are matched without regard to case, version
    or vendor path: `gpt-4o` also prices `openai:gpt-4o-2024-08-06` and `openai/gpt-4o`; the closest
    name wins. A name with a provider, `azure:gpt-4o`, prices that provider's requests, and those of
    which the provider is not known.

    Args:
        pricing_overrides: Rates by model name, in USD per million tokens: `input_per_mtok`,
            `output_per_mtok`, and optionally `cache_read_per_mtok` (otherwise 10 % of the input
            rate), `cache_write_per_mtok` (125 %) and all others of `rates.KINDS`: audio, images,
            an hour in the cache, and USD `per_request` or `per_web_search`. `tiers` maps service
            tiers to rates that differ there, `batch` is one of them; `valid_from` is the day from
            which on they hold, and a list has several such. 0 is a price. A rate that is another
            one for long contexts is `{"base": 2.5, "tiers": [{"start": 200_000, "price": 5}]}`: 5
            for all of a request with more input tokens than 200,000. Copied; change them with
            `add_pricing_override`.
        discounts: By what listed prices are multiplied: tables of `factor` and optionally
            `provider`, `model`, `host` and `valid_from`. See `price_file.Discount`.

    `FASTROAI_PRICES` names a file with both; what is given here comes before it.

    Raises:
        ValueError: A rate is missing, negative, not a finite number, or of an unknown kind.
    """

    def __init__(
        self,
        pricing_overrides: Mapping[str, RateTable | Sequence[RateTable]] | None = None,
        *,
        discounts: Iterable[Mapping[str, object]] = (),
    ) -> None:
        self.overrides = Overrides.parse(pricing_overrides or {})
        self._discounts = read_discounts(discounts)
        self._in_file: OwnPrices | None = None

    def price(
        self,
        usage: RequestUsage,
        model: str,
        *,
        provider: str | None = None,
        provider_url: str | None = None,
        at: datetime | None = None,
        context: Mapping[str, object] | None = None,
    ) -> Price:
        """Price one model request. Add up what several cost, but never price their summed tokens:
        tiers are cliffs.

        Args:
            usage: Token counts of one request. `input_tokens` includes cached ones; each token is
                priced once.
            model: The model that answered: `gpt-5-mini-2025-08-07`, or `provider:model`.
            provider: Who answered, under pydantic-ai's or genai-prices' name; beats a prefix of
                `model`.
            provider_url: Base URL of the API that answered, which says most precisely who sends the
                bill. A local or private one is on no price list: an override prices it, or
                `FASTROAI_PROVIDER_HOSTS` says whose it is.
            at: When the request was sent, timezone-aware: off-peak and dated prices depend on it.
                None: now.
            context: What the response says of its own price, such as a service tier
                (`ModelResponse.provider_details`). A tier that is not billed at the standard rates
                has no price where none is listed for it.

        Returns:
            `total` in USD, an exact `Decimal`, not rounded; `source` names data set, version and
            matched model, or the override. At an override, what it has no rate for costs what it
            is part of; calls of tools are free then.

        Raises:
            UnknownModelPriceError: No price is listed. The caller decides; it is never 0.
            ValueError: `at` is naive, a count is negative, or cached counts exceed their total.
            SettingsError: `FASTROAI_PROVIDER_HOSTS` or `FASTROAI_PRICES` can't be read.

        Source: genai-prices.
        """
        refuse_naive(at, "The time of a request")
        refuse_impossible(usage)
        asked_url = provider_url
        provider, provider_url = billed_by(provider, provider_url)
        if override := self._own_rates(model, provider, at):
            return override.price(usage, context)
        # Only now: an agreed discount is one on list prices, not on rates of one's own.
        refs = read_model_name(model, provider)
        listed = list_price(usage, refs, url=provider_url, at=at, context=context)
        own = self._own_prices()
        return listed.times(own.factor(provider, model, asked_url, at)) if own.discounts else listed

    def max_cost(
        self,
        model: str,
        *,
        provider: str | None = None,
        provider_url: str | None = None,
        at: datetime | None = None,
        tier: str | None = None,
    ) -> MaxCost | None:
        """What one request for text can cost at most, by whichever service tier, hour and cache
        class it is billed.

        Args:
            model: As in `price`, like the rest, but the model that is asked.
            tier: The service tier that is asked for.

        Returns:
            None: no price is known, or what is billed can't be foreseen.
        """
        asked_url = provider_url
        provider, provider_url = billed_by(provider, provider_url)
        if override := self._own_rates(model, provider, at):
            return override.max_cost
        most = list_max_cost(read_model_name(model, provider), url=provider_url, at=at, tier=tier)
        highest = self._own_prices().highest_factor(provider, model, asked_url)
        return most and most.times(highest, fees=True)

    def calculate_cost(
        self,
        model: str | None,
        input_tokens: int,
        output_tokens: int,
        *,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        input_audio_tokens: int = 0,
        output_audio_tokens: int = 0,
        cache_audio_read_tokens: int = 0,
    ) -> int:
        """Estimate what tokens cost, in microcents (1e-6 USD), rounded once, half to even.

        For books that balance use `price`, request by request: this returns 0 for an unknown model,
        and prices a model that its provider does not list as the same name at another provider.

        Args:
            model: `provider:model` or a bare name. None, empty or unknown: 0, with a debug log.
            input_tokens: All input tokens, cached and audio ones included.
            output_tokens: All output tokens, audio ones included.
            cache_read_tokens: Input tokens read from the cache.
            cache_write_tokens: Input tokens written to the cache.
            input_audio_tokens: Audio among the input tokens; overrides ignore it.
            output_audio_tokens: Audio among the output tokens; overrides ignore it.
            cache_audio_read_tokens: Audio among the cached tokens; overrides ignore it.
        """
        if not model or not model.strip():
            logger.debug("No model is named: its cost is counted as 0")
            return 0
        tokens = nearest_possible(
            TokenCounts(
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cache_read_tokens=cache_read_tokens,
                cache_write_tokens=cache_write_tokens,
                input_audio_tokens=input_audio_tokens,
                output_audio_tokens=output_audio_tokens,
                cache_audio_read_tokens=cache_audio_read_tokens,
            )
        )
        try:
            override = self._own_rates(model)
            price = (
                override.price(tokens) if override else _estimate(tokens, read_model_name(model))
            )
            return usd_to_microcents(price.total)
        except UnknownModelPriceError as error:
            logger.debug("%s Its cost is counted as 0.", error)
            return 0

    def service_tiers(self) -> frozenset[str]:
        """The service tiers that a price may be asked for: the price list's, and own ones."""
        return SERVICE_TIERS | self.overrides.tiers() | self._own_prices().overrides.tiers()

    def add_pricing_override(
        self,
        model: str,
        input_per_mtok: Rate,
        output_per_mtok: Rate,
        *,
        cache_read_per_mtok: Rate | None = None,
        cache_write_per_mtok: Rate | None = None,
    ) -> None:
        """Set a model's rates, in USD per million tokens; replaces those it has.

        Raises:
            ValueError: A rate is negative or not a finite number.
        """
        rates = {
            "input_per_mtok": input_per_mtok,
            "output_per_mtok": output_per_mtok,
            "cache_read_per_mtok": cache_read_per_mtok,
            "cache_write_per_mtok": cache_write_per_mtok,
        }
        self.overrides.replace(Override.parse(model, rates))

    def _own_rates(
        self, model: str, provider: str | None = None, at: datetime | None = None
    ) -> Override | None:
        """The override that counts: of those given in code, else of the file."""
        return self.overrides.find(model, provider, at) or self._own_prices().overrides.find(
            model, provider, at
        )

    def _own_prices(self) -> OwnPrices:
        """Rates of the file, and discounts of both; read once."""
        if self._in_file is None:
            # A calculator is made by a user, outside of any run that could hand settings down; only
            # here, because they take their time to import.
            from ..settings import load_settings

            path = load_settings().prices
            found = read_price_file(path) if path else OwnPrices()
            self._in_file = replace(found, discounts=(*self._discounts, *found.discounts))
        return self._in_file

    def microcents_to_dollars(self, microcents: int) -> float:
        """USD as a float, for display."""
        return microcents / MICROCENTS_PER_USD

    def dollars_to_microcents(self, dollars: float) -> int:
        """The nearest whole microcent of an amount in USD."""
        return round(dollars * MICROCENTS_PER_USD)

    def format_cost(self, microcents: int) -> dict[str, int | float]:
        """The amount in three units: whole `microcents`, whole `cents` (rounded down), `dollars` as
        a float.
        """
        return {
            "microcents": microcents,
            "cents": microcents // 10_000,
            "dollars": self.microcents_to_dollars(microcents),
        }


def billed_by(provider: str | None, url: str | None) -> tuple[str | None, str | None]:
    """Who sends the bill: whom `FASTROAI_PROVIDER_HOSTS` names for the URL, else who the provider
    and the URL say.
    """
    if not url:
        return provider, None
    named = named_provider(url)
    return (named, None) if named else (provider, url)


def named_provider(url: str) -> str | None:
    """Whom `FASTROAI_PROVIDER_HOSTS` names for a URL."""
    # Asked by calculators, which users make outside of any run; only here, because settings take
    # their time to import.
    from ..settings import load_settings

    hosts = load_settings().provider_hosts
    return provider_at(url, hosts) if hosts else None


def basis_of_prices() -> tuple[object, ...]:
    """What all prices but one's own depend on: the day, the settings and the price list as it is
    now, which an update replaces.
    """
    # As above: calculators are asked outside of runs, too.
    from ..settings import load_settings

    return datetime.now(UTC).date(), load_settings(), list_in_use()


def refuse_naive(at: datetime | None, what: str) -> None:
    """Refuse a time without a zone, which would be another moment on each machine."""
    if at is not None and at.utcoffset() is None:
        raise ValueError(f"{what} must be timezone-aware, got {at!r}. Use datetime.now(UTC).")


def refuse_impossible(usage: Tokens) -> None:
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        count = getattr(usage, name)
        if type(count) is bool or not isinstance(count, int) or count < 0:
            raise ValueError(
                f"Usage can't be priced: {name} must be a whole number, 0 or more, got {count!r}."
            )
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    if cached > usage.input_tokens:
        raise ValueError(
            f"Usage can't be priced: {cached} cached tokens exceed "
            f"input_tokens={usage.input_tokens}, which must include them."
        )


def nearest_possible(tokens: TokenCounts) -> TokenCounts:
    """The nearest counts that can be priced: none negative, no part larger than its whole.

    Cached tokens beyond the total raise the total: what is left to pay at the full rate is then 0,
    never negative.
    """
    read = max(0, tokens.cache_read_tokens)
    write = max(0, tokens.cache_write_tokens)
    total_in = max(0, tokens.input_tokens, read + write)
    total_out = max(0, tokens.output_tokens)
    audio_in = min(max(0, tokens.input_audio_tokens), total_in)
    return TokenCounts(
        input_tokens=total_in,
        output_tokens=total_out,
        cache_read_tokens=read,
        cache_write_tokens=write,
        input_audio_tokens=audio_in,
        output_audio_tokens=min(max(0, tokens.output_audio_tokens), total_out),
        cache_audio_read_tokens=min(max(0, tokens.cache_audio_read_tokens), read, audio_in),
    )


_NOWHERE_ELSE = {None, *UNMETERED}


def _estimate(tokens: TokenCounts, refs: tuple[ModelRef, ...]) -> Price:
    """The list price, at any provider if the named one does not list the model."""
    elsewhere = [ModelRef(None, ref.model) for ref in refs if ref.provider not in _NOWHERE_ELSE]
    try:
        return list_price(tokens, (*refs, *elsewhere))
    except (ValueError, UnknownModelPriceError):
        # Cached and audio tokens may overlap in a way the counts don't tell, or have no rate of
        # their own; as text they can always be priced.
        text = replace(
            tokens, input_audio_tokens=0, output_audio_tokens=0, cache_audio_read_tokens=0
        )
        return list_price(text, (*refs, *elsewhere))
