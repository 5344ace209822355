"""Values in the form that a journal stores."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python


@cache
def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Made when it is needed: that takes longer than to import all the rest of this module."""
    return TypeAdapter(type_)


def as_json(value: Any) -> Any:
    """A value as plain JSON; of what has no such form only the type counts."""
    return to_jsonable_python(value, fallback=lambda other: type(other).__qualname__)
