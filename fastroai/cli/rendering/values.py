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
    return "\n".join(lines_of(plain, ""))


def lines_of(value: JSON, indent: str) -> Iterator[str]:
    """A value at an indent."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from field_lines(name, item, indent)
    elif isinstance(value, list):
        for item in value:
            first, *rest = [*lines_of(item, indent + "  ")] or [""]
            yield f"{indent}- {first.lstrip()}"
            yield from rest
    else:
        yield from wrapped(scalar(value), indent)


def field_lines(name: str, value: JSON, indent: str) -> Iterator[str]:
    """A field, on one line where its value has room there."""
    if isinstance(value, dict | list) and value:
        yield f"{indent}{name}:"
        yield from lines_of(value, indent + "  ")
    else:
        yield from wrapped(f"{name}: {scalar(value)}", indent)


def scalar(value: JSON) -> str:
    """A value that has no parts."""
    if value is None or value in ("", {}, []):
        return "(none)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def wrapped(text: str, indent: str) -> Iterator[str]:
    """A text in paragraphs, the first line less indented."""
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
