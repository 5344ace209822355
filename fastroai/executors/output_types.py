"""The type that a step's code declares for its output."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import NoneType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic_ai.output import NativeOutput, PromptedOutput, TextOutput, ToolOutput

from ..pipelines.agent_step import AgentStepWrapper
from ..pipelines.base import BaseStep
from ..pipelines.decorators import FunctionStep


def declared_output(step: BaseStep[Any, Any]) -> Any:
    """The type a step's code declares for its output; `Any` where it declares none."""
    if isinstance(step, AgentStepWrapper):
        return _storable_hint(_agent_output(getattr(step.agent.agent, "output_type", Any)))
    if isinstance(step, FunctionStep):
        return _storable_hint(_return_hint(step.function))
    hint = _storable_hint(_return_hint(type(step).execute))
    return hint if hint is not Any else _storable_hint(_base_argument(type(step)))


def _agent_output(spec: Any) -> Any:
    """The type of what an agent gives for its `output_type`: a type, a function, a marker around
    these, or several.
    """
    if isinstance(spec, ToolOutput):
        return _agent_output(spec.output)
    if isinstance(spec, NativeOutput | PromptedOutput):
        return _agent_output(spec.outputs)
    if isinstance(spec, TextOutput):
        return _return_hint(spec.output_function)
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        members = [_agent_output(member) for member in spec]
        return Any if not members or Any in members else Union[tuple(members)]  # noqa: UP007  # made of a list
    if spec is None:
        return NoneType
    if inspect.isroutine(spec):
        return _return_hint(spec)
    return spec


def _return_hint(function: Any) -> Any:
    try:
        return get_type_hints(function, localns=_enclosed(function), include_extras=True).get(
            "return", Any
        )
    # a forward reference that can't be resolved here declares nothing we could use
    except Exception:
        return Any


def _enclosed(function: Any) -> dict[str, Any]:
    """The names that a function takes from the functions around it: a type that is local there may
    be among them.
    """
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or cells is None:
        return {}
    found: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _base_argument(cls: type) -> Any:
    """`Out` of `BaseStep[Deps, Out]` among a class's bases."""
    for klass in cls.__mro__:
        for base in getattr(klass, "__orig_bases__", ()):
            if get_origin(base) is BaseStep:
                return get_args(base)[1]
    return Any


def _storable_hint(hint: Any) -> Any:
    """A hint that pydantic can build an adapter for, or `Any`."""
    try:
        TypeAdapter(hint)
    # a TypeVar, an output function, a custom class: nothing that could be read back
    except Exception:
        return Any
    return Any if hint is object else hint
