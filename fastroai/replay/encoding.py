"""Adapters of the types that a journal stores."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter


@cache
def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Made when it is needed: that takes longer than to import all the rest of this module."""
    return TypeAdapter(type_)
