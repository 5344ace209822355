"""Outcome of a model request: tokens, price and state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError, UserError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.usage import RequestUsage

from ..ledger.entries import NOT_SENT, EntryState, LedgerEntry
from ..pricing.price_list import Price, further_usage
from .pricer import Pricer, describe_error
from .raw_answers import NOT_SEEN, RawAnswer
from .retries import NOT_SENT_PHASES
from .service_tiers import billed_service_tier
from .usage_reading import sane_counts

_MAYBE_BILLED = frozenset({408, 499, 504, 520, 522, 524, 598, 599})
"""Statuses that say that somebody gave up waiting, and nothing about what the model did, or what
will be billed for it: Azure bills for 408 (learn.microsoft.com, Azure OpenAI, manage costs).
"""


def settle_answer(
    entry: LedgerEntry,
    response: ModelResponse,
    model: Model,
    pricer: Pricer,
    raw: RawAnswer = NOT_SEEN,
) -> LedgerEntry:
    """The entry of a request with a complete answer: charged, or unpriced when its tokens or its
    price are unknown.
    """
    usage, price = pricer.price(response, model, entry, raw)
    answer = _answer(entry, response, model, usage, raw)
    if isinstance(price, str):
        return entry.settled(EntryState.UNPRICED, error=price, **answer)
    # pydantic-ai looks up a price only where there is none yet: its cost limits then hold at the
    # same prices.
    response.usage.cost = price.total
    return entry.settled(EntryState.CHARGED, **_charge(price), **answer)


def settle_stream(
    entry: LedgerEntry,
    stream: StreamedResponse,
    model: Model,
    pricer: Pricer,
    error: BaseException | None,
    raw: RawAnswer = NOT_SEEN,
) -> LedgerEntry:
    """The entry of a stream: as an answer when it came to its end, else unsettled with what is
    known of it.
    """
    reason = "Left before its end"
    if error is not None and not isinstance(error, GeneratorExit):
        reason = describe_error(error)
    try:
        response = stream.get()
    except Exception as unreadable:
        return entry.settled(
            EntryState.UNSETTLED, error=f"{reason}; what came of it can't be read: {unreadable!r}"
        )
    if response.state == "complete":
        return settle_answer(entry, response, model, pricer, raw)
    if not response.usage.has_values():
        return entry.settled(
            EntryState.UNSETTLED,
            error=f"{reason}; its tokens are unknown.",
            **_answer(entry, response, model, response.usage, raw),
        )
    usage, price = pricer.price(response, model, entry, raw)
    return entry.settled(
        EntryState.UNSETTLED,
        error=f"{reason}; tokens and cost are those reported until then.",
        **(_charge(price) if isinstance(price, Price) else {}),
        **_answer(entry, response, model, usage, raw),
    )


def settle_failure(
    entry: LedgerEntry, error: BaseException, *, left: bool | None = None, status: int | None = None
) -> LedgerEntry:
    """The entry of a request that raised: refused when nothing can be billed for it, else
    unsettled.

    Args:
        entry: As it was booked before the send.
        error: What the model raised.
        left: Whether the request was seen to leave this machine; None where that can't be seen.
        status: The HTTP status that was seen to be its answer.
    """
    reason = describe_error(error)
    if left is False and status is None:
        return entry.settled(EntryState.REFUSED, error=f"{NOT_SENT}{reason}")
    if isinstance(error, ModelHTTPError):
        return entry.settled(_state_after(error), error=reason)
    if status is not None:
        # What was seen outweighs an error that says the request was not sent: it may be about
        # another attempt.
        state = EntryState.REFUSED if _refuses(status) else EntryState.UNSETTLED
        return entry.settled(state, error=f"HTTP {status}; {reason}")
    if not left and _says_not_sent(error):
        return entry.settled(EntryState.REFUSED, error=f"{NOT_SENT}{reason}")
    return entry.settled(EntryState.UNSETTLED, error=reason)


def _state_after(error: ModelHTTPError) -> EntryState:
    if error.in_stream or error.status_code in _MAYBE_BILLED or _was_filtered(error):
        return EntryState.UNSETTLED
    return EntryState.REFUSED


def _says_not_sent(error: BaseException) -> bool:
    if isinstance(error, ModelConnectionError):
        return error.phase in NOT_SENT_PHASES
    return isinstance(error, UserError)


def settle_resent(entry: LedgerEntry, status: int | None) -> LedgerEntry:
    """The entry of an attempt after which a client sent again by itself, by the HTTP status that
    was its answer.
    """
    answer = "No answer was seen" if status is None else f"HTTP {status}"
    state = EntryState.REFUSED if _refuses(status) else EntryState.UNSETTLED
    return entry.settled(state, error=f"{answer}; the client sent again by itself.")


def _refuses(status: int | None) -> bool:
    """Whether an HTTP status says that nothing is billed: an error, or a redirection to
    elsewhere.
    """
    return status is not None and status >= 300 and status not in _MAYBE_BILLED


def _was_filtered(error: ModelHTTPError) -> bool:
    """Whether a content filter stopped the request, which Azure may bill all the same
    (learn.microsoft.com, Azure OpenAI, manage costs: status 400 with a filtered prompt).
    """
    body = error.body if isinstance(error.body, Mapping) else {}
    inner = body.get("error")
    body = inner if isinstance(inner, Mapping) else body
    return error.status_code == 400 and body.get("code") == "content_filter"


def _charge(price: Price) -> dict[str, Any]:
    """What an entry keeps of a price."""
    return {
        "cost_usd": price.total,
        "request_fees_usd": price.request_fees,
        "cache_saved_usd": price.cache_saved,
        "price_source": price.source,
        "price_version": price.version,
    }


def _answer(
    entry: LedgerEntry,
    response: ModelResponse,
    model: Model,
    usage: RequestUsage,
    raw: RawAnswer,
) -> dict[str, Any]:
    """What an entry keeps of an answer."""
    provider = response.provider_name or model.system
    return {
        "tokens": sane_counts(usage),
        "further_usage": further_usage(usage),
        "model_answered": response.model_name,
        "provider": provider,
        "service_tier": billed_service_tier(provider, response, entry.service_tier, raw),
        "response_id": response.provider_response_id,
    }
