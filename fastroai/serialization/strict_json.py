"""JSON as we write it: plain values, no key twice, no NaN."""

from __future__ import annotations

import json
from typing import Any

from .round_trip import DEEPEST

LONGEST_INT = 14_000
"""Bits of an integer; Python refuses to read one of much more."""


_PLAIN = frozenset({type(None), str, bool})
_TEXT_ONLY = frozenset({str})


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is JSON already, so that it comes back equal and of the same types."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        return bool(value.bit_length() <= LONGEST_INT)
    if kind is float:
        return bool(value - value == 0)  # neither NaN nor infinite
    items = value
    if kind is dict:
        if not _TEXT_ONLY.issuperset(map(type, value)):
            return False
        items = value.values()
    elif kind is not list:
        return False
    # Deeper ones could be written, but not be read again.
    return depth <= 2 * DEEPEST and all(is_plain(item, depth + 1) for item in items)


def loads_strictly(text: str | bytes) -> Any:
    """JSON as we write it: no key twice, no NaN, no infinity.

    Raises:
        ValueError: It is not that.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text} is no finite number")
    return number
