"""Asks a calculator what requests cost; whatever that raises, a paid answer is not lost."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from ..errors import SettingsError, UnknownModelPriceError
from ..ledger.entries import LedgerEntry
from ..pricing.calculator import CostCalculator
from ..pricing.endpoints import is_private_endpoint
from ..pricing.max_cost import MaxCost
from ..pricing.money import microcents_to_usd
from ..pricing.price_list import Price, tier_context
from ..pricing.token_counts import TokenCounts
from .models import endpoint, merged, sends_setting
from .service_tiers import asked_service_tier, billed_service_tier
from .token_bounds import tokens_at_most

logger = logging.getLogger("fastroai.agent")
_LONGEST_REASON: Final = 500
_XAI_TOOLS: Final = {
    "web_search": "web_searches",
    "x_search": "social_searches",
    "file_search": "storage_searches",
    "code_execution": "code_executions",
}
"""Tools that xAI runs and bills by the call, under the names of the price list."""
_warned: set[str] = set()

_Asked = tuple[str, str | None, str | None]
"""A model's id, the URL of its API and a service tier."""


def token_counts(usage: RequestUsage) -> TokenCounts:
    """The counters of one request that the ledger keeps."""
    return TokenCounts(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        cache_audio_read_tokens=usage.cache_audio_read_tokens,
    )


