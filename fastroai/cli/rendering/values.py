"""A result of any shape as indented text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pydantic_core import to_jsonable_python

WIDTH = 100

JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None


def render(value: object) -> str:
    """A result as indented text: models, dataclasses and mappings by field, sequences as lists."""
    plain: JSON = to_jsonable_python(
        value, by_alias=False, inf_nan_mode="constants", fallback=str, serialize_unknown=True
    )
    return "\n".join(_lines(plain, ""))


def _lines(value: JSON, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _field(name, item, indent)
    elif isinstance(value, list):
        for item in value:
            first, *rest = [*_lines(item, indent + "  ")] or [""]
            yield f"{indent}- {first.lstrip()}"
            yield from rest
    else:
        yield from _wrapped(_scalar(value), indent)


def _field(name: str, value: JSON, indent: str) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield f"{indent}{name}:"
        yield from _lines(value, indent + "  ")
    else:
        yield from _wrapped(f"{name}: {_scalar(value)}", indent)


def _scalar(value: JSON) -> str:
    if value is None or value in ("", {}, []):
        return "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _wrapped(text: str, indent: str) -> Iterator[str]:
    first = indent
    for paragraph in text.splitlines():
        yield from textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent=first,
            subsequent_indent=indent + "  ",
            break_on_hyphens=False,
        ) or [""]
        first = indent + "  "
