"""Whether two values are the same for a program: equal, and of equal types all the way down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Any

from pydantic import BaseModel

DEEPEST = 100
"""Levels of nesting in a stored output: pydantic reads 200 of JSON, and a packed level takes two of
them.
"""


_LEAVES = frozenset({str, bytes, int, float, bool, type(None), Decimal, datetime})


_SIMPLE = frozenset({str, bytes, int, bool, type(None)})


def holds_set(value: Any, depth: int = 0) -> bool:
    """Whether there is a set anywhere within a value.

    Raises:
        TypeError: The value is nested too deeply or within itself, or holds an iterator, which
            looking would use up.
    """
    if type(value) in _LEAVES or isinstance(value, str | Enum):
        return False
    if depth > DEEPEST:
        raise TypeError(f"it is nested more than {DEEPEST} levels deep, or holds itself")
    if isinstance(value, Iterator):
        raise TypeError("it holds an iterator, which can be read only once")
    found = isinstance(value, set | frozenset)
    for part in _parts(value):  # all of them: each may hold an iterator
        if type(part) not in _LEAVES and holds_set(part, depth + 1):
            found = True
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return [*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values()]
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return ()


def same(decoded: Any, output: Any) -> bool:
    """Whether a decoded value can stand for the one that was encoded."""
    if type(output) in _SIMPLE:
        return type(decoded) is type(output) and bool(decoded == output)
    if kind(decoded) is not kind(output):
        return False
    if isinstance(output, Enum):
        return decoded is output
    if isinstance(output, BaseModel):
        return _same_model(decoded, output)
    if dataclasses.is_dataclass(output):
        return _same_dataclass(decoded, output)
    if isinstance(output, dict):
        return _same_items(decoded, output)
    if isinstance(output, list | tuple):
        return len(decoded) == len(output) and all(map(same, decoded, output))
    if isinstance(output, set | frozenset):
        return bool(decoded == output) and _same_members(decoded, output)
    return _same_scalar(decoded, output)


def kind(value: Any) -> Any:
    """A value's type; of a generic model the bare one, since people write `State(data=…)` for a
    `State[Data]`.
    """
    generic: Any = getattr(type(value), "__pydantic_generic_metadata__", {})
    return generic.get("origin") or type(value)


def _same_scalar(decoded: Any, output: Any) -> bool:
    if isinstance(output, datetime | time) and _offset(decoded) != _offset(output):
        return False
    # 1.1 and 1.10, 0.0 and -0.0
    if isinstance(output, Decimal | float) and str(decoded) != str(output):
        return False
    return bool(decoded == output)


def _offset(moment: datetime | time) -> object:
    """What tells two moments of the same name apart, as when the clock is set back."""
    return moment.fold if moment.tzinfo is None else moment.utcoffset()


def _same_model(decoded: Any, output: Any) -> bool:
    fields = type(output).model_fields
    return (
        all(same(decoded.__dict__.get(name), output.__dict__.get(name)) for name in fields)
        and same(decoded.__pydantic_extra__, output.__pydantic_extra__)
        and same(decoded.__pydantic_private__, output.__pydantic_private__)
        and bool(decoded == output)
    )


def _same_dataclass(decoded: Any, output: Any) -> bool:
    names = (
        {field.name for field in dataclasses.fields(output)}
        | _attributes(output)
        | _attributes(decoded)
    )
    missing, equality = object(), getattr(type(output), "__eq__")  # noqa: B009  # mypy knows better than to compare it
    return all(
        same(getattr(decoded, name, missing), getattr(output, name, missing)) for name in names
    ) and (equality is object.__eq__ or bool(decoded == output))


def _attributes(value: Any) -> set[str]:
    """What an object holds besides what it computes from the rest."""
    own = getattr(value, "__dict__", {})
    return {
        name for name in own if not isinstance(getattr(type(value), name, None), cached_property)
    }


def _same_items(decoded: Any, output: Any) -> bool:
    """In the same order, too: a prompt that is made of a dict depends on it."""
    return (
        len(decoded) == len(output)
        and getattr(decoded, "default_factory", None) is getattr(output, "default_factory", None)
        and all(
            same(a, b)
            for pair in zip(decoded.items(), output.items(), strict=True)
            for a, b in zip(*pair, strict=True)
        )
    )


def _same_members(decoded: Any, output: Any) -> bool:
    by_value = {member: member for member in decoded}
    return all(same(by_value[member], member) for member in output)
