"""What providers allow: requests and tokens a minute, requests at once; as a setting says it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Final

from .providers import PROVIDERS, canonical_provider

EXAMPLE: Final = (
    'an example is {"openai": {"requests_per_minute": 500, "tokens_per_minute": 200000}, '
    '"openai:gpt-5-mini": {"concurrency": 20}}, or the same as a text: '
    "openai rpm=500 tpm=200k; openai:gpt-5-mini concurrency=20"
)
_ALIASES: Final = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "itpm": "input_tokens_per_minute",
    "otpm": "output_tokens_per_minute",
    "concurrent_requests": "concurrency",
    "max_concurrency": "concurrency",
}
_FACTORS: Final = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, slots=True)
class ProviderLimit:
    """What a provider allows, or one of its models; None: no limit.

    Attributes:
        tokens_per_minute: Of input and output together.
        concurrency: Requests that may be under way at once.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    concurrency: int | None = None

    def __str__(self) -> str:
        said = (f"{getattr(self, name):g} {words}" for name, words in _WORDS if self.has(name))
        return ", ".join(said) or "no limit"

    def has(self, name: str) -> bool:
        """Whether one of its fields is a limit."""
        return getattr(self, name) is not None


_NAMES: Final = tuple(field.name for field in fields(ProviderLimit))
_WORDS: Final = tuple(zip(_NAMES, (
    "requests a minute", "tokens a minute", "input tokens a minute", "output tokens a minute",
    "requests at once",
), strict=True))  # fmt: skip


def read_provider_limits(value: object) -> dict[str, ProviderLimit]:
    """Limits by `provider` or `provider:model`, of JSON or of `openai rpm=500 tpm=200k; …`.

    Raises:
        ValueError: It says what is wrong, and gives an example.
    """
    if isinstance(value, str):
        value = _parsed(value.strip())
    if not isinstance(value, Mapping):
        raise ValueError(f"must be limits by provider; {EXAMPLE}")
    limits: dict[str, ProviderLimit] = {}
    for name, limit in value.items():
        target = limited_target(name)
        if target in limits:
            raise ValueError(f"{name!r} is limited twice; {EXAMPLE}")
        limits[target] = limit if isinstance(limit, ProviderLimit) else _limit(name, limit)
    return limits


def limited_target(name: str) -> str:
    """`provider` or `provider:model`, the provider by its canonical name.

    Raises:
        ValueError: It is none, or a provider's name misspelt.
    """
    provider, colon, model = (part.strip() for part in str(name).partition(":"))
    canonical = canonical_provider(provider)
    if not canonical or (colon and not model):
        raise ValueError(f"{name!r} is no provider and no provider:model; {EXAMPLE}")
    # Others have limits, too: a model of one's own class. But none that nobody notices.
    near = get_close_matches(canonical, PROVIDERS, 1, 0.8) if canonical not in PROVIDERS else []
    if near:
        raise ValueError(f"{name!r} is not a known provider; did you mean {near[0]!r}?")
    return f"{canonical}:{model}" if model else canonical


def _parsed(text: str) -> object:
    if text.startswith(("{", "[", '"')):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error}); {EXAMPLE}") from error
    return dict(_targets(text))


def _targets(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for part in filter(None, map(str.strip, text.split(";"))):
        target, *pairs = re.split(r"[\s,]+", part)
        named = dict(pair.partition("=")[::2] for pair in filter(None, pairs))
        if not named or not all(named.values()):
            raise ValueError(f"{part!r} is no limit; {EXAMPLE}")
        yield target, named


def _limit(target: str, value: object) -> ProviderLimit:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{value!r} (for {target!r}) is no limit; {EXAMPLE}")
    found: dict[str, float] = {}
    for key, number in value.items():
        name = _ALIASES.get(str(key).lower(), str(key).lower())
        if name not in _NAMES:
            known = ", ".join((*_NAMES, "rpm", "tpm", "itpm", "otpm"))
            raise ValueError(f"{key!r} (for {target!r}) is no limit; there are {known}")
        found[name] = _number(target, name, number)
    if "concurrency" in found:
        found["concurrency"] = int(found["concurrency"])
    return ProviderLimit(**found)  # type: ignore[arg-type]  # it is a whole number by now


def _number(target: str, name: str, value: object) -> float:
    text = str(value).strip().lower().replace("_", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text)
    number = 0.0 if match is None else float(match[1]) * _FACTORS[match[2]]
    if isinstance(value, bool) or number <= 0 or (name == "concurrency" and number % 1):
        kind = "a whole number above 0" if name == "concurrency" else "a number above 0"
        raise ValueError(f"{name}={value!r} (for {target!r}) must be {kind}; leave it out for none")
    return number
