"""fingerprint(): the identity of a step's code and configuration, stable across processes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import re
import string
from collections import UserDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID, uuid4

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_ai.agent import AbstractAgent

from ..agent.agent import FastroAgent
from ..pipelines.agent_step import AgentStepWrapper
from ..pipelines.base import BaseStep
from ..pipelines.config import StepConfig
from ..pipelines.decorators import FunctionStep
from ..serialization.canonical_json import digest
from .agents import describe_agent, describe_part, is_part_of_an_agent
from .classes import describe_class, describe_fields, json_schema
from .code_origin import CodeOrigin, origin_of_class, origin_of_function, origin_of_module
from .functions import (
    LocalImport,
    compiled_identity,
    rebound_globals,
    source_of,
)
from .values import (
    describe_builtin,
    describe_enum,
    describe_mapping,
    describe_method,
    describe_namespace,
    describe_partial,
    describe_path,
    describe_pattern,
    describe_sequence,
    describe_template,
    describe_text,
)

logger = logging.getLogger("fastroai.pipelines")

_TEXTUAL = (date, datetime, time, timedelta, Decimal, Fraction, UUID, range)
_SEQUENCES = (list, tuple, deque)
_MAPPINGS = (dict, MappingProxyType, UserDict)
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


def fingerprint(step: BaseStep[Any, Any]) -> str:
    """Hash what a step does: a changed prompt, model or line of code changes it, an unrelated edit
    does not.

    Covers the step's function or class and what these refer to (functions and classes of the same
    package, constants, data, agents with their models, prompts, settings, tools and output types),
    and the output type it declares. Of other packages' code the names count. docs/caching.md has
    the whole list.
    """
    describer = StepDescriber()
    try:
        return digest(describer.once(step, lambda: describer.step(step)))
    # an object whose attributes raise, or nested too deep: no reason not to run the step
    except Exception as error:
        logger.warning(
            "Step %r can't be fingerprinted, so its results are not reused: %r", step, error
        )
        return f"unidentified-{uuid4()}"


class StepDescriber:
    """Turns what a step refers to into plain lists that say the same in every process; made anew
    for each step.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, object]] = {}
        self._home: CodeOrigin | None = None
        self._agents: list[Any] = []

    def step(self, step: Any) -> object:
        """A step, whatever kind it is of."""
        if isinstance(step, FunctionStep) and step.version is not None:
            return self._versioned(step)
        if isinstance(step, FunctionStep):
            return ["step function", self.root(step.function), self._declared(step.function)]
        if isinstance(step, AgentStepWrapper):
            return ["step agent", self.value(step.agent), self.root(step.prompt)]
        with self._at(origin_of_class(type(step))):
            code = [self.value(type(step)), describe_fields(step, self)]
            return ["step class", code, self._declared(type(step).execute, type(step))]

    def _versioned(self, step: FunctionStep) -> object:
        """A step by its version, its declared output and the agents that its code reaches."""
        self.root(step.function)
        # Each by itself: their order, and what else the code holds, must not count.
        agents = [digest(StepDescriber().value(agent)) for agent in self._agents]
        return [
            "step version",
            step.version,
            StepDescriber()._declared(step.function),
            sorted(agents),
        ]

    def root(self, value: object) -> object:
        """Something of whoever wrote it: its own home is the one in which code is followed."""
        inner = value
        while True:
            if isinstance(inner, functools.partial):
                inner = inner.func
            elif isinstance(inner, MethodType):
                inner = inner.__func__
            elif isinstance(inner, FunctionStep):
                inner = inner.function
            else:
                wrapped = getattr(inner, "__dict__", {}).get("__wrapped__")
                if wrapped is None:
                    break
                inner = wrapped
        if isinstance(inner, FunctionType):
            home = origin_of_function(inner)
        else:
            home = origin_of_class(inner if isinstance(inner, type) else type(inner))
        with self._at(home):
            return self.value(value)

    def value(self, value: object) -> object:
        """Data by its content, code by what it does, anything else (clients, locks, files) by its
        type's name.
        """
        if value is None or isinstance(value, bool):
            return value
        if type(value) is str:
            return value if self._home is None else self._home.place(value)
        for kinds, describe in _DESCRIBERS:
            if isinstance(value, kinds):
                return describe(value, self)
        if is_part_of_an_agent(value):
            return self.once(value, lambda: describe_part(value, self))
        return self._object(value)

    def once(self, value: object, describe: Callable[[], object]) -> object:
        """A description, or where the same object was described before, the number it then got."""
        if id(value) in self._seen:
            return ["seen", self._seen[id(value)][0]]
        if isinstance(value, FastroAgent | AbstractAgent):
            self._agents.append(value)
        # kept, so that no other object gets its id
        self._seen[id(value)] = (len(self._seen), value)
        return describe()

    def hint(self, hint: object) -> object:
        """A type as the model or the next step sees it, with the code of the classes in it."""
        return [json_schema(hint), self.parts(hint)]

    def parts(self, hint: object) -> object:
        """The code of the classes and validators in a type."""
        if isinstance(hint, type):
            with self._at(origin_of_class(hint)):
                return self.value(hint)
        inner = [
            self.parts(part)
            for part in get_args(hint)
            if isinstance(part, type) or get_origin(part) is not None
        ]
        return [inner, [self.value(part) for part in getattr(hint, "__metadata__", ())]]

    def is_own(self, cls: type) -> bool:
        """Whether a class belongs to the code that is being followed."""
        return self._follows(origin_of_class(cls))

    def _follows(self, home: CodeOrigin) -> bool:
        return home == self._home and not home.is_library

    @contextmanager
    def _at(self, home: CodeOrigin) -> Iterator[None]:
        outer, self._home = self._home, home
        try:
            yield
        finally:
            self._home = outer

    def _declared(self, function: Any, cls: type | None = None) -> object:
        """The output type that code declares, as far as it can be resolved."""
        try:
            hints = [get_type_hints(function, include_extras=True).get("return")]
        except Exception:  # a name that can't be resolved here is in the source as it is written
            hints = []
        for klass in cls.__mro__ if cls is not None else ():
            bases = klass.__dict__.get("__orig_bases__", ())
            hints += [get_args(base)[1] for base in bases if get_origin(base) is BaseStep]
        return [self.hint(hint) for hint in hints if hint is not None]

    # Code

    def function(self, function: FunctionType) -> object:
        """A function by its code and what that refers to; once."""
        return self.once(function, lambda: self._describe_function(function))

    def _describe_function(self, function: Any) -> object:
        closure = [
            [name, self._cell(cell)]
            for name, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            )
        ]
        attributes = [[name, self.value(value)] for name, value in sorted(vars(function).items())]
        if not self._follows(origin_of_function(function)):
            # Another package's: a decorator's wrapper, say. What it was given counts, not how it is
            # written.
            package = function.__globals__.get("__name__", "").partition(".")[0]
            return ["library function", package, function.__code__.co_qualname, closure, attributes]
        source = source_of(function.__code__, function.__globals__)
        closure = [[name, value] for name, value in closure if name not in source.rebound]
        defaults = [self.value(function.__defaults__), self.value(function.__kwdefaults__)]
        state = rebound_globals(function.__code__)
        names = [name for name in source.globals if name not in state and name not in _MODULE_NAMES]
        read = [
            described
            for name in names
            if name in function.__globals__
            for described in self._global(
                name, function.__globals__[name], source.references.get(name, ())
            )
        ]
        for local in source.imports:
            read += self._imported(
                local, function.__globals__, source.references.get(local.bound, ())
            )
        return ["function", source.identity, defaults, closure, attributes, read]

    def _imported(self, local: LocalImport, module: Mapping[str, Any], uses: Any) -> Iterator[Any]:
        """What a function imports when it runs, where that is own code."""
        try:
            name = importlib.util.resolve_name(local.module, module.get("__package__"))
            if self._home is None or not self._home.holds(name):
                return
            value: object = importlib.import_module(name)
            if local.name is not None:
                held = vars(value)
                value = (
                    held[local.name]
                    if local.name in held
                    else importlib.import_module(f"{name}.{local.name}")
                )
        except Exception:  # a step that imports it will say what is wrong
            return
        yield from self._global(local.bound, value, uses)

    def _cell(self, cell: Any) -> object:
        try:
            return self.value(cell.cell_contents)
        except ValueError:  # not filled yet: the function refers to a name that is defined later
            return ["empty"]

    def _global(self, name: str, value: object, uses: Any) -> Iterator[Any]:
        """What a function finds under a name of its module, through the attributes it takes of it
        where these say.
        """
        paths = sorted({use.attributes for use in uses})
        if isinstance(value, ModuleType):
            for path in paths:
                yield from self._of_module(name, value, path)
            return
        if isinstance(value, type) and self.is_own(value) and paths and all(paths):
            found = [_static_member(value, path) for path in paths]
            if all(_is_data(member) for member in found):
                for path, member in zip(paths, found, strict=True):
                    yield [".".join((name, *path)), self.value(member)]
                return
        yield [name, self.value(value)]
        if isinstance(value, FunctionType) and not all(use.is_called for use in uses):
            # handed on, perhaps as a tool, whose docstring the model reads
            yield [f"{name}.__doc__", value.__doc__]

    def _of_module(self, name: str, module: ModuleType, path: tuple[str, ...]) -> Iterator[Any]:
        value: object = module
        taken = [name]
        for attribute in path:
            if not isinstance(value, ModuleType):
                break
            value = vars(value).get(attribute, _MISSING)
            taken.append(attribute)
        if value is _MISSING or isinstance(value, ModuleType):
            return
        if self._follows(origin_of_module(module)) or isinstance(value, str | bytes | int | float):
            yield [".".join(taken), self.value(value)]

    def type(self, cls: type) -> object:
        """A class: an own one by its code, another by its name."""
        if not self.is_own(cls):
            return ["type", _label(cls)]
        return self.once(cls, lambda: describe_class(cls, self))

    def set(self, items: Iterable[object]) -> object:
        """In an order that no hash seed changes: each item is described as if it were the only
        one.
        """
        seen, described = self._seen, []
        for item in items:
            self._seen = dict(seen)
            described.append(self.value(item))
        self._seen = seen
        return ["set", *sorted(described, key=digest)]

    def _object(self, value: object) -> object:
        from ..pipelines.pipeline import Pipeline  # it imports the plan, which imports this

        if isinstance(value, Pipeline):
            return self.once(value, lambda: self._pipeline(value))
        if (
            isinstance(value, BaseModel)
            or dataclasses.is_dataclass(value)
            or self.is_own(type(value))
        ):
            return self._instance(value)
        if isinstance(
            code := getattr(getattr(value, "root_render_func", None), "__code__", None), CodeType
        ):
            return ["template", compiled_identity(code)]  # Jinja's: it keeps no source
        if callable(value) and hasattr(value, "__wrapped__"):
            return ["wrapper", _label(type(value)), self.value(value.__wrapped__)]
        if get_origin(value) is not None:
            return ["hint", self.hint(value)]
        return ["type", _label(type(value))]

    def _instance(self, value: object) -> object:
        return self.once(
            value, lambda: ["instance", self.value(type(value)), describe_fields(value, self)]
        )

    def _pipeline(self, pipeline: Any) -> object:
        nodes = pipeline.plan.steps.items()
        return [
            "pipeline",
            [[id_, list(node.dependencies), self.value(node.step)] for id_, node in nodes],
        ]


