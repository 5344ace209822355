"""Times and durations on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta

from cyclopts import Token

from .exit_codes import UsageError

TIME_FORMS = "2026-11-01, 2026-11-01T10:00Z, now, today, yesterday, or how long ago: 30m, 24h, 7d"
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(type_: object, tokens: Sequence[Token]) -> datetime:
    """The time that an option names, in UTC; a converter of cyclopts.

    Raises:
        UsageError: It is not a valid time.
    """
    [token] = tokens
    try:
        return _time(token.value, datetime.now(UTC))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{token.keyword} {token.value!r} is not a valid time. Expected one like {TIME_FORMS}."
        ) from error


def _time(text: str, now: datetime) -> datetime:
    midnight = datetime.combine(now, time(), UTC)
    words = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text in words:
        return words[text]
    ago = _duration(text)
    if ago is not None:
        return now - ago
    at = datetime.fromisoformat(text)
    if at.utcoffset() is None:
        at = at.replace(tzinfo=UTC)
    return at.astimezone(UTC)


def duration(type_: object, tokens: Sequence[Token]) -> timedelta:
    """The duration that an option names; a converter of cyclopts.

    Raises:
        UsageError: It is not a valid duration.
    """
    [token] = tokens
    try:
        found = _duration(token.value)
    except OverflowError:
        found = None
    if found is None:
        raise UsageError(
            f"{token.keyword} {token.value!r} is not a valid duration. "
            "Expected one like 5m, 24h or 1d."
        )
    return found


def _duration(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d+)([mhdw])", text, re.ASCII)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def shown(at: datetime) -> str:
    """A time in UTC, to the minute where nothing is lost by it."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M UTC}" if at.second == 0 else f"{at:%Y-%m-%d %H:%M:%S UTC}"
