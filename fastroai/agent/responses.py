"""Builds a ChatResponse from a finished pydantic-ai run."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.usage import RunUsage

from ..ledger.entries import EntryState, LedgerEntry, total_usd
from ..pricing.calculator import CostCalculator
from ..pricing.money import usd_to_microcents
from ..pricing.token_counts import TOKEN_COUNTERS, summed
from .schemas import ChatResponse

logger = logging.getLogger("fastroai.agent")


def read_response(
    result: Any,
    output: object,
    *,
    entries: tuple[LedgerEntry, ...],
    calculator: CostCalculator,
    fallback_model: str | None,
    output_tools: Collection[str],
    trace_id: str | None,
    processing_time_ms: int,
) -> ChatResponse[Any]:
    """Make the response of a finished run.

    Tokens and cost come from the metered entries. Where there are none (an agent that was replaced
    by a fake, or that answered from a record), they come from what the result reports, priced as
    one request.
    """
    usage = read_usage(result)
    model = answering_model(result) or fallback_model
    counted = metered_counts(entries) if entries else reported_counts(usage, calculator, model)
    return ChatResponse(
        output=output,
        content=output if isinstance(output, str) else str(output),
        model=model,
        **counted,
        processing_time_ms=processing_time_ms,
        tool_calls=tool_calls_of_run(result, output_tools),
        tool_call_count=_count(usage, "tool_calls"),
        trace_id=trace_id,
        usage_details=_details(usage),
        entries=entries,
        messages=conversation_of(result),
    )


def metered_counts(entries: Collection[LedgerEntry]) -> dict[str, Any]:
    """Tokens, cost and requests as they were metered."""
    spent = [entry for entry in entries if entry.is_spend]
    tokens = summed(entry.tokens for entry in spent)
    sent = [entry.request_count for entry in entries if entry.state is not EntryState.REPLAYED]
    cost = known_cost(spent)
    return {
        **tokens,
        "total_tokens": tokens["input_tokens"] + tokens["output_tokens"],
        "cost_usd": cost,
        "cost_microcents": usd_to_microcents(cost) if cost is not None else 0,
        "request_count": sum(sent),
    }


def known_cost(spent: Collection[LedgerEntry]) -> Decimal | None:
    """What was spent in USD; None where nothing at all is known of what was sent: that is not 0."""
    is_unknown = spent and all(entry.cost_usd is None for entry in spent)
    return None if is_unknown else total_usd(spent)


def reported_counts(usage: object, calculator: CostCalculator, model: str | None) -> dict[str, Any]:
    """The same as a result reports it."""
    tokens = {name: _count(usage, name) for name in TOKEN_COUNTERS}
    total = _count(usage, "total_tokens") or tokens["input_tokens"] + tokens["output_tokens"]
    return {
        **tokens,
        "total_tokens": total,
        "cost_microcents": estimated_cost(calculator, model, tokens),
        "request_count": _count(usage, "requests") or 1,
    }


def read_usage(result: object) -> Any:
    """The usage of a run: a property that holds it in pydantic-ai 2, a method that returns it
    in 1.
    """
    usage = getattr(result, "usage", None)
    # RunUsage may itself be callable (deprecated), so its type is asked, not `callable`.
    return usage if isinstance(usage, RunUsage) or not callable(usage) else usage()


def answering_model(result: Any) -> str | None:
    """The name of the model that answered last, or None where no message tells."""
    try:
        for message in reversed(result.all_messages()):
            name = getattr(message, "model_name", None)
            if name and isinstance(name, str):
                return name
    except Exception as error:
        logger.debug("The messages of a run could not be read for their model: %r", error)
    return None


def tool_calls_of_run(result: Any, output_tools: Collection[str] = ()) -> list[dict[str, Any]]:
    """The tools a run called, without the calls that only carried its output; [] where they can't
    be read.
    """
    try:
        messages = result.new_messages()
    except Exception as error:
        logger.debug("The messages of a run could not be read for their tool calls: %r", error)
        return []
    return tool_calls_in(messages, output_tools)


def tool_calls_in(
    messages: Iterable[Any], output_tools: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The tool calls in messages, recognised by their `tool_name` and `args`. Never raises."""
    try:
        parts = [part for message in messages for part in getattr(message, "parts", ())]
        return [
            {
                "tool_name": part.tool_name,
                "args": tool_arguments(part.args),
                "tool_call_id": getattr(part, "tool_call_id", None),
            }
            for part in parts
            if is_tool_call(part) and part.tool_name not in output_tools
        ]
    except Exception as error:
        logger.debug("Tool calls could not be read from messages: %r", error)
        return []


def is_tool_call(part: object) -> bool:
    return hasattr(part, "tool_name") and hasattr(part, "args")


def tool_arguments(args: object) -> dict[str, Any]:
    """Arguments as a dict; what is no object in JSON, or not valid JSON, is empty."""
    if isinstance(args, str):
        try:
            args = json.loads(args)
        except ValueError:
            return {}
    return dict(args) if isinstance(args, Mapping) else {}


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return value if type(value) is int else 0


def _details(usage: object) -> dict[str, int]:
    details = getattr(usage, "details", None)
    if not isinstance(details, Mapping):
        return {}
    return {str(name): count for name, count in details.items() if type(count) is int}


def estimated_cost(calculator: CostCalculator, model: str | None, tokens: Mapping[str, int]) -> int:
    if model is None:
        logger.warning(
            "No model is named by the response, so its cost is recorded as 0. Name one: "
            "FastroAgent(agent=…, model=…)."
        )
        return 0
    return calculator.calculate_cost(model, **tokens)


def conversation_of(result: Any) -> list[ModelRequest | ModelResponse]:
    try:
        messages = list(result.all_messages())
    # whoever made the agent, its answer is paid for and not lost for want of its messages
    except Exception:
        return []
    return [message for message in messages if isinstance(message, ModelRequest | ModelResponse)]
