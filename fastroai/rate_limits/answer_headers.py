"""What the headers of an answer say of its provider's limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from .pools import Paces

TIGHT: Final = 0.2
"""Share of a limit below which what remains of it is kept account of."""
WITHOUT_A_WORD: Final = 1.0
"""Seconds to send nothing after a 429 that does not say for how long."""

_THINGS: Final = ("requests", "tokens", "input-tokens", "output-tokens")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of limits, in the order of `Amounts`; None: nothing.

    Attributes:
        per_minute: The limits.
        remaining: What is left of them.
        retry_after: Seconds in which nothing may be sent, of an answer that says "too many".
    """

    per_minute: Paces
    remaining: Paces
    retry_after: float | None

    @property
    def is_tight(self) -> bool:
        """Whether little is left of something, or nothing may be sent."""
        pairs = zip(self.per_minute, self.remaining, strict=True)
        little = any(m and r is not None and r <= TIGHT * m for m, r in pairs)
        return little or self.retry_after is not None


def told_by(status: int, headers: Headers, now: datetime | None = None) -> Told:
    """What an answer says: OpenAI's headers (Azure, Groq and others have them) and Anthropic's.

    Args:
        status: Of HTTP.
        now: When it came, timezone-aware.
    """
    # Once through them all: a client's headers are a list, which each look walks through.
    headers = {
        name.lower(): value
        for name, value in headers.items()
        if "ratelimit" in name.lower() or name.lower().startswith("retry-after")
    }
    read = {kind: _each(headers, kind) for kind in ("limit", "remaining", "reset")}
    remaining = tuple(map(_number, read["remaining"]))
    wait = None
    if status == 429:
        wait = asked_to_wait(headers, now)
        exhausted = [
            seconds
            for text, left in zip(read["reset"], remaining, strict=True)
            if left == 0 and (seconds := seconds_in(text, now)) is not None
        ]
        wait = max(exhausted, default=WITHOUT_A_WORD) if wait is None else wait
    return Told(tuple(map(_number, read["limit"])), remaining, wait)


def asked_to_wait(headers: Headers, now: datetime | None = None) -> float | None:
    """Seconds that `retry-after` asks for; None: it is not there, or makes no sense."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    return seconds_in(headers.get("retry-after"), now)


def seconds_in(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds of `1.5`, `6m0s` or `12ms`, or until a date of HTTP or ISO 8601."""
    if text is None or (seconds := _number(text)) is not None:
        return None if text is None else seconds
    if parts := _DURATION.findall(text) if _DURATION.match(text) else None:
        return sum(float(many) * _SECONDS[unit] for many, unit in parts)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            at = read(text.strip())
            return max((at.astimezone(UTC) - (now or datetime.now(UTC))).total_seconds(), 0.0)
    return None


def _each(headers: Headers, kind: str) -> list[str | None]:
    return [
        headers.get(f"x-ratelimit-{kind}-{thing}")
        or headers.get(f"anthropic-ratelimit-{thing}-{kind}")
        for thing in _THINGS
    ]


def _number(text: str | None) -> float | None:
    with suppress(ValueError):
        number = float(text) if text is not None else -1.0
        return number if 0 <= number < float("inf") else None
    return None
