"""A result of any shape as indented text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

WIDTH = 100


def render(value: Any) -> str:
    """A result as indented text: models, dataclasses and mappings by field, sequences as lists."""
    return "\n".join(_lines(value, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, str) or (
        not isinstance(value, Iterable | BaseModel) and not _is_record(value)
    ):
        yield from _wrapped(_scalar(value), indent)
        return
    items = _items(value)
    if items is None:
        for item in value:
            lines = list(_lines(item, indent + "  ")) or [indent]
            yield f"{indent}- {lines[0].lstrip()}"
            yield from lines[1:]
        return
    for name, item in items:
        if _is_empty(item):
            yield f"{indent}{name}: (none)"
        elif not isinstance(item, str) and (
            isinstance(item, Iterable | BaseModel) or _is_record(item)
        ):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "  ")
        else:
            yield from _wrapped(f"{name}: {_scalar(item)}", indent)


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Name and value of each field; None for a plain sequence."""
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if _is_record(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    return None


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _is_empty(value: Any) -> bool:
    return (
        value is None or value == "" or (isinstance(value, Sequence | Mapping | set) and not value)
    )


def _scalar(value: Any) -> str:
    return (
        {None: "(none)", True: "yes", False: "no"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _wrapped(text: str, indent: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.splitlines() or [""]):
        first = indent if number == 0 else indent + "  "
        yield from textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent=first,
            subsequent_indent=indent + "  ",
            break_on_hyphens=False,
        ) or [""]
