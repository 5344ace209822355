"""Meanings of a model's name: its provider, and its other names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..providers import PROVIDERS, canonical_provider


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One reading of a model's name.

    Attributes:
        provider: Lower case, and genai-prices' id where it has one. None: not named.
        model: Lower case, without the provider's prefix.
    """

    provider: str | None
    model: str


_OTHER_PREFIX = re.compile(r"(?!ft$)[a-z][a-z_-]*")
BEDROCK = re.compile(
    r"(?:(?:apac|au|ca|eu|global|jp|us|us-gov)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|meta|mistral|nvidia|openai|qwen|writer)\."
)
_VERSION = re.compile(
    r"(?:[-@](?:"
    r"20\d\d-?[01]\d-?[0-3]\d"  # -2025-08-07, @20250929
    r"|2\d(?:0[1-9]|1[0-2])"  # -2507
    r"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"  # -0613
    r"|00\d|latest)"
    r"(?:-v\d+(?::\d+)?)?|-v\d+:\d+)$"  # of Bedrock: -v2:0
)


@lru_cache(maxsize=1024)
def read_model_name(name: str, provider: str | None = None) -> tuple[ModelRef, ...]:
    """What a model's name may mean, the likeliest first.

    A prefix that names a provider is taken off: `openai:gpt-4o`. Any other colon belongs to the
    name: a Bedrock version (`…-v2:0`), an Ollama tag (`llama3:8b`), a fine-tune (`ft:gpt-4o:…`). A
    prefix of letters that names no provider we know (`acme:gpt-4o`) may be either, so the whole
    name comes first.

    Args:
        name: `provider:model`, or a bare model name as a response gives it.
        provider: The provider when it is known otherwise; it beats the prefix.
    """
    whole = name.strip().lower()
    given = canonical_provider(provider or "") or None
    as_written = ModelRef(given, whole)
    head, _, tail = whole.partition(":")
    if not tail:
        return (as_written,)
    prefix = canonical_provider(head)
    without_prefix = ModelRef(given or prefix, tail)
    if prefix in PROVIDERS:
        return (without_prefix,) if given is None else (without_prefix, as_written)
    if _OTHER_PREFIX.fullmatch(head):
        return as_written, without_prefix
    return (as_written,)


def spellings(model: str) -> Iterator[str]:
    """A model's name, then ever shorter ones for the same model: without its version, without path
    or vendor.

    `us.anthropic.claude-3-5-sonnet-20241022-v2:0` ends as `claude-3-5-sonnet`,
    `openai/gpt-4o-2024-08-06` as `gpt-4o`.
    """
    short = BEDROCK.sub("", model.rpartition("/")[2], count=1)
    longest_first = model, _VERSION.sub("", model), short, _VERSION.sub("", short)
    return iter(dict.fromkeys(filter(None, longest_first)))
