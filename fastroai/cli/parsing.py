"""Times and lengths of time, as the command line takes and shows them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

from .exit_codes import UsageError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_WORDS = ("now", "today", "yesterday")


def moment(option: str, text: str) -> datetime:
    """The time that an option names, in UTC.

    Raises:
        UsageError: It can't be read.
    """
    now = datetime.now(UTC)
    try:
        if text in _WORDS:
            midnight = datetime.combine(now, time(), UTC)
            return {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}[text]
        if (ago := _duration(text)) is not None:
            return now - ago
        at = datetime.fromisoformat(text)
        return (at if at.utcoffset() is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{option} {text!r} is no time. Give one like 2026-11-01, 2026-11-01T10:00Z, 7d, 24h, "
            "today or yesterday."
        ) from error


def duration(option: str, text: str) -> timedelta:
    """The length of time that an option names.

    Raises:
        UsageError: It can't be read.
    """
    try:
        found = _duration(text)
    except OverflowError:
        found = None
    if found is None:
        raise UsageError(f"{option} {text!r} is no length of time. Give one like 5m, 24h or 1d.")
    return found


def _duration(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d+)([mhdw])", text, re.ASCII)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def shown(at: datetime) -> str:
    """A time in UTC, to the minute where nothing is lost by it."""
    at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M UTC}" if at.second == 0 else f"{at:%Y-%m-%d %H:%M:%S UTC}"