_MISSING: Any = object()

# The first that fits; a kind stands before those it is derived from.
_DESCRIBERS: tuple[tuple[type | tuple[type, ...], Callable[[Any, StepDescriber], object]], ...] = (
    (Enum, describe_enum),
    (str, describe_text),
    (int, lambda number, _: ["int", hex(number)]),
    ((float, complex), lambda number, _: [type(number).__name__, repr(number)]),
    ((bytes, bytearray), lambda content, _: ["bytes", content.hex()]),
    (StepConfig, lambda config, _: ["step config"]),
    (FastroAgent, lambda agent, self: self.once(agent, lambda: describe_agent(agent, self))),
    (BaseStep, lambda step, self: self.once(step, lambda: self.step(step))),
    (FunctionType, lambda function, self: self.function(function)),
    (MethodType, describe_method),
    (BuiltinFunctionType, describe_builtin),
    (functools.partial, describe_partial),
    (type, lambda cls, self: self.type(cls)),
    (ModuleType, lambda module, _: ["module", module.__name__.partition(".")[0]]),
    ((SecretStr, SecretBytes), lambda secret, _: ["secret"]),
    (PurePath, describe_path),
    (_TEXTUAL, lambda value, _: [type(value).__name__, str(value)]),
    (re.Pattern, describe_pattern),
    (string.Template, describe_template),
    (SimpleNamespace, describe_namespace),
    (_SEQUENCES, describe_sequence),
    ((set, frozenset), lambda items, self: self.set(items)),
    (_MAPPINGS, describe_mapping),
)


def _label(value: type) -> str:
    """A name that says the same whichever module of its package something moved to."""
    return f"{value.__module__.partition('.')[0]}.{value.__qualname__}"


def _static_member(cls: type, path: tuple[str, ...]) -> object:
    """What a class's attribute is, looked up without running any code; `_MISSING` where that does
    not tell.
    """
    found: Any = cls
    for attribute in path:
        if isinstance(found, Enum) and attribute in ("name", "value"):
            found = getattr(found, attribute)
        elif isinstance(found, type) and issubclass(found, Enum) and attribute in found.__members__:
            found = found.__members__[attribute]
        elif isinstance(found, type):
            found = next(
                (vars(base)[attribute] for base in found.__mro__ if attribute in vars(base)),
                _MISSING,
            )
        else:
            return _MISSING if isinstance(found, Enum) else found
    return found


def _is_data(value: object) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    return value is None or isinstance(value, str | bytes | int | float | Enum)
