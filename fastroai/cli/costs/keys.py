"""What the requests of one line have in common, in cells, columns and JSON."""

from __future__ import annotations

from collections.abc import Sequence

from ...ledger.aggregation import GroupKey, Totals, dimensions_of
from ..rendering.tables import Column

_HEADINGS = {"day": "day (UTC)", "step": "pipeline/step"}
SEVERAL_TAGS = (
    "A request with several tags is in the line of each, so the lines may add up to more than the "
    "total."
)


def key_of(group: Totals) -> GroupKey:
    """The value of one dimension, or those of several."""
    return group.keys or group.key


def key_columns(by: str) -> list[Column]:
    """The columns that say what the requests of each row have in common."""
    # A run's id is of use only as a whole.
    return [
        Column(_HEADINGS.get(one, key_name(one)), shortest=36 if one in ("run", "run_key") else 12)
        for one in dimensions_of(by)
    ]


def key_cells(by: str, key: GroupKey) -> list[str]:
    """What the requests of one row have in common."""
    return [
        f"(no {key_name(one)})" if value is None else value
        for one, value in zip(dimensions_of(by), values_of(key), strict=True)
    ]


def total_cells(by: str, first: str = "total") -> list[str]:
    """The same of a row that has nothing in common."""
    return [first, *[""] * (len(dimensions_of(by)) - 1)]


def key_json(by: str, key: GroupKey) -> dict[str, object]:
    """The same for programs: `key`, or `keys` by the names of several dimensions."""
    if isinstance(key, tuple):
        return {"keys": dict(zip(dimensions_of(by), key, strict=True))}
    return {"key": key}


def values_of(key: GroupKey) -> Sequence[str | None]:
    """One for each dimension."""
    return key if isinstance(key, tuple) else (key,)


def key_name(by: str) -> str:
    """A dimension for people."""
    return by.removeprefix("tag:") if by.startswith("tag:") else by.replace("_", " ")


def title_of(by: str) -> str:
    """All dimensions for people."""
    names = (
        f"tag {key_name(one)}" if one.startswith("tag:") else key_name(one)
        for one in dimensions_of(by)
    )
    return " and ".join(names)
