"""Prices requests with a calculator; an error of it never loses a paid answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from ..errors import SettingsError, UnknownModelPriceError
from ..ledger.entries import LedgerEntry
from ..pricing.calculator import CostCalculator, basis_of_prices
from ..pricing.endpoints import on_domain
from ..pricing.max_cost import MaxCost
from ..pricing.money import EXACT, microcents_to_usd
from ..pricing.overrides import Revision
from ..pricing.price_list import Price, tier_context
from ..providers import canonical_provider
from ..replay.requests import RequestOfModel
from .billed_tools import unpriced_extra
from .models import endpoint, innermost, merged
from .raw_answers import NOT_SEEN, RawAnswer, inference_geo
from .service_tiers import asked_service_tier, billed_service_tier
from .stated_bills import litellm_estimate, stated_bill, unreadable_bill, who_states_bills
from .token_bounds import tokens_at_most
from .usage_reading import UnknownUsageError, read_usage, sane_counts

logger = logging.getLogger("fastroai.agent")
_LONGEST_REASON: Final = 500
_STATE_BILLS: Final = frozenset({"openrouter", "perplexity", "x-ai", "litellm"})
_warned: set[str] = set()
"""Models without a price, of the process: each run has a pricer, and a warning each is too many."""

_Asked = tuple[str, str | None, str | None]
"""A model's id, the URL of its API and a service tier."""

_max_costs: WeakKeyDictionary[Revision, tuple[object, dict[_Asked, MaxCost | None]]] = (
    WeakKeyDictionary()
)
"""By a calculator's overrides, with what else they depend on. From run to run, because to find one
takes longer than the rest of a request's way.
"""


class _Answer:
    """What is to be priced: a response, with the usage and the URL that are found out of it."""

    __slots__ = ("entry", "model", "name", "raw", "response", "url", "usage")

    def __init__(
        self, response: ModelResponse, model: Model, entry: LedgerEntry, raw: RawAnswer
    ) -> None:
        self.response, self.model, self.entry, self.raw = response, model, entry, raw
        self.name = response.model_name or model.model_name
        self.usage: RequestUsage = response.usage
        self.url: str | None = None


