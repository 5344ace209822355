"""fingerprint(): the identity of a step's code and configuration, stable across processes."""

from __future__ import annotations

import functools
import logging
import re
import string
from collections import UserDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
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
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints
from uuid import UUID, uuid4

from pydantic import SecretBytes, SecretStr
from pydantic_ai.agent import AbstractAgent

from ..agent.agent import FastroAgent
from ..pipelines.agent_step import AgentStepWrapper
from ..pipelines.base import BaseStep
from ..pipelines.config import StepConfig
from ..pipelines.decorators import FunctionStep
from ..pipelines.mapped import MappedStep
from ..serialization.canonical_json import digest
from .agents import describe_agent, describe_part, is_part_of_an_agent
from .classes import describe_class, describe_fields, is_hint, is_record, json_schema
from .code import describe_function
from .code_origin import CodeOrigin, origin_of_class, origin_of_function
from .functions import compiled_identity
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

if TYPE_CHECKING:
    from ..pipelines.pipeline import Pipeline

logger = logging.getLogger("fastroai.pipelines")

_TEXTUAL = (date, datetime, time, timedelta, Decimal, Fraction, UUID, range)
_SEQUENCES = (list, tuple, deque)
_MAPPINGS = (dict, MappingProxyType, UserDict)


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


def agents_of(step: BaseStep[Any, Any]) -> tuple[FastroAgent[Any] | AbstractAgent[Any, Any], ...]:
    """The agents that a step's code refers to, those of their tools included; not those that it
    makes or is handed when it runs.
    """
    describer = StepDescriber()
    with suppress(Exception):  # as in `fingerprint`
        describer.once(step, lambda: describer.step(step))
    return tuple(describer.agents)


class StepDescriber:
    """Turns what a step refers to into plain lists that say the same in every process; made anew
    for each step.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, object]] = {}
        self._home: CodeOrigin | None = None
        self.agents: list[FastroAgent[Any] | AbstractAgent[Any, Any]] = []
        """Those met so far, each once."""

    def step(self, step: Any) -> object:
        """A step, whatever kind it is of."""
        if isinstance(step, MappedStep):
            return self.step(step.step)  # over what and how is not what an item's output is made of
        if isinstance(step, FunctionStep) and step.version is not None:
            return self._versioned(step)
        if isinstance(step, FunctionStep):
            code = self.root(step.function)
            return ["step function", code, self._declared(return_type(step.function))]
        if isinstance(step, AgentStepWrapper):
            return ["step agent", self.value(step.agent), self.root(step.prompt)]
        with self._at(origin_of_class(type(step))):
            code = [self.value(type(step)), describe_fields(step, self)]
            declared = return_type(type(step).execute), *declared_outputs(type(step))
            return ["step class", code, self._declared(*declared)]

    def _versioned(self, step: FunctionStep) -> object:
        """A step by its version, its declared output and the agents that its code reaches."""
        self.root(step.function)
        # Each by itself: their order, and what else the code holds, must not count.
        agents = [digest(StepDescriber().value(agent)) for agent in self.agents]
        return [
            "step version",
            step.version,
            StepDescriber()._declared(return_type(step.function)),
            sorted(agents),
        ]

    def root(self, value: object) -> object:
        """Something of whoever wrote it: its own home is the one in which code is followed."""
        inner = unwrapped(value)
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
        if isinstance(value, bool | None):
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
            self.agents.append(value)
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
        inner = list(map(self.parts, filter(is_hint, get_args(hint))))
        return [inner, list(map(self.value, getattr(hint, "__metadata__", ())))]

    def is_own(self, cls: type) -> bool:
        """Whether a class belongs to the code that is being followed."""
        return self.follows(origin_of_class(cls))

    def follows(self, home: CodeOrigin) -> bool:
        """Whether code of this origin is followed."""
        return home == self._home and not home.is_library

    def holds(self, module: str) -> bool:
        """Whether a module of that name belongs to the code that is being followed."""
        return self._home is not None and self._home.holds(module)

    @contextmanager
    def _at(self, home: CodeOrigin) -> Iterator[None]:
        outer, self._home = self._home, home
        try:
            yield
        finally:
            self._home = outer

    def _declared(self, *hints: object) -> object:
        return [self.hint(hint) for hint in hints if hint is not None]

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
        if is_record(value) or self.is_own(type(value)):
            return self.once(
                value,
                lambda: ["instance", self.value(type(value)), describe_fields(value, self)],
            )
        if (template := template_code(value)) is not None:
            return ["template", compiled_identity(template)]
        if callable(value) and hasattr(value, "__wrapped__"):
            return ["wrapper", _label(type(value)), self.value(value.__wrapped__)]
        if get_origin(value) is not None:
            return ["hint", self.hint(value)]
        return ["type", _label(type(value))]

    def _pipeline(self, pipeline: Pipeline[Any, Any, Any]) -> object:
        nodes = pipeline.plan.steps.items()
        return [
            "pipeline",
            [[id_, list(node.dependencies), self.value(node.step)] for id_, node in nodes],
        ]


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
    (FunctionType, lambda code, self: self.once(code, lambda: describe_function(code, self))),
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


def unwrapped(value: object) -> object:
    """What partials, methods, steps and decorators that say so were made of."""
    inner = value
    while inner is not None:
        value = inner
        if isinstance(value, functools.partial):
            inner = value.func
        elif isinstance(value, MethodType):
            inner = value.__func__
        elif isinstance(value, FunctionStep):
            inner = value.function
        else:
            inner = getattr(value, "__dict__", {}).get("__wrapped__")
    return value


def return_type(function: Any) -> object:
    """The type that a function declares; None where it does not, or where it can't be resolved."""
    try:
        return get_type_hints(function, include_extras=True).get("return")
    except Exception:  # a name that can't be resolved here is in the source as it is written
        return None


def declared_outputs(cls: type) -> Iterator[object]:
    """The output types in `class Read(BaseStep[Deps, Output])`."""
    for klass in cls.__mro__:
        for base in klass.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is BaseStep:
                yield get_args(base)[1]


def template_code(value: object) -> CodeType | None:
    """The compiled code of a template of Jinja's, which keeps no source."""
    code = getattr(getattr(value, "root_render_func", None), "__code__", None)
    return code if isinstance(code, CodeType) else None
