"""Which price list entry a model request is billed by; the only module that uses genai-prices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from ..errors import UnknownModelPriceError
from .units import EXACT


@dataclass(frozen=True, slots=True)
class Price:
    """What one model request costs.

    Attributes:
        total: USD, exact, not rounded.
        source: Data set, version, provider and model of the price, or which override.
    """

    total: Decimal
    source: str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One reading of a model's name.

    Attributes:
        provider: Lower case, and genai-prices' id where it has one. None: not named.
        model: Lower case, without the provider's prefix.
    """

    provider: str | None
    model: str


_ALIASES = {
    "azure-responses": "azure",
    "bedrock": "aws",
    "bedrock-mantle": "aws",
    "gateway/chat": "openai",
    "gateway/converse": "aws",
    "gateway/responses": "openai",
    "google-cloud": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "grok": "x-ai",
    "openai-chat": "openai",
    "openai-responses": "openai",
    "together-ai": "together",
    "together_ai": "together",
    "vertexai": "google",
    "voyage": "voyageai",
    "xai": "x-ai",
}
"""pydantic-ai's provider names, past ones too, for what genai-prices lists under another id."""

UNMETERED = frozenset({"ollama", "openai-chatgpt", "openai-codex", "outlines", "sentence-transformers", "vllm"})
"""Models run by the user, or paid by a subscription: no token is billed, so no list price is theirs."""

PROVIDERS = UNMETERED | frozenset(
    # pydantic-ai's own, then genai-prices' ids
    """
    alibaba anthropic azure cerebras cohere crusoe deepseek elevenlabs fireworks github github-copilot google groq
    heroku huggingface litellm meta mistral moonshotai nebius novita openai openai-decisions openrouter ovhcloud
    perplexity sambanova snowflake system-one together typesafe vercel voyageai x-ai zai
    arcee avian aws baseten cloudflare cursor databricks doubleword minimax modal quicksilverpro zhipuai
    huggingface_cerebras huggingface_fireworks-ai huggingface_groq huggingface_hyperbolic huggingface_nebius
    huggingface_novita huggingface_nscale huggingface_ovhcloud huggingface_publicai huggingface_sambanova
    huggingface_together
    """.split()  # noqa: SIM905  # as a list it would be a page long
)
"""Those who send bills, by canonical name. Only these are taken off a model's name as its prefix."""

_OTHER_PREFIX = re.compile(r"(?!ft$)[a-z][a-z_-]*")
_BEDROCK = re.compile(
    r"(?:(?:apac|au|ca|eu|global|jp|us|us-gov)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|meta|mistral|nvidia|openai|qwen|writer)\."
)
_VERSION = re.compile(
    r"(?:[-@](?:20\d\d-?[01]\d-?[0-3]\d|2\d(?:0[1-9]|1[0-2])|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])|00\d|latest)"
    r"(?:-v\d+(?::\d+)?)?|-v\d+:\d+)$"
)


def canonical_provider(provider: str) -> str:
    """One name for all that pydantic-ai calls a provider: `openai-chat` is `openai`, `bedrock` is `aws`."""
    name = provider.strip().lower()
    if name in _ALIASES:
        return _ALIASES[name]
    name = name.removeprefix("gateway/")
    return _ALIASES.get(name, name)


def read_model_name(name: str, provider: str | None = None) -> tuple[ModelRef, ...]:
    """What a model's name may mean, the likeliest first.

    A prefix that names a provider is taken off: `openai:gpt-4o`. Any other colon belongs to the name: a Bedrock version
    (`…-v2:0`), an Ollama tag (`llama3:8b`), a fine-tune (`ft:gpt-4o:…`). A prefix of letters that names no provider we
    know (`acme:gpt-4o`) may be either, so the whole name comes first.

    Args:
        name: `provider:model`, or a bare model name as a response gives it.
        provider: The provider when it is known otherwise; it beats the prefix.
    """
    whole = name.strip().lower()
    given = canonical_provider(provider) if provider and provider.strip() else None
    head, colon, tail = whole.partition(":")
    if not colon or not tail:
        return (ModelRef(given, whole),)
    prefix = canonical_provider(head)
    if prefix in PROVIDERS:
        readings = [ModelRef(given or prefix, tail)]
        return tuple(readings if given is None else [*readings, ModelRef(given, whole)])
    readings = [ModelRef(given, whole)]
    if _OTHER_PREFIX.fullmatch(head):
        readings.append(ModelRef(given or prefix, tail))
    return tuple(readings)


