"""Names of billing providers, as pydantic-ai and genai-prices call them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

# pydantic-ai's provider names, past ones too, for what genai-prices lists under another id.
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

UNMETERED = frozenset(
    {"ollama", "openai-chatgpt", "openai-codex", "outlines", "sentence-transformers", "vllm"}
)
"""Models run by the user, or paid by a subscription: no token is billed, so no list price is
theirs.
"""

PROVIDERS = UNMETERED | frozenset(
    # pydantic-ai's own, then genai-prices' ids
    """
    alibaba anthropic azure cerebras cohere crusoe deepseek elevenlabs fireworks github
    github-copilot google google-decisions groq heroku huggingface litellm meta mistral moonshotai
    nebius novita openai openai-decisions openrouter ovhcloud perplexity sambanova snowflake
    system-one together typesafe vercel voyageai x-ai zai arcee avian aws baseten cloudflare cursor
    databricks doubleword minimax modal quicksilverpro zhipuai huggingface_cerebras
    huggingface_fireworks-ai huggingface_groq huggingface_hyperbolic huggingface_nebius
    huggingface_novita huggingface_nscale huggingface_ovhcloud huggingface_publicai
    huggingface_sambanova huggingface_together
    """.split()  # noqa: SIM905  # as a list it would be a page long
)
"""Those who send bills, by canonical name.

Only these are taken off a model's name as its prefix.
"""

DECISIONS = frozenset({"google-decisions", "openai-decisions"})
"""Providers of decision models, whose hosts also serve those of a provider with other prices."""


_HOST = re.compile(r"[\w.:-]+")


@lru_cache(maxsize=1024)
def canonical_provider(provider: str) -> str:
    """One name for all that pydantic-ai calls a provider: `openai-chat` is `openai`, `bedrock` is
    `aws`.
    """
    name = provider.strip().lower()
    if name in _ALIASES:
        return _ALIASES[name]
    name = name.removeprefix("gateway/")
    return _ALIASES.get(name, name)


@lru_cache(maxsize=1024)
def host_and_port(url: str) -> tuple[str | None, int | None]:
    """Host of a URL or of `host:port`, in lower case, and the port written in it.

    No host: it can't be read.
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        # As clients resolve it: digits of other scripts are digits.
        host = unicodedata.normalize("NFKC", parts.hostname or "").rstrip(".").partition("%")[0]
        return (host, parts.port) if _HOST.fullmatch(host) else (None, None)
    except (ValueError, TypeError):
        return None, None


@lru_cache(maxsize=1024)
def host_in(url: str) -> str | None:
    """Host of a URL, with its port where one is written; never credentials."""
    host, port = host_and_port(url)
    return None if host is None else host_key(host, port)


def provider_at(url: str, hosts: Mapping[str, str]) -> str | None:
    """Who bills for what is answered at a URL, as `FASTROAI_PROVIDER_HOSTS` has it; `host:port`
    comes before `host`.
    """
    host, port = host_and_port(url)
    if host is None:
        return None
    port = port or (80 if url.lower().startswith("http://") else 443)
    return hosts.get(host_key(host, port)) or hosts.get(host)


def host_key(host: str, port: int | None) -> str:
    """`host` or `host:port`, an IPv6 address in brackets before its port."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
