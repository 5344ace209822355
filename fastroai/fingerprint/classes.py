"""Classes and the fields of their objects as plain lists."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from enum import Enum
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import get_origin, is_typeddict

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo, ModelPrivateAttr

from .describer import Describer

# Kept on classes by what made them, and not said in their source.
_MACHINERY = frozenset({"_abc_impl", "model_fields", "model_computed_fields"})


def describe_class(cls: type, describer: Describer) -> object:
    """A class: its bases, fields and schema, its methods' code, its attributes' values."""
    bases = [describer.value(base) for base in cls.__bases__ if base is not object]
    has_schema = issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls) or is_typeddict(cls)
    schema = json_schema(cls) if has_schema else None
    fields, members = declared_fields(cls, describer), written_members(cls, describer)
    return ["class", cls.__qualname__, bases, schema, fields, members]


def describe_fields(value: object, describer: Describer) -> object:
    """What an object holds, by name. Values that a `cached_property` keeps are none of its own."""
    held = held_by_model(value) if isinstance(value, BaseModel) else held_by_object(value)
    return [
        [name, describer.value(item)]
        for name, item in sorted(held.items())
        if not isinstance(getattr(type(value), name, None), functools.cached_property)
    ]


def held_by_model(model: BaseModel) -> dict[str, object]:
    fields = {name: getattr(model, name, None) for name in type(model).model_fields}
    return fields | (model.model_extra or {}) | (model.__pydantic_private__ or {})


def held_by_object(value: object) -> dict[str, object]:
    slots = itertools.chain.from_iterable(map(slots_of, type(value).__mro__))
    in_slots = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return in_slots | getattr(value, "__dict__", {})


def is_record(value: object) -> bool:
    """Whether an object is of declared fields: a model's or a dataclass's, also of a library."""
    return isinstance(value, BaseModel) or dataclasses.is_dataclass(value)


def is_hint(value: object) -> bool:
    """Whether an object is a type, or a generic one with its arguments."""
    return isinstance(value, type) or get_origin(value) is not None


def json_schema(hint: object) -> object:
    """The JSON schema of a type, docstrings and descriptions included, as a model is shown it; else
    its name.
    """
    return _schema_of_class(hint) if isinstance(hint, type) else _schema(hint)


def _schema(hint: object) -> object:
    try:
        adapter: TypeAdapter[object] = TypeAdapter(hint)  # type: ignore[arg-type]  # any hint
        return adapter.json_schema()
    except Exception:  # any type that pydantic can't describe still has a name
        return getattr(hint, "__qualname__", type(hint).__qualname__)


# Of a class only: two generic types that are equal may have other schemas.
_schema_of_class = functools.lru_cache(maxsize=512)(_schema)


def slots_of(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def declared_fields(cls: type, describer: Describer) -> object:
    """Defaults, and how pydantic's validators are applied, where a schema does not say it."""
    if issubclass(cls, Enum):
        return [[name, describer.value(member.value)] for name, member in cls.__members__.items()]
    if issubclass(cls, BaseModel):
        return declared_fields_of_model(cls, describer)
    if dataclasses.is_dataclass(cls):
        return [[f.name, *_default(f, describer)] for f in dataclasses.fields(cls)]
    return None


def declared_fields_of_model(cls: type[BaseModel], describer: Describer) -> object:
    fields = [
        [name, _pydantic_field(field, describer)]
        for name, field in sorted(cls.model_fields.items())
    ]
    private = [
        [name, *_default(attribute, describer)]
        for name, attribute in sorted(cls.__private_attributes__.items())
    ]
    applied: list[object] = []
    for kind in dataclasses.fields(cls.__pydantic_decorators__):
        decorators = getattr(cls.__pydantic_decorators__, kind.name)
        if isinstance(decorators, dict):
            for name, decorator in sorted(decorators.items()):
                applied.append([kind.name, name, describer.value(decorator.info)])
    return [fields, private, applied]


def _default(
    field: dataclasses.Field[object] | FieldInfo | ModelPrivateAttr, describer: Describer
) -> list[object]:
    return [describer.value(field.default), describer.value(field.default_factory)]


def _pydantic_field(field: FieldInfo, describer: Describer) -> object:
    default = _default(field, describer)
    return [default, describer.parts(field.annotation), describer.value(field.metadata)]


def written_members(cls: type, describer: Describer) -> object:
    return [
        [name, describe_member(item, describer)]
        for name, item in sorted(vars(cls).items())
        if is_written(cls, name, item)
    ]


def describe_member(item: object, describer: Describer) -> object:
    if isinstance(item, staticmethod | classmethod):
        return [type(item).__name__, describer.value(item.__func__)]
    if isinstance(item, property):
        return ["property", *map(describer.value, (item.fget, item.fset, item.fdel))]
    if isinstance(item, functools.cached_property):
        return ["property", describer.value(item.func)]
    return describer.value(item)


def is_written(cls: type, name: str, item: object) -> bool:
    """Whether a class's attribute stands in its source, and was not put there by Python or a
    library.
    """
    if name in _MACHINERY or isinstance(item, MemberDescriptorType | GetSetDescriptorType):
        return False
    if isinstance(item, staticmethod | classmethod):
        item = item.__func__
    is_special = name.startswith("_") and name.endswith("_")
    if isinstance(item, FunctionType):
        return not is_special or _is_of_source(item, cls)
    return not is_special and name not in getattr(cls, "__members__", ())  # of an enum


def _is_of_source(method: FunctionType, cls: type) -> bool:
    if method.__module__ != cls.__module__:
        return False
    # dataclasses and named tuples compile methods from text of their own.
    code: CodeType = inspect.unwrap(method).__code__
    return code.co_filename != "<string>"
