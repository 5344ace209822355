"""What providers take on top of the listed price for the region in which they answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Final

from ..providers import host_and_port

NONE: Final = Decimal(1)
PREMIUM: Final = Decimal("1.1")
"""All that are published are 10 % on tokens; fees for searches stay what they are."""


def regional_factor(
    provider: str, model: str, url: str | None, context: Mapping[str, str]
) -> Decimal | str:
    """By what the listed price of tokens is multiplied for the region of a request.

    Args:
        provider: As the price list calls it.
        model: As the price list calls it, or as it is called in the answer.
        url: Base URL of the API that answered.
        context: What the response says of itself; `inference_geo` is Anthropic's.

    Returns:
        Text: it is not known, and why.
    """
    if provider == "anthropic":
        return _anthropic(model, context.get("inference_geo"))
    if not url or provider not in _BY_HOST:
        return NONE
    host = host_and_port(url)[0] or ""
    return _BY_HOST[provider](model, host)


def highest_factor(provider: str, model: str, url: str | None) -> Decimal | None:
    """The most that `regional_factor` can give for a request that is still to be sent; None: it
    can't be told.
    """
    if provider == "anthropic":
        # Where it is computed may be set for the workspace, so a request does not show it.
        claude = version_in(_CLAUDE, model)
        return NONE if claude and claude < (4, 6) else PREMIUM
    factor = regional_factor(provider, model, url, {})
    return None if isinstance(factor, str) else factor


def _anthropic(model: str, geo: str | None) -> Decimal | str:
    """platform.claude.com, pricing, data residency: US-only inference costs 1.1 times, for Opus 4.6
    and what came after it; older models answer `not_available`.
    """
    if geo in (None, "", "global", "not_available"):
        return NONE
    if geo == "us":
        return PREMIUM
    return f"the price list does not have what inference in {geo!r} costs"


def _openai(model: str, host: str) -> Decimal | str:
    """developers.openai.com, data residency: 10 % for models released from 2026-03-05 on, at the
    hosts with a region before them.
    """
    if not host.endswith(".api.openai.com"):
        return NONE
    match is_new_openai_model(model):
        case True:
            return PREMIUM
        case False:
            return NONE
    return f"it is not known whether {host} takes its premium for this model"


_OPENAI_PREMIUM_FROM: Final = date(2026, 3, 5)
_RELEASED: Final = re.compile(r"-(20\d\d)-(\d\d)-(\d\d)$")
_GPT: Final = re.compile(r"^(?:ft:)?gpt-(\d+)(?:\.(\d+))?(?:-|:|$)")
_OLD_OPENAI: Final = re.compile(
    r"(?:ft:)?(?:gpt-(?:3|4|oss|audio|realtime(?!-2)|image-1)|o[134](?:-|$)|chatgpt-4|codex-mini|"
    r"computer-use|text-|davinci|babbage|whisper|tts-1)"
)


def is_new_openai_model(model: str) -> bool | None:
    """Whether a model was released from 2026-03-05 on, gpt-5.4 being the first; None: not known."""
    if dated := _RELEASED.search(model):
        try:
            return date(*map(int, dated.groups())) >= _OPENAI_PREMIUM_FROM
        except ValueError:
            return None
    if _OLD_OPENAI.match(model):
        return False
    gpt = version_in(_GPT, model)
    return gpt and gpt >= (5, 4)


_VERTEX: Final = re.compile(r"(?:([a-z0-9-]+)-)?aiplatform(?:\.([a-z]+)\.rep)?\.googleapis\.com")
_CLAUDE: Final = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[.-](\d)(?!\d))?")
GEMINI: Final = re.compile(r"gemini-(?:[a-z]+-)*(\d+)()")
_VERTEX_PREMIUM_FROM: Final = ((_CLAUDE, (4, 5)), (GEMINI, (3, 0)))


def version_in(name: re.Pattern[str], model: str) -> tuple[int, int] | None:
    """The version in a model's name; None: it has another name."""
    found = name.search(model)
    return found and (int(found[1]), int(found[2] or 0))


def _google(model: str, host: str) -> Decimal | str:
    """Vertex AI: 10 % at any location but `global`, for Claude 4.5 and later and for Gemini 3 and
    later (platform.claude.com, Claude on Vertex AI; cloud.google.com, pricing of generative AI).
    """
    at = _VERTEX.fullmatch(host)
    if at is None or (at[1] or at[2]) in (None, "global"):
        return NONE
    for name, first in _VERTEX_PREMIUM_FROM:
        if version := version_in(name, model):
            return PREMIUM if version >= first else NONE
    return f"the price list does not have what it costs at {host}"


_BEDROCK: Final = re.compile(r"bedrock-(?:runtime|mantle)(?:-fips)?\.([a-z0-9-]+)\.")
# Entries of the list that hold wherever: a global profile, and Anthropic's models, whose price in a
# region (it has the premium) is the same in all of them but the government's.
_ONE_PRICE: Final = re.compile(r"(?:global\.|regional\.anthropic\.)")


def _aws(model: str, host: str) -> Decimal | str:
    """aws.amazon.com, Bedrock pricing: by region; the list has those of the US."""
    at = _BEDROCK.search(host)
    if at is None:
        return NONE
    has_one_price = at[1].startswith("us-") or _ONE_PRICE.match(model)
    if has_one_price and not at[1].startswith("us-gov-"):
        return NONE
    return f"the price list has it for regions of the US, not for {at[1]}"


def _azure(_: str, host: str) -> Decimal | str:
    """azure.microsoft.com, pricing by region: the clouds of the US government and of China have
    price lists of their own.
    """
    if host.endswith((".azure.us", ".azure.cn")):
        return f"the price list has it for Azure's public cloud, not for {host}"
    return NONE


_BY_HOST = {"aws": _aws, "azure": _azure, "google": _google, "openai": _openai}