class Pricer:
    """Asks a calculator what requests cost; whatever that raises, a paid answer is not lost.

    Args:
        calculator: A `CostCalculator`, or an object that has only its `calculate_cost`.
    """

    def __init__(self, calculator: Any) -> None:
        self._calculator = calculator
        self._known: set[_Asked] = set()
        self._max_costs: dict[_Asked, MaxCost | None] = {}

    def price(self, response: ModelResponse, model: Model, entry: LedgerEntry) -> Price | str:
        """The price of one response, or why it is unknown."""
        name = response.model_name or model.model_name
        try:
            url = endpoint(model, response.provider_url)
            if (reported := _reported(response, url, entry)) is not None:
                return reported
            if response.usage.details.get("advisor_iterations"):
                return "An advisor model took part, whose tokens are billed at its own rates."
            usage = billed_usage(response)
            if not hasattr(self._calculator, "price"):
                return Price(
                    self._estimate(name, token_counts(usage)), "calculate_cost", request_fees=None
                )
            provider = response.provider_name or model.system
            tier = billed_service_tier(provider, response, entry.service_tier)
            price = self._calculator.price(
                usage,
                name,
                provider=provider,
                provider_url=url,
                at=entry.sent_at,
                context={**(response.provider_details or {}), **tier_context(tier)} or None,
            )
            return Price(
                total=Decimal(price.total),
                source=str(price.source),
                request_fees=getattr(price, "request_fees", None),
                version=getattr(price, "version", None),
            )
        except Exception as error:
            self._warn(name, error)
            return describe_error(error)

    def require_price(self, model: Model, settings: ModelSettings | None = None) -> None:
        """Refuse a request for which no price is known: before a send, where `FASTROAI_UNPRICED` is
        `fail`.

        What is looked for is the price of the model as it is asked for. Simulated models are never
        refused, nor models behind Pydantic AI's gateway, which tells the price with the answer.

        Raises:
            UnknownModelPriceError: No price is known. The message names model, provider, host and
                remedies.
            SettingsError: A variable has a value it may not have.
        """
        if getattr(model, "simulated", False) is True:
            return
        if (
            not hasattr(self._calculator, "price")
            or model.system == "test"
            or model.model_id.startswith("gateway/")
        ):
            return
        tier = asked_service_tier(model, settings)
        try:
            asked = (model.model_id, endpoint(model), tier)
            if asked in self._known:
                return
            self._calculator.price(
                RequestUsage(),
                model.model_name,
                provider=model.system,
                provider_url=endpoint(model),
                at=datetime.now(UTC),
                context=tier_context(tier) or None,
            )
        except SettingsError:
            raise
        except Exception as error:
            raise UnknownModelPriceError(
                f"{error} If its host bills at a listed provider's prices, name both in "
                f"FASTROAI_PROVIDER_HOSTS. Nothing was sent to {model.model_id!r}, as "
                "FASTROAI_UNPRICED is 'fail'; with 'warn' it is sent and booked as unpriced."
            ) from error
        self._known.add(asked)

    def upper_bound(
        self,
        model: Model,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> Decimal | None:
        """What a request can cost at most, in USD, exact: for one whose outcome is never known.

        It holds for the model that is asked for, by whichever service tier, hour and cache class it
        is billed.

        Returns:
            None: that can't be told; see `bounds.tokens_at_most` and `CostCalculator.max_cost`.
        """
        try:
            own = merged(model.settings, settings)
            if (
                not sends_setting(model, "max_tokens")
                or (tokens := tokens_at_most(messages, own, parameters)) is None
            ):
                return None
            ceiling = self._max_cost(model, asked_service_tier(model, settings))
            return ceiling.usd(*tokens) if ceiling else None
        except Exception:  # no request fails for want of a bound
            logger.debug(
                "What a request to %r can cost at most can't be told",
                model.model_name,
                exc_info=True,
            )
            return None

    def _max_cost(self, model: Model, tier: str | None) -> MaxCost | None:
        asked = (model.model_id, endpoint(model), tier)
        if asked not in self._max_costs:
            self._max_costs[asked] = self._find_max_cost(model, tier)
        return self._max_costs[asked]

    def _find_max_cost(self, model: Model, tier: str | None) -> MaxCost | None:
        calculator = self._calculator
        # Prices of someone's own know no ceiling, and gateways bill what they report.
        if (
            not isinstance(calculator, CostCalculator)
            or type(calculator).price is not CostCalculator.price
        ):
            return None
        if model.model_id.startswith(("gateway/", "openrouter:")):
            return None
        return calculator.max_cost(
            model.model_name,
            provider=model.system,
            provider_url=endpoint(model),
            at=datetime.now(UTC),
            tier=tier,
        )

    def _estimate(self, name: str, tokens: TokenCounts) -> Decimal:
        cost: int = self._calculator.calculate_cost(name, **asdict(tokens))
        return microcents_to_usd(cost)

    @staticmethod
    def _warn(name: str, error: Exception) -> None:
        if name not in _warned:
            _warned.add(name)
            logger.warning("Requests to model %r are recorded without a price. %s", name, error)


def _reported(response: ModelResponse, url: str | None, entry: LedgerEntry) -> Price | None:
    """What the answer itself says it costs, where those who say so are those who bill."""
    if isinstance(response.usage.cost, Decimal) and (entry.model_asked or "").startswith(
        "gateway/"
    ):
        return Price(response.usage.cost, "reported by the gateway", request_fees=None)
    details = response.provider_details or {}
    if response.provider_name != "openrouter" or not _is_amount(cost := details.get("cost")):
        return None
    if url and is_private_endpoint(url):
        return None
    total, source = Decimal(str(cost)), "reported by OpenRouter"
    if details.get("is_byok"):
        # With a key of one's own, OpenRouter bills its fee and the provider behind it the rest.
        if not _is_amount(upstream := details.get("upstream_inference_cost")):
            return None
        total, source = (
            total + Decimal(str(upstream)),
            f"{source}, with what the provider behind it bills",
        )
    return Price(total, source, request_fees=None)


def _is_amount(value: object) -> bool:
    return (
        isinstance(value, int | float | Decimal)
        and not isinstance(value, bool)
        and 0 <= value < float("inf")
    )


def billed_usage(response: ModelResponse) -> RequestUsage:
    """The usage of a response, with the calls of a provider's own tools that pydantic-ai does not
    count among it.
    """
    usage = response.usage
    calls: dict[str, int] = {}
    if response.provider_name == "openai":
        calls["storage_searches"] = sum(
            part.part_kind == "builtin-tool-call" and part.tool_name == "file_search"
            for part in response.parts
        )
    elif response.provider_name == "xai":
        calls = {
            name: usage.details.get(f"server_side_tools_{tool}", 0)
            for tool, name in _XAI_TOOLS.items()
        }
    calls = {
        name: count for name, count in calls.items() if count and not getattr(usage, name, None)
    }
    if not calls:
        return usage
    usage = copy(usage)
    for name, count in calls.items():
        setattr(usage, name, count)  # how RequestUsage carries what it has no field for
    return usage


def describe_error(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_LONGEST_REASON]
