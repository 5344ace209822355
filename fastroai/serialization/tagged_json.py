"""Python's own values as JSON: a closed list of builtin types, each by a tag; nothing is looked up
by a name.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

TAG = "$"

_TO_TEXT: dict[type, tuple[str, Callable[[Any], str]]] = {
    bytes: ("bytes", lambda value: b64encode(value).decode()),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
    complex: ("complex", str),
    float: ("float", repr),  # those that JSON has no number for
}

_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "bytes": lambda text: b64decode(text, validate=True),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": UUID,
    "complex": complex,
    "float": float,
}

_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def pack(value: Any) -> Any:
    """A value as JSON that tells its types; sets are sorted, so that one value has one text.

    Raises:
        TypeError: It holds something of another type.
    """
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float and value - value == 0:
        return value
    if isinstance(value, Enum):
        return pack(value.value)
    if kind is list:
        return [pack(item) for item in value]
    if kind is dict:
        if TAG not in value and all(type(key) is str for key in value):
            return {key: pack(item) for key, item in value.items()}
        return {TAG: "dict", "value": [[pack(key), pack(item)] for key, item in value.items()]}
    if kind in (set, frozenset):
        return {
            TAG: kind.__name__,
            "value": sorted(map(pack, value), key=lambda item: json.dumps(item)),
        }
    # a named one, too: its fields are in the type that the code declares
    if isinstance(value, tuple):
        return {TAG: "tuple", "value": [pack(item) for item in value]}
    if kind is timedelta:
        return {TAG: "timedelta", "value": [value.days, value.seconds, value.microseconds]}
    if kind in _TO_TEXT:
        tag, to_text = _TO_TEXT[kind]
        return {TAG: tag, "value": to_text(value)}
    raise TypeError(f"a {kind.__qualname__} can't be packed")


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
    tag, content = value[TAG], value["value"]
    if tag == "dict":
        return {unpack(key): unpack(item) for key, item in content}
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](unpack(item) for item in content)
    if tag == "timedelta":
        days, seconds, microseconds = content
        return timedelta(days, seconds, microseconds)
    return _FROM_TEXT[tag](content)
