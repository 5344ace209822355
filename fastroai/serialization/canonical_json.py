"""Canonical JSON: one text for one value everywhere; the base of fingerprints and cache keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

LONGEST_INT = 4096
"""Bits of an integer that is written in decimal; Python refuses to write one of many more."""

# What tells one value of these types from another is their text.
_TEXTUAL = (date, datetime, time, timedelta, Decimal, UUID)
_TYPE = "$type"
_TEXT_ONLY = {str}
_NUMBERS = frozenset({int, float})
_AS_THEY_ARE = frozenset({str, bool, type(None)})
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def canonical_json(value: object) -> str:
    """JSON of a value by its own fields; types that JSON lacks carry their name. Secrets enter as
    hashes.

    Numbers that are equal have one text (0, 0.0 and -0.0), because a value that went through JSON
    may come back with the other one. A bool is no number, and neither is a text of digits. Text is
    taken as it is, not normalised.

    Raises:
        TypeError: The value holds an object whose content is not known here (a client, a generator,
            a file).
        RecursionError: It holds itself.
    """
    return _ENCODER.encode(_canonical(value))


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, in hex."""
    text = _ENCODER.encode(_canonical(value))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_json(value: object) -> str:
    """SHA-256 of what is JSON already: as `digest`, but nothing in it is taken for a tag or a type.

    Tuples are lists, and of NaN and infinities the name is written.
    """
    text = _ENCODER.encode(with_equal_numbers(value))
    return hashlib.sha256(text.encode()).hexdigest()


def with_equal_numbers(value: object) -> object:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, dict):
        return dict(zip(value, map(with_equal_numbers, value.values()), strict=True))
    if isinstance(value, (list, tuple)):
        return list(map(with_equal_numbers, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _canonical(value: Any) -> object:
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is int and value.bit_length() < LONGEST_INT:
        return value
    if kind in _NUMBERS:
        return _number(value)
    if kind is list:
        return list(map(_canonical, value))
    if kind is dict and _TYPE not in value and set(map(type, value)) <= _TEXT_ONLY:
        return dict(zip(value, map(_canonical, value.values()), strict=True))
    return {_TYPE: type_name(value), "value": content_of(value)}


def _number(value: float) -> object:
    if type(value) is int:
        return {_TYPE: "int", "value": hex(value)}
    if value.is_integer():
        return int(value)
    if value - value == 0:
        return value
    return {_TYPE: "float", "value": repr(value)}  # NaN or an infinity


def type_name(value: object) -> str:
    """A type's name; of paths, one that is the same on every system and Python version."""
    if isinstance(value, PurePath):
        return "Path" if isinstance(value, Path) else "PurePath"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def content_of(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Enum | BaseModel):
        fields = dataclasses.fields(value)
        return _canonical({field.name: getattr(value, field.name) for field in fields})
    for kinds, content in _CONTENTS:
        if isinstance(value, kinds):
            return content(value)
    raise TypeError(f"A {type(value).__qualname__} has no canonical JSON.")


def _of_model(value: BaseModel) -> object:
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    return _canonical(fields | (value.model_extra or {}))


def _of_mapping(value: Mapping[Any, Any]) -> list[list[Any]]:
    items = [[canonical_json(key), _canonical(item)] for key, item in value.items()]
    return sorted(items, key=lambda item: item[0])


# What a value of a type is written by; the first that fits.
_CONTENTS: tuple[tuple[type | tuple[type, ...], Callable[[Any], object]], ...] = (
    (Enum, lambda value: _canonical(value.value)),
    (BaseModel, _of_model),
    ((SecretStr, SecretBytes), lambda value: digest(value.get_secret_value())),
    ((bytes, bytearray), lambda value: value.hex()),
    (_TEXTUAL, str),
    (PurePath, PurePath.as_posix),
    ((set, frozenset), lambda value: sorted(map(canonical_json, value))),
    ((list, tuple), lambda value: list(map(_canonical, value))),
    (Mapping, _of_mapping),
    (str, lambda value: _canonical(str(value))),
    (int, lambda value: _canonical(int(value))),
    (float, lambda value: _canonical(float(value))),
)
