"""Windows of budgets: where days, weeks and months begin in zones that change their clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.budgets.windows import WINDOWS, Window, window_at

CHANGING = ["Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Beirut",
            "America/Havana", "Pacific/Apia", "Australia/Lord_Howe", "Asia/Kathmandu"]  # fmt: skip


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "zone", "at", "start", "end"),
    [
        ("day", "UTC", "2026-03-01T12:00", "2026-03-01", "2026-03-02"),
        # 23 and 25 hours.
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        # The clock goes forward at midnight: the day begins at one.
        ("day", "Asia/Beirut", "2026-03-29T12:00", "2026-03-28T22:00", "2026-03-29T21:00"),
        # It goes back from one to midnight: the day begins at the first of both.
        ("day", "America/Havana", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        ("week", "UTC", "2026-03-01T23:59", "2026-02-23", "2026-03-02"),
        ("month", "Europe/Berlin", "2026-03-31T21:59", "2026-02-28T23:00", "2026-03-31T22:00"),
        ("month", "UTC", "2026-12-31T12:00", "2026-12-01", "2027-01-01"),
        ("hour", "Asia/Kathmandu", "2026-03-01T12:34", "2026-03-01T12:00", "2026-03-01T13:00"),
    ],
)
def test_a_window_begins_at_midnight_of_its_zone(
    window: Window, zone: str, at: str, start: str, end: str
) -> None:
    assert window_at(window, zone, utc(at)) == (utc(start), utc(end))


@given(
    window=st.sampled_from(WINDOWS),
    zone=st.sampled_from(CHANGING),
    at=st.datetimes(datetime(2010, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),
)
def test_windows_follow_each_other_without_a_gap_or_an_overlap(
    window: Window, zone: str, at: datetime
) -> None:
    start, end = window_at(window, zone, at)
    assert start <= at < end
    for moment in (start, end - timedelta(microseconds=1)):
        assert window_at(window, zone, moment) == (start, end)
    if window != "total":
        assert window_at(window, zone, end)[0] == end


def test_the_zones_are_known() -> None:
    assert available_timezones().issuperset(CHANGING)