@dataclass(eq=False)
class Pricer:
    """Asks a calculator what requests cost; whatever that raises, a paid answer is not lost.

    Args:
        calculator: A `CostCalculator`, or an object that has only its `calculate_cost`.
    """

    _calculator: Any
    _known: frozenset[_Asked] = frozenset()
    _unpriced: frozenset[str] = frozenset()
    """Ids of models of which an answer had no price."""

    def price(
        self,
        response: ModelResponse,
        model: Model,
        entry: LedgerEntry,
        raw: RawAnswer = NOT_SEEN,
    ) -> tuple[RequestUsage, Price | str]:
        """What is billed for one response, and its price, or why that is unknown.

        Where the answer states its bill, that is the price; what the list says otherwise is noted
        in its source.
        """
        answer = _Answer(response, model, entry, raw)
        try:
            answer.url = endpoint(model, response.provider_url)
            price = self._price(answer)
        except Exception as error:
            self._warn(answer.name, error)
            price = describe_error(error)
        if isinstance(price, str):
            self._unpriced |= {model.model_id}
        return answer.usage, price

    def _price(self, answer: _Answer) -> Price | str:
        stated = stated_bill(answer.response, answer.raw, answer.url, answer.entry)
        try:
            answer.usage = read_usage(answer.response, answer.raw)
        except UnknownUsageError as error:
            return stated or str(error)
        missing = unpriced_extra(answer.response, answer.raw, answer.url)
        if stated is None:
            missing = unreadable_bill(answer.response, answer.raw, answer.url) or missing
            return missing or self._listed(answer)
        return stated if missing else self._beside_the_list(stated, answer)

    def _beside_the_list(self, stated: Price, answer: _Answer) -> Price:
        """What an answer says that it costs, with what the list says where it says otherwise."""
        try:
            listed = self._listed(answer)
        except Exception:  # no list has it, which is why the answer's word is worth so much
            return stated
        if listed.total == stated.total:
            return replace(stated, cache_saved=listed.cache_saved)
        return replace(stated, source=f"{stated.source}; {listed.source} says {listed.total:f}")

    def _listed(self, answer: _Answer) -> Price:
        response, entry = answer.response, answer.entry
        if not hasattr(self._calculator, "price"):
            return self._estimated(answer)
        provider = response.provider_name or answer.model.system
        tier = billed_service_tier(provider, response, entry.service_tier, answer.raw)
        context = {**(response.provider_details or {}), **tier_context(tier)}
        if geo := inference_geo(answer.raw):
            context["inference_geo"] = geo
        price_of = partial(
            self._calculator.price,
            model=answer.name,
            provider=provider,
            provider_url=answer.url,
            at=entry.sent_at,
            context=context or None,
        )
        price = price_of(answer.usage)
        return Price(
            total=Decimal(price.total),
            source=f"{price.source}{_litellm_remark(answer.raw, price.total)}",
            request_fees=getattr(price, "request_fees", None),
            version=getattr(price, "version", None),
            cache_saved=_saved_by_cache(answer.usage, Decimal(price.total), price_of),
        )

    def _estimated(self, answer: _Answer) -> Price:
        tokens = asdict(sane_counts(answer.usage))
        microcents: int = self._calculator.calculate_cost(answer.name, **tokens)
        return Price(microcents_to_usd(microcents), "calculate_cost", request_fees=None)

    def require_price(self, model: Model, settings: ModelSettings | None = None) -> None:
        """Refuse a request for which no price is known: before a send, where `FASTROAI_UNPRICED` is
        `fail`.

        What is looked for is the price of the model as it is asked for. Simulated models are never
        refused, nor models behind those who tell the price with the answer, nor a deployment at
        Azure, whose model only the answer names, until one of its answers had no price.

        Raises:
            UnknownModelPriceError: No price is known. The message names model, provider, host and
                remedies.
            SettingsError: A variable has a value it may not have.
        """
        if not hasattr(self._calculator, "price") or _needs_no_price(model):
            return
        tier = asked_service_tier(model, settings)
        try:
            asked = (model.model_id, endpoint(model), tier)
            if asked in self._known:
                return
            if self._is_told_by_the_answer(model) and model.model_id not in self._unpriced:
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
        self._known |= {asked}

    def _is_told_by_the_answer(self, model: Model) -> bool:
        url = endpoint(model)
        if url and (on_domain(url, "azure.com") or on_domain(url, "azure-api.net")):
            return canonical_provider(model.system) in ("azure", "openai")
        return _states_bill(model)

    def max_cost(self, model: Model, request: RequestOfModel | None) -> Decimal | None:
        """What a request can cost at most, in USD, exact: for one whose outcome is never known.

        It holds for the model that is asked for, by whichever service tier, hour and cache class it
        is billed.

        Returns:
            None: that can't be told; see `bounds.tokens_at_most` and `CostCalculator.max_cost`.
        """
        if request is None:  # it is no chat
            return None
        # Prices of someone's own have no known maximum.
        if getattr(type(self._calculator), "price", None) is not CostCalculator.price:
            return None
        try:
            if "max_tokens" in innermost(model).unsupported_settings:
                return None
            settings = request.settings
            asked_with = merged(model.settings, settings)
            tokens = tokens_at_most(request.messages, asked_with, request.parameters)
            if tokens is None:
                return None
            revision, basis = self._calculator.overrides.revision, basis_of_prices()
            known = _max_costs.get(revision)
            if known is None or known[0] != basis:
                known = _max_costs[revision] = (basis, {})
            asked = (model.model_id, endpoint(model), asked_service_tier(model, settings))
            if asked not in known[1]:
                known[1][asked] = self._find_max_cost(model, *asked[1:])
            rates = known[1][asked]
            return rates.usd(*tokens) if rates else None
        except Exception:  # no request fails for want of a bound
            logger.debug(
                "What a request to %r can cost at most can't be told",
                model.model_name,
                exc_info=True,
            )
            return None

    def _find_max_cost(self, model: Model, url: str | None, tier: str | None) -> MaxCost | None:
        # Gateways bill what they report.
        if _states_bill(model) or model.model_id.startswith("gateway/"):
            return None
        found: MaxCost | None = self._calculator.max_cost(
            model.model_name,
            provider=model.system,
            provider_url=url,
            at=datetime.now(UTC),
            tier=tier,
        )
        return found

    @staticmethod
    def _warn(name: str, error: Exception) -> None:
        if name not in _warned:
            _warned.add(name)
            logger.warning("Requests to model %r are recorded without a price. %s", name, error)


def _saved_by_cache(
    usage: RequestUsage, usd: Decimal, price_of: Callable[[RequestUsage], Any]
) -> Decimal | None:
    """What cached tokens cost less than as plain input of a request that is otherwise the same: as
    long, so that it is in the same tier.
    """
    if not (usage.cache_read_tokens or usage.cache_write_tokens):
        return None
    uncached = copy(usage)
    for name in vars(usage):
        if name.startswith("cache_") and name.endswith("_tokens"):
            setattr(uncached, name, 0)
    try:
        return EXACT.subtract(Decimal(price_of(uncached).total), usd)
    except Exception:  # what the request cost is known all the same
        return None


def _litellm_remark(raw: RawAnswer, usd: Decimal) -> str:
    estimate = litellm_estimate(raw)
    return f"; LiteLLM says {estimate}" if estimate and estimate != usd else ""


def _needs_no_price(model: Model) -> bool:
    """Whether nothing is sent, or to a gateway, which states its bill."""
    if getattr(model, "simulated", False) is True or model.system == "test":
        return True
    return model.model_id.startswith("gateway/")


def _states_bill(model: Model) -> bool:
    if type(innermost(model)).__name__ == "XaiModel":
        return False  # it speaks gRPC, where the answer is not seen
    return who_states_bills(model.system, endpoint(model)) in _STATE_BILLS


def describe_error(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_LONGEST_REASON]
