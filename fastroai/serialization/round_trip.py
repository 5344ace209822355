"""Compares two values as a program sees them: equal, and of equal types all the way down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEEPEST = 100
"""Levels of nesting in a stored output: pydantic reads 200 of JSON, and a packed level takes two of
them.
"""

_SIMPLE = frozenset({str, bytes, int, bool, type(None)})
_MISSING = object()


class Spelling:
    """A value spelled out by its types and what they hold; two that are equal can stand for each
    other.

    The order of a dict counts, since a prompt that is made of it depends on it; that of a set does
    not.

    Attributes:
        holds_set: Whether there is a set anywhere within the value.

    Raises:
        TypeError: The value is nested too deeply or within itself, or holds an iterator, which
            looking would use up.
    """

    def __init__(self, value: object) -> None:
        self.holds_set = False
        self._spelled = self._spell(value, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spelling) and self._spelled == other._spelled

    __hash__ = None  # type: ignore[assignment]

    def _spell(self, value: object, depth: int) -> tuple[object, ...]:
        kind = type(value)
        if kind in _SIMPLE:
            return kind, value
        for kinds, what_equality_hides in _LEAVES:
            if isinstance(value, kinds):
                return kind, value, what_equality_hides(value)
        if depth > DEEPEST:
            raise TypeError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
        if isinstance(value, Iterator):
            raise TypeError("it holds an iterator, which can be read only once")
        spell = partial(self._spell, depth=depth + 1)
        if isinstance(value, set | frozenset):
            self.holds_set = True
            return kind, frozenset(map(spell, value))
        parts = parts_of(value)
        if parts is None:
            return kind, value
        return bare_type(value), *map(spell, parts)


# What is in one piece, and by what two of them differ that are equal to Python.
_LEAVES: tuple[tuple[tuple[type, ...], Callable[[Any], object]], ...] = (
    ((str, Enum), lambda value: None),
    # 1.1 and 1.10, 0.0 and -0.0
    ((Decimal, float), str),
    # The offset tells two moments of the same name apart, as when the clock is set back.
    ((datetime, time), lambda value: value.fold if value.tzinfo is None else value.utcoffset()),
)


def parts_of(value: object) -> Iterable[object] | None:
    """What a value is made of, in an order of its own; None where it is one piece."""
    if isinstance(value, BaseModel):
        fields = map(value.__dict__.get, type(value).model_fields)
        return [*fields, value.__pydantic_extra__, value.__pydantic_private__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _parts_of_dataclass(value)
    if isinstance(value, Mapping):
        return [getattr(value, "default_factory", None), *chain.from_iterable(value.items())]
    return value if isinstance(value, list | tuple) else None


def _parts_of_dataclass(value: DataclassInstance) -> Iterable[object]:
    own = {field.name for field in dataclasses.fields(value)}
    names = sorted(own | attributes_of(value))
    return chain.from_iterable((name, getattr(value, name, _MISSING)) for name in names)


def attributes_of(value: object) -> set[str]:
    """What an object holds besides what it computes from the rest."""
    own = getattr(value, "__dict__", {})
    return {
        name for name in own if not isinstance(getattr(type(value), name, None), cached_property)
    }


def bare_type(value: object) -> type:
    """A value's type; of a generic model the bare one, since people write `State(data=…)` for a
    `State[Data]`.
    """
    generic = getattr(type(value), "__pydantic_generic_metadata__", {})
    bare: type = generic.get("origin") or type(value)
    return bare
