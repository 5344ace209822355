"""The service tier that bills a request: as reported in the response, else as requested."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from ..providers import canonical_provider
from .models import merged, sends_setting
from .raw_answers import NOT_SEEN, RawAnswer, told_tier, told_tier_of_bedrock

_TRAFFIC_TYPES = {
    "ON_DEMAND": "default",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
    "PROVISIONED_THROUGHPUT": "provisioned",
}
"""What Google Cloud answers, under the names of the price list."""

_GOOGLE_CLOUD_TIERS = {
    "flex_only": "flex",
    "pt_then_flex": "flex",
    "priority_only": "priority",
    "pt_then_priority": "priority",
    "pt_only": "provisioned",
}

_UNIFIED = "service_tier"
_SAYS_TIER = re.compile(r"(service_tier|_speed|_performance_configuration)$")

_SILENT = frozenset({"anthropic", "aws", "google"})
"""Providers of whose answers pydantic-ai keeps no tier, or not always: they give the one that is
asked for.
"""


def asked_service_tier(model: Model, settings: ModelSettings | None) -> str | None:
    """The service tier that a request asks for, as its model class sends it.

    Args:
        model: The model that sends it; its own settings count where the request has none.
        settings: Of the request.

    Returns:
        A tier as the price list names it (`flex`, `priority`, `default`, `auto`, …), `fast-mode`
        for Anthropic's fast
        mode. None: none is sent.
    """
    own = merged(model.settings, settings)
    # Nearly always there is nothing to find.
    if not any(map(_says_tier, own)):
        return None
    if model.system in ("google-cloud", "google-vertex"):
        own_tier = own.get("google_cloud_service_tier")
        tier = _GOOGLE_CLOUD_TIERS.get(own_tier, "default") if own_tier else own.get(_UNIFIED)
    else:
        asked = _ASKED_OF.get(canonical_provider(model.system), _asked_of_openai)
        tier = asked(model, own)
    return tier if isinstance(tier, str) else None


@lru_cache(maxsize=256)
def _says_tier(setting: str) -> bool:
    return _SAYS_TIER.search(setting) is not None


def _asked_of_anthropic(model: Model, own: dict[str, Any]) -> Any:
    is_fast = own.get("anthropic_speed") == "fast"
    if is_fast and model.profile.get("anthropic_supports_fast_speed"):
        return "fast-mode"  # models without that mode are sent none
    unified = {"auto": "auto", "default": "standard_only"}.get(own.get(_UNIFIED) or "")
    return own.get("anthropic_service_tier") or unified


def _asked_of_google(model: Model, own: dict[str, Any]) -> Any:
    unified = own.get(_UNIFIED)
    return None if unified == "auto" else unified


def _asked_of_bedrock(model: Model, own: dict[str, Any]) -> Any:
    performance = own.get("bedrock_performance_configuration")
    if isinstance(performance, Mapping) and performance.get("latency") == "optimized":
        return "latency-optimized"
    bedrock = own.get("bedrock_service_tier")
    return bedrock.get("type") if isinstance(bedrock, Mapping) else _asked_of_google(model, own)


def _asked_of_openai(model: Model, own: dict[str, Any]) -> Any:
    unified = own.get(_UNIFIED) if sends_setting(model, _UNIFIED) else None
    return own.get("openai_service_tier") or unified


_ASKED_OF = {
    "anthropic": _asked_of_anthropic,
    "aws": _asked_of_bedrock,
    "google": _asked_of_google,
}
"""By provider, how a model class sends a tier; the others do as OpenAI's does."""


_TOLD = {"anthropic": told_tier, "aws": told_tier_of_bedrock}


def billed_service_tier(
    provider: str, response: ModelResponse, asked: str | None, raw: RawAnswer = NOT_SEEN
) -> str | None:
    """The service tier of an answer: the one it names, or the one asked for where the provider
    gives just that.
    """
    if (answered := _answered_service_tier(response)) is not None:
        return answered
    name = canonical_provider(provider)
    told = _TOLD[name](raw) if name in _TOLD else None
    if name == "aws" and told == "default":
        return told
    if told not in (None, "standard"):
        return told
    return asked if name in _SILENT else None


def _answered_service_tier(response: ModelResponse) -> str | None:
    details = response.provider_details
    if not details:
        return None
    if details.get("processing") == "batch":
        return "batch"
    if isinstance(tier := details.get("service_tier"), str):
        return tier
    traffic = details.get("traffic_type")
    return _TRAFFIC_TYPES.get(traffic) if isinstance(traffic, str) else None
