"""JSON as we write it: plain values, no key twice, no NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import Any

from .round_trip import DEEPEST

LONGEST_INT = 14_000
"""Bits of an integer; Python refuses to read one of much more."""


_PLAIN = frozenset({type(None), str, bool})
_NUMBERS: dict[type, Callable[[Any], bool]] = {
    int: lambda value: value.bit_length() <= LONGEST_INT,
    float: isfinite,
}
_TEXT_ONLY = frozenset({str})


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is JSON already, so that it comes back equal and of the same types."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind in _NUMBERS:
        return _NUMBERS[kind](value)
    items = value
    if kind is dict:
        if not _TEXT_ONLY.issuperset(map(type, value)):
            return False
        items = value.values()
    elif kind is not list:
        return False
    # Deeper ones could be written, but not be read again.
    return depth <= 2 * DEEPEST and all(map(partial(is_plain, depth=depth + 1), items))


def loads_strictly(text: str | bytes) -> Any:
    """JSON as we write it: no key twice, no NaN, no infinity.

    Raises:
        ValueError: It is not that.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=refuse_constant,
            parse_float=finite_number,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def finite_number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number
