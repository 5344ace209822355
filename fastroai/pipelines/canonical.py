"""Canonical JSON: one text for one value, wherever it is made; the ground of every fingerprint and cache key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

# What tells one value of these types from another is their text.
_TEXTUAL = (date, datetime, time, timedelta, Decimal, UUID, PurePath)
_TYPE = "$type"


def canonical_json(value: Any) -> str:
    """JSON of a value by its own fields; types that JSON lacks carry their name. Secrets enter as hashes.

    Raises:
        TypeError: The value holds an object whose content is not known here (a client, a generator, a file).
        ValueError: It holds a NaN or an infinity.
    """
    return json.dumps(_canonical(value), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if value is None or type(value) in (str, int, bool, float):
        return value
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is dict and _TYPE not in value and all(type(key) is str for key in value):
        return {key: _canonical(item) for key, item in value.items()}
    return {_TYPE: f"{type(value).__module__}.{type(value).__qualname__}", "value": _content(value)}


def _content(value: Any) -> Any:
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return _canonical(fields | (value.model_extra or {}))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _canonical({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, SecretStr | SecretBytes):
        return digest(value.get_secret_value())
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, _TEXTUAL):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(canonical_json(item) for item in value)
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping):
        return sorted([canonical_json(key), _canonical(item)] for key, item in value.items())
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(f"A {type(value).__qualname__} has no canonical JSON.")
