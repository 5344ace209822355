"""Windows of time in which a budget counts: hours, days, weeks and months of a time zone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

Window = Literal["total", "hour", "day", "week", "month"]
WINDOWS: Final = ("total", "hour", "day", "week", "month")

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
END: Final = datetime(9999, 1, 1, tzinfo=UTC)


def window_at(window: Window, zone: str, at: datetime) -> tuple[datetime, datetime]:
    """The window in which a moment lies: its first moment, and that of the next one, in UTC.

    Days, weeks (from Monday) and months begin at midnight of the zone, also where that day has 23
    or 25 hours. Hours are those of UTC.

    Args:
        window: `total` is one for all times.
        zone: An IANA name, as `Europe/Berlin`.
        at: Timezone-aware.
    """
    if window == "total":
        return BEGINNING, END
    if window == "hour":
        start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        return start, start + timedelta(hours=1)
    tz = ZoneInfo(zone)
    # Days are counted without a zone: within one, a day later may be another hour.
    day = at.astimezone(tz).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
    # Where midnight is left out, this is the moment at which the clock is put forward.
    start, end = (date.replace(tzinfo=tz).astimezone(UTC) for date in _PERIODS[window](day))
    return start, end


def day_of(day: datetime) -> tuple[datetime, datetime]:
    """A day, and the next one."""
    return day, day + timedelta(days=1)


def week_of(day: datetime) -> tuple[datetime, datetime]:
    """The Monday of a day's week, and the next one."""
    monday = day - timedelta(days=day.weekday())
    return monday, monday + timedelta(days=7)


def month_of(day: datetime) -> tuple[datetime, datetime]:
    """The first of a day's month, and that of the next one."""
    first = day.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


_PERIODS: dict[Window, Callable[[datetime], tuple[datetime, datetime]]] = {
    "day": day_of,
    "week": week_of,
    "month": month_of,
}
