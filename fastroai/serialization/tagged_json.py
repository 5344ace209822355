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
        return {TAG: "tuple", "value": pack_all(value)}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](value)
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
        return list(map(unpack, value))
    if type(value) is not dict:
        return value
    if TAG not in value:
        return {key: unpack(item) for key, item in value.items()}
    return _VALUES[value[TAG]](value["value"])


def pack_all(items: Iterable[object]) -> list[object]:
    """Each as JSON."""
    return list(map(pack, items))


def pack_dict(value: dict[Any, object]) -> dict[str, object]:
    """As it is where its keys are text that can't be taken for a tag, else as its items."""
    if TAG not in value and _TEXT_ONLY.issuperset(map(type, value)):
        return dict(zip(value, pack_all(value.values()), strict=True))
    return {TAG: "dict", "value": list(map(pack_all, value.items()))}


def pack_set(value: Iterable[object]) -> list[object]:
    """Its members in the order of their JSON."""
    return sorted(pack_all(value), key=json.dumps)


_TEXT_ONLY = frozenset({str})
_CONTAINERS: dict[type, Callable[[Any], object]] = {list: pack_all, dict: pack_dict}
_AS_IT_IS = frozenset({type(None), str, bool, int})

# Tag and content of a value, by its type.
_CONTENTS: dict[type, tuple[str, Callable[[Any], object]]] = {
    set: ("set", pack_set),
    frozenset: ("frozenset", pack_set),
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
