"""Rows and times in the form that the tables store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

Row = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(at: datetime) -> int:
    """A time as whole microseconds since 1970; a naive one is taken for UTC."""
    if at.utcoffset() is None:
        at = at.replace(tzinfo=UTC)
    return (at - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The time, in UTC."""
    return _EPOCH + value * _MICROSECOND
