"""Functions by their code, with what that refers to."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import FunctionType, ModuleType

from ..metering.sending_methods import as_written
from .code_origin import origin_of_function, origin_of_module
from .describer import Describer
from .functions import FunctionSource, LocalImport, Reference, rebound_globals, source_of

# What a module knows of itself: where it stands on this machine, and how it was loaded.
_MODULE_NAMES = frozenset(
    {
        "__builtins__",
        "__cached__",
        "__file__",
        "__loader__",
        "__name__",
        "__package__",
        "__path__",
        "__spec__",
    }
)
_MISSING = object()


def describe_function(function: FunctionType, describer: Describer) -> object:
    """A function by its text, its defaults, its closure and what it reads from its module.

    Another package's (a decorator's wrapper, say) by its name and what it was given.
    """
    function = as_written(function)  # else a class of models changed when its requests are metered
    closure = list(closure_of(function, describer))
    attributes = [[name, describer.value(value)] for name, value in sorted(vars(function).items())]
    if not describer.follows(origin_of_function(function)):
        package = function.__globals__.get("__name__", "").partition(".")[0]
        return ["library function", package, function.__code__.co_qualname, closure, attributes]
    source = source_of(function.__code__, function.__globals__)
    closure = [[name, value] for name, value in closure if name not in source.rebound]
    defaults = [describer.value(function.__defaults__), describer.value(function.__kwdefaults__)]
    read = [*read_names(function, source, describer), *imported_names(function, source, describer)]
    return ["function", source.identity, defaults, closure, attributes, read]


def closure_of(function: FunctionType, describer: Describer) -> Iterator[list[object]]:
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    for name, cell in zip(names, cells, strict=True):
        try:
            value = describer.value(cell.cell_contents)
        except ValueError:  # not filled yet: the function refers to a name that is defined later
            value = ["empty"]
        yield [name, value]


def read_names(
    function: FunctionType, source: FunctionSource, describer: Describer
) -> Iterator[list[object]]:
    """What a function finds in its module, without what the module changes."""
    module = function.__globals__
    left_out = _MODULE_NAMES | rebound_globals(function.__code__)
    for name in source.globals:
        if name in module and name not in left_out:
            yield from describe_name(name, module[name], source.references.get(name, ()), describer)


def imported_names(
    function: FunctionType, source: FunctionSource, describer: Describer
) -> Iterator[list[object]]:
    """What a function imports when it runs, where that is own code."""
    for local in source.imports:
        try:
            name = importlib.util.resolve_name(
                local.module, function.__globals__.get("__package__")
            )
            if not describer.holds(name):
                continue
            value = _import(name, local)
        except Exception:  # a step that imports it will say what is wrong
            continue
        yield from describe_name(
            local.bound, value, source.references.get(local.bound, ()), describer
        )


def _import(name: str, local: LocalImport) -> object:
    module = importlib.import_module(name)
    if local.name is None:
        return module
    if local.name in vars(module):
        return vars(module)[local.name]
    return importlib.import_module(f"{name}.{local.name}")


def describe_name(
    name: str, value: object, uses: Sequence[Reference], describer: Describer
) -> Iterator[list[object]]:
    """What stands behind a name, through the attributes that are taken of it where these say."""
    paths = sorted({use.attributes for use in uses})
    if isinstance(value, ModuleType):
        for path in paths:
            yield from describe_name_of_module(name, value, path, describer)
        return
    members = data_of_class(value, paths, describer) or {(): value}
    for path, member in members.items():
        yield [".".join((name, *path)), describer.value(member)]
    if isinstance(value, FunctionType) and not all(use.is_called for use in uses):
        # handed on, perhaps as a tool, whose docstring the model reads
        yield [f"{name}.__doc__", value.__doc__]


def describe_name_of_module(
    name: str, module: ModuleType, path: tuple[str, ...], describer: Describer
) -> Iterator[list[object]]:
    value: object = module
    taken = [name]
    for attribute in path:
        if not isinstance(value, ModuleType):
            break
        value = vars(value).get(attribute, _MISSING)
        taken.append(attribute)
    if value is _MISSING or isinstance(value, ModuleType):
        return
    is_constant = isinstance(value, str | bytes | int | float)
    if is_constant or describer.follows(origin_of_module(module)):
        yield [".".join(taken), describer.value(value)]


def data_of_class(
    value: object, paths: Iterable[tuple[str, ...]], describer: Describer
) -> Mapping[tuple[str, ...], object]:
    """What is taken of an own class, where all of it is data; else nothing."""
    if not isinstance(value, type) or not describer.is_own(value):
        return {}
    members = {path: static_member(value, path) for path in paths}
    if () in members or not all(map(is_data, members.values())):
        return {}
    return members


def static_member(cls: type, path: tuple[str, ...]) -> object:
    """What a class's attribute is, looked up without running any code; `_MISSING` where that does
    not tell.
    """
    found: object = cls
    for attribute in path:
        if isinstance(found, type):
            found = attribute_of_class(found, attribute)
        elif isinstance(found, Enum):
            found = getattr(found, attribute) if attribute in ("name", "value") else _MISSING
        else:
            break
    return found


def attribute_of_class(cls: type, attribute: str) -> object:
    if issubclass(cls, Enum) and attribute in cls.__members__:
        return cls.__members__[attribute]
    for base in cls.__mro__:
        if attribute in vars(base):
            return vars(base)[attribute]
    return _MISSING


def is_data(value: object) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_data, value))
    if isinstance(value, dict):
        return all(map(is_data, value.values()))
    return isinstance(value, str | bytes | int | float | Enum | None)
