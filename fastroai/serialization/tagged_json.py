"""Python values as JSON: a closed list of builtin types, each with a tag."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

TAG = "$"


def pack(value: Any) -> Any:
    """A value as JSON that tells its types; sets are sorted, so that one value has one text.

    Raises:
        TypeError: It holds something of another type.
    """
    kind = type(value)
    if kind in _AS_IT_IS or (kind is float and value - value == 0):
        return value
    if isinstance(value, Enum):
        return pack(value.value)
    # a named one, too: its fields are in the type that the code declares
    if isinstance(value, tuple):
        return {TAG: "tuple", "value": _packed(value)}
    if kind is list:
        return _packed(value)
    if kind is dict:
        return _packed_dict(value)
    if kind not in _CONTENTS:
        raise TypeError(f"a {kind.__qualname__} can't be packed")
    tag, content = _CONTENTS[kind]
    return {TAG: tag, "value": content(value)}


def unpack(value: Any) -> Any:
    """What `pack` was given.

    Raises:
        ValueError, TypeError, KeyError: It is nothing that `pack` makes.
    """
    if type(value) is list:
        return [unpack(item) for item in value]
    if type(value) is not dict:
        return value
    if TAG not in value:
        return {key: unpack(item) for key, item in value.items()}
    return _VALUES[value[TAG]](value["value"])


def _packed(items: Iterable[object]) -> list[object]:
    return [pack(item) for item in items]


def _packed_dict(value: dict[Any, object]) -> dict[str, object]:
    if TAG not in value and all(type(key) is str for key in value):
        return {key: pack(item) for key, item in value.items()}
    return {TAG: "dict", "value": [_packed(item) for item in value.items()]}


def _sorted(value: Iterable[object]) -> list[object]:
    return sorted(_packed(value), key=json.dumps)


_AS_IT_IS = frozenset({type(None), str, bool, int})

# Tag and content of a value, by its type.
_CONTENTS: dict[type, tuple[str, Callable[[Any], object]]] = {
    set: ("set", _sorted),
    frozenset: ("frozenset", _sorted),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    bytes: ("bytes", lambda value: b64encode(value).decode()),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
    complex: ("complex", str),
    float: ("float", repr),  # those that JSON has no number for
}

# The value of a content, by its tag.
_VALUES: dict[str, Callable[[Any], Any]] = {
    "dict": lambda content: {unpack(key): unpack(item) for key, item in content},
    "tuple": lambda content: tuple(map(unpack, content)),
    "set": lambda content: set(map(unpack, content)),
    "frozenset": lambda content: frozenset(map(unpack, content)),
    "timedelta": lambda content: timedelta(*content),
    "bytes": lambda content: b64decode(content, validate=True),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
    "complex": complex,
    "float": float,
}
