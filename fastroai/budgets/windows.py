"""Windows of time in which a budget counts: hours, days, weeks and months of a time zone."""

from __future__ import annotations

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
    if window == "day":
        days = day, day + timedelta(days=1)
    elif window == "week":
        monday = day - timedelta(days=day.weekday())
        days = monday, monday + timedelta(days=7)
    else:
        first = day.replace(day=1)
        days = first, (first + timedelta(days=31)).replace(day=1)
    # Where midnight is left out, this is the moment at which the clock is put forward.
    start, end = (date.replace(tzinfo=tz).astimezone(UTC) for date in days)
    return start, end
