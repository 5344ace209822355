"""Data by its content, as plain lists."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from .describer import Describer


def describe_enum(member: Enum, describer: Describer) -> list[object]:
    """A member by its class, name and value."""
    value = describer.value(member.value)
    return ["enum", describer.value(type(member)), member.name, value]


def describe_text(text: str, describer: Describer) -> list[object]:
    """A text of a class derived from `str`."""
    return [type(text).__name__, describer.value(str.__str__(text))]


def describe_sequence(items: Iterable[object], describer: Describer) -> object:
    """A list or tuple by its items."""
    if isinstance(items, tuple):
        # Python may make one object of equal tuples: that one was seen before says nothing.
        return ["tuple", *(describe_item(item, describer) for item in items)]
    return describer.once(
        items, lambda: ["list", *(describe_item(item, describer) for item in items)]
    )


def describe_item(item: object, describer: Describer) -> object:
    """An item of a list; a function, which may be a tool, with the docstring the model reads."""
    if isinstance(item, FunctionType):
        return [describer.value(item), item.__doc__]
    return describer.value(item)


def describe_mapping(items: Mapping[Any, object], describer: Describer) -> object:
    """A dict or another mapping by its items, in their order."""

    def pairs() -> list[object]:
        return [[describer.value(key), describer.value(item)] for key, item in items.items()]

    return describer.once(items, lambda: ["mapping", *pairs()])


def describe_namespace(namespace: SimpleNamespace, describer: Describer) -> object:
    """A namespace as a mapping."""
    return describe_mapping(vars(namespace), describer)


def describe_path(path: PurePath, describer: Describer) -> list[object]:
    """A path, which counts relative to the folder of the code that it is in."""
    return ["path", describer.value(path.as_posix())]


def describe_builtin(function: BuiltinFunctionType, describer: Describer) -> list[object]:
    """A function of Python's own, with the object that it is bound to."""
    owner = function.__self__
    bound = None if isinstance(owner, ModuleType) else describer.value(owner)
    return ["builtin", function.__qualname__, bound]


def describe_pattern(pattern: re.Pattern[str], describer: Describer) -> list[object]:
    """A regular expression."""
    return ["pattern", describer.value(pattern.pattern), pattern.flags]


def describe_template(template: string.Template, describer: Describer) -> list[object]:
    """A template of Python's own kind."""
    return ["template", describer.value(type(template)), describer.value(template.template)]


def describe_method(method: MethodType, describer: Describer) -> list[object]:
    """A bound method by its function and its object."""
    return ["method", describer.value(method.__func__), describer.value(method.__self__)]


def describe_partial(partial: functools.partial[object], describer: Describer) -> list[object]:
    """A partial by its function and the arguments it has."""
    parts = (partial.func, partial.args, partial.keywords)
    return ["partial", *(describer.value(part) for part in parts)]
