"""What an answer says that it costs, where those who say so are those who bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation, localcontext
from typing import Final

from pydantic_ai.messages import ModelResponse

from ..ledger.entries import LedgerEntry
from ..pricing.calculator import named_provider
from ..pricing.endpoints import is_private_endpoint, on_domain
from ..pricing.money import EXACT
from ..pricing.price_list import Price, is_listed_host
from ..providers import canonical_provider
from .raw_answers import Json, RawAnswer, count

_COSTS: Final = frozenset({"cost", "cost_in_usd_ticks"})
_LITELLM_HEADER: Final = "x-litellm-response-cost"


def stated_bill(
    response: ModelResponse, raw: RawAnswer, url: str | None, entry: LedgerEntry
) -> Price | None:
    """The price that the answer states; None: it states none that can be relied on.

    Args:
        response: As pydantic-ai reads it.
        raw: As it came.
        url: Where it was sent. A local or private endpoint states no bill, unless
            `FASTROAI_PROVIDER_HOSTS` names it.
        entry: Of the request.
    """
    is_of_gateway = str(entry.model_asked).startswith("gateway/")
    if is_of_gateway and isinstance(response.usage.cost, Decimal):
        return Price(response.usage.cost, "reported by the gateway", request_fees=None)
    usage = _told(response, raw)
    usd = _litellms(usage, raw)
    if usd is None and usage.keys().isdisjoint(_COSTS):
        return None  # nearly always; to ask whose host it is takes longer
    biller = who_states_bills(response.provider_name, url)
    if biller in _IN_USAGE:
        return _IN_USAGE[biller](usage)
    if usd is None or not (biller == "litellm" or _is_nobodys(biller, url)):
        return None
    return Price(usd, "reported by LiteLLM", request_fees=None)


def unreadable_bill(response: ModelResponse, raw: RawAnswer, url: str | None) -> str | None:
    """Why the bill that an answer states can't be relied on, nor any list beside it; None: it
    states one that can, or none.
    """
    usage = _told(response, raw)
    if usage.keys().isdisjoint(_COSTS) and not usage.get("is_byok"):
        return None
    biller = who_states_bills(response.provider_name, url)
    if biller not in _IN_USAGE or _IN_USAGE[biller](usage) is not None:
        return None
    if usage.get("is_byok"):
        return "OpenRouter does not say what the provider behind it bills for a key of your own."
    told = {name: usage[name] for name in _COSTS if usage.get(name) is not None}
    return f"The bill that the answer states is no amount: {told}." if told else None


def _told(response: ModelResponse, raw: RawAnswer) -> Json:
    """The last usage that an answer tells."""
    told = raw.usages
    return told[-1] if told else _as_told(response)


def _litellms(usage: Json, raw: RawAnswer) -> Decimal | None:
    usd = litellm_estimate(raw)
    if usd is None and "x-litellm-version" in raw.headers:
        # At the end of a stream, where it is told to (include_cost_in_streaming_usage).
        usd = _amount(usage.get("cost"))
    return usd or None


def litellm_estimate(raw: RawAnswer) -> Decimal | None:
    """What a LiteLLM proxy books for an answer: a check of the price, where its host bills as
    another provider. Of a model that it knows no price of it says 0.
    """
    cost = raw.headers.get(_LITELLM_HEADER)
    if not cost:
        return None
    try:
        return _amount(Decimal(cost)) or None
    except InvalidOperation:
        return None


def who_states_bills(provider: str | None, url: str | None) -> str | None:
    """Whose word on a bill counts at a URL: whom `FASTROAI_PROVIDER_HOSTS` names, else whose host
    it is.
    """
    if not url:
        return canonical_provider(provider) if provider else None
    if named := named_provider(url):
        return named
    if is_private_endpoint(url):
        return None
    for biller, domain in _DOMAINS.items():
        if on_domain(url, domain):
            return biller
    return "litellm" if provider == "litellm" else None


def _is_nobodys(biller: str | None, url: str | None) -> bool:
    return (
        biller is None
        and url is not None
        and not is_private_endpoint(url)
        and not is_listed_host(url)
    )


def _as_told(response: ModelResponse) -> Json:
    """What pydantic-ai keeps of OpenRouter's usage, where the answer itself was not seen."""
    details = response.provider_details
    if not details or response.provider_name != "openrouter":
        return {}
    upstream = {"upstream_inference_cost": details.get("upstream_inference_cost")}
    return {**details, "cost_details": upstream}


def _of_openrouter(usage: Json) -> Price | None:
    """`usage.cost`, which may be 0 (openrouter.ai, usage accounting)."""
    if (total := _amount(usage.get("cost"))) is None:
        return None
    source = "reported by OpenRouter"
    if usage.get("is_byok"):
        # With a key of one's own, OpenRouter bills its fee and the provider behind it the rest.
        if (upstream := _amount(count(usage, "cost_details", "upstream_inference_cost"))) is None:
            return None
        with localcontext(EXACT):
            total += upstream
        source = f"{source}, with what the provider behind it bills"
    return Price(total, source, request_fees=None)


def _of_perplexity(usage: Json) -> Price | None:
    """`usage.cost.total_cost`, with searches and citations (docs.perplexity.ai, chat API)."""
    cost = usage.get("cost")
    total = _amount(count(cost, "total_cost") if isinstance(cost, dict) else cost)
    return None if total is None else Price(total, "reported by Perplexity", request_fees=None)


def _of_xai(usage: Json) -> Price | None:
    """`usage.cost_in_usd_ticks`, of 1e-10 USD (docs.x.ai, cost tracking)."""
    if (ticks := _amount(usage.get("cost_in_usd_ticks"))) is None:
        return None
    with localcontext(EXACT):
        return Price(ticks.scaleb(-10), "reported by xAI", request_fees=None)


_IN_USAGE: Mapping[str | None, Callable[[Json], Price | None]] = {
    "openrouter": _of_openrouter,
    "perplexity": _of_perplexity,
    "x-ai": _of_xai,
}
_DOMAINS: Final = {"openrouter": "openrouter.ai", "perplexity": "perplexity.ai", "x-ai": "x.ai"}


def _amount(value: object) -> Decimal | None:
    """An amount in USD; None: it is no number, negative or without end."""
    if type(value) not in (int, float, Decimal):  # nor a bool, which is an int
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and amount >= 0 else None
