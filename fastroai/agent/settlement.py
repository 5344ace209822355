"""What became of a model request: its tokens, its price, its state."""

from __future__ import annotations

import logging
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final

from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError, UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.usage import RequestUsage

from ..usage.ledger import EntryState, LedgerEntry, TokenCounts
from ..usage.units import microcents_to_usd
from .transience import NOT_SENT_PHASES

logger = logging.getLogger("fastroai.agent")

# A gateway that gave up waiting says nothing about what the model behind it did, or will bill.
_GATEWAY_TIMEOUTS = frozenset({504, 524})
_LONGEST_REASON: Final = 500
_warned: set[str] = set()


def settle_answer(entry: LedgerEntry, response: ModelResponse, model: Model, pricer: Pricer) -> LedgerEntry:
    """The entry of a request with a complete answer: charged, or unpriced when its tokens or its price are unknown."""
    usage, answer = response.usage, _answer(response)
    if not usage.has_values() or usage.unmeasured_requests:
        return entry.settled(EntryState.UNPRICED, error="The provider reported no token usage.", **answer)
    cost, source = pricer.price(usage, response, model, entry)
    if cost is None:
        return entry.settled(EntryState.UNPRICED, error=source, **answer)
    # pydantic-ai looks up a price only where there is none yet: its cost limits then hold at the same prices.
    usage.cost = cost
    return entry.settled(EntryState.CHARGED, cost_usd=cost, price_source=source, **answer)


def settle_stream(
    entry: LedgerEntry, stream: StreamedResponse, model: Model, pricer: Pricer, error: BaseException | None
) -> LedgerEntry:
    """The entry of a stream: as an answer when it came to its end, else unsettled with what is known of it."""
    reason = "Left before its end" if error is None or isinstance(error, GeneratorExit) else _reason(error)
    try:
        response = stream.get()
    except Exception as unreadable:
        return entry.settled(EntryState.UNSETTLED, error=f"{reason}; what came of it can't be read: {unreadable!r}")
    if response.state == "complete":
        return settle_answer(entry, response, model, pricer)
    if not response.usage.has_values():
        return entry.settled(EntryState.UNSETTLED, error=f"{reason}; its tokens are unknown.", **_answer(response))
    cost, source = pricer.price(response.usage, response, model, entry)
    return entry.settled(
        EntryState.UNSETTLED,
        cost_usd=cost,
        price_source=source if cost is not None else None,
        error=f"{reason}; tokens and cost are those reported until then.",
        **_answer(response),
    )


def settle_failure(entry: LedgerEntry, error: BaseException) -> LedgerEntry:
    """The entry of a request that raised: refused when nothing can be billed for it, else unsettled."""
    state, reason = EntryState.UNSETTLED, _reason(error)
    if isinstance(error, UserError) or (isinstance(error, ModelConnectionError) and error.phase in NOT_SENT_PHASES):
        state, reason = EntryState.REFUSED, f"Not sent: {reason}"
    elif isinstance(error, ModelHTTPError) and not error.in_stream and error.status_code not in _GATEWAY_TIMEOUTS:
        state = EntryState.REFUSED
    return entry.settled(state, error=reason)


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
    """Asks a calculator for the price of one response; whatever that raises, the paid answer is not lost.

    Args:
        calculator: A `CostCalculator`, or an object that has only its `calculate_cost`.
    """

    def __init__(self, calculator: Any) -> None:
        self._calculator = calculator

    def price(
        self, usage: RequestUsage, response: ModelResponse, model: Model, entry: LedgerEntry
    ) -> tuple[Decimal | None, str]:
        """USD and where the price comes from; or None and why it is unknown."""
        name = response.model_name or model.model_name
        if isinstance(usage.cost, Decimal) and (entry.model_asked or "").startswith("gateway/"):
            return usage.cost, "reported by the gateway"
        try:
            if not hasattr(self._calculator, "price"):
                return self._estimate(name, token_counts(usage)), "calculate_cost"
            price = self._calculator.price(
                usage,
                name,
                provider=response.provider_name or model.system,
                provider_url=response.provider_url or model.base_url,
                at=entry.sent_at,
                context=response.provider_details,
            )
            return Decimal(price.total), str(price.source)
        except Exception as error:
            self._warn(name, error)
            return None, _reason(error)

    def _estimate(self, name: str, tokens: TokenCounts) -> Decimal:
        cost: int = self._calculator.calculate_cost(name, **asdict(tokens))
        return microcents_to_usd(cost)

    @staticmethod
    def _warn(name: str, error: Exception) -> None:
        if name not in _warned:
            _warned.add(name)
            logger.warning("Requests to model %r are recorded without a price. %s", name, error)


def _answer(response: ModelResponse) -> dict[str, Any]:
    """What an entry keeps of an answer."""
    return {
        "tokens": token_counts(response.usage),
        "model_answered": response.model_name,
        "response_id": response.provider_response_id,
    }


def _reason(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_LONGEST_REASON]