def spellings(model: str) -> Iterator[str]:
    """A model's name, then ever shorter ones for the same model: without its version, without path or vendor.

    `us.anthropic.claude-3-5-sonnet-20241022-v2:0` ends as `claude-3-5-sonnet`, `openai/gpt-4o-2024-08-06` as `gpt-4o`.
    """
    short = _BEDROCK.sub("", model.rpartition("/")[2], count=1)
    seen: set[str] = set()
    for spelling in (model, _VERSION.sub("", model), short, _VERSION.sub("", short)):
        if spelling and spelling not in seen:
            seen.add(spelling)
            yield spelling


def list_price(
    usage: object,
    refs: Iterable[ModelRef],
    *,
    url: str | None = None,
    at: datetime | None = None,
    context: Mapping[str, object] | None = None,
) -> Price:
    """The price that genai-prices lists for one request.

    The URL says best who sends the bill, then the provider's name. By the model's name alone is priced what names no
    provider, or one that is nobody's and has no URL: pydantic-ai's `function` and `test` models, offline models.

    Args:
        usage: Token counts as attributes, under genai-prices' names.
        refs: Readings of the model's name; the first that is listed counts.
        url: Base URL of the API that answered. A local or private one is nobody's list price.
        at: When the request was sent, timezone-aware. None: now.
        context: What the response says of itself, such as its service tier; values that are not strings are left out.

    Raises:
        UnknownModelPriceError: None of the readings is listed.
        ValueError: The counts contradict each other.
    """
    from genai_prices import __version__, calc_price

    when = at or datetime.now(UTC)
    tags = {key: value for key, value in (context or {}).items() if isinstance(value, str)}
    refusal: UnknownModelPriceError | None = None
    for ref in refs:
        try:
            where = _where_listed(ref, url)
            with localcontext(EXACT):
                found = calc_price(usage, ref.model, genai_request_timestamp=when, price_context=tags or None, **where)
        except UnknownModelPriceError as error:
            refusal = refusal or error
        except LookupError:
            refusal = refusal or _unlisted(ref, url, "the price list does not have it")
        else:
            updated = f" updated {found.auto_update_timestamp:%Y-%m-%d}" if found.auto_update_timestamp else ""
            by = "" if where else ", by model name"
            source = f"genai-prices {__version__}{updated}: {found.provider.id}/{found.model.id}{by}"
            return Price(total=found.total_price, source=source)
    raise refusal or UnknownModelPriceError("No price is listed: no model is named.")


def _where_listed(ref: ModelRef, url: str | None) -> dict[str, Any]:
    """The part of the price list that may be asked about a model, as keyword arguments of `calc_price`."""
    if url and is_private_endpoint(url):
        raise _unlisted(ref, url, "it was answered by a local or private endpoint")
    if ref.provider in UNMETERED:
        raise _unlisted(ref, url, f"{ref.provider} does not bill by token")
    # OpenAI serves two price lists under one URL; only the provider's name tells them apart.
    if url and ref.provider != "openai-decisions" and _lists(None, url):
        return {"provider_api_url": url}
    if ref.provider is None:
        return {"provider_id": "aws"} if _BEDROCK.match(ref.model) else {}
    if _lists(ref.provider, None):
        return {"provider_id": ref.provider}
    if ref.provider in PROVIDERS or url:
        raise _unlisted(ref, url, "the price list does not have this provider")
    return {}


def _lists(provider: str | None, url: str | None) -> bool:
    from genai_prices.data_snapshot import get_snapshot

    if provider == "litellm":  # not in the list, but genai-prices reads the provider from the model's path
        return True
    try:
        get_snapshot().find_provider(None, provider, url)
    except LookupError:
        return False
    return True


def is_private_endpoint(url: str) -> bool:
    """Whether a base URL is this machine's, or on a private network: what runs there is on nobody's price list."""
    host = _host(url)
    if host is None:
        return False
    try:
        return not ip_address(host).is_global
    except ValueError:
        local = ("localhost", "local", "internal", "lan", "home.arpa")
        return "." not in host or any(host == name or host.endswith(f".{name}") for name in local)


def _host(url: str) -> str | None:
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname
    except ValueError:
        return None
    return host.rstrip(".").partition("%")[0] if host else None


def _unlisted(ref: ModelRef, url: str | None, why: str) -> UnknownModelPriceError:
    """The error, without the URL itself: it may hold credentials."""
    provider = f" at provider {ref.provider!r}" if ref.provider else ""
    host = f" on {_host(url)}" if url and _host(url) else ""
    return UnknownModelPriceError(
        f"No price is known for model {ref.model!r}{provider}{host}: {why}. State it with "
        f"CostCalculator(pricing_overrides={{{ref.model!r}: {{'input_per_mtok': ..., 'output_per_mtok': ...}}}})."
    )
