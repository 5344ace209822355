"""The type that a step's code declares for its output."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import TypeAdapter
from pydantic_ai.output import NativeOutput, PromptedOutput, TextOutput, ToolOutput

from ..pipelines.agent_step import AgentStepWrapper
from ..pipelines.base import BaseStep
from ..pipelines.decorators import FunctionStep
from ..pipelines.mapped import MappedStep


@dataclass(frozen=True, slots=True)
class DeclaredOutput:
    """What a step's code declares that it gives.

    Attributes:
        type: `Any` where nothing is declared that pydantic can read back.
        adapter: Reads and writes the type; None for `Any`.
        described: What is declared, for messages: "declares …".
    """

    type: Any
    adapter: TypeAdapter[Any] | None
    described: str


def declared_output(step: BaseStep[Any, Any]) -> DeclaredOutput:
    """The type a step's code declares for its output."""
    # Where none can be read back, what the method itself says is what its author looks for.
    return min(
        map(_declaration, _declarations(step)),
        key=lambda found: (found.adapter is None, found.described == NOTHING),
    )


NOTHING = "declares no return type"


def _declarations(step: BaseStep[Any, Any]) -> Iterator[Callable[[], Any]]:
    """Where a step may declare its type, the nearest first."""
    if isinstance(step, MappedStep):
        yield from _declarations(step.step)
    elif isinstance(step, AgentStepWrapper):
        yield lambda: agent_output(getattr(step.agent.agent, "output_type", Any))
    elif isinstance(step, FunctionStep):
        yield lambda: return_hint(step.function)
    else:
        yield lambda: return_hint(type(step).execute)
        yield lambda: base_argument(type(step))


def _declaration(declare: Callable[[], Any]) -> DeclaredOutput:
    try:
        hint = declare()
    except Exception as error:  # a forward reference to what is not there
        problem = f"declares a return type that can't be resolved ({error})"
        return DeclaredOutput(Any, None, problem)
    if hint is Any or hint is object:
        return DeclaredOutput(Any, None, NOTHING)
    try:
        readable = _with_readable_dicts(hint)
        return DeclaredOutput(readable, TypeAdapter(readable), f"declares {hint!r}")
    except Exception as error:  # a TypeVar, an exception, a class of one's own
        reason = str(error).partition(". ")[0].partition("\n")[0]
        problem = f"declares {hint!r}, which pydantic can't read back ({reason})"
        return DeclaredOutput(Any, None, problem)


def agent_output(spec: Any) -> Any:
    """The type of what an agent gives for its `output_type`: a type, a function, a marker around
    these, or several.
    """
    if isinstance(spec, ToolOutput):
        return agent_output(spec.output)
    if isinstance(spec, NativeOutput | PromptedOutput):
        return agent_output(spec.outputs)
    if isinstance(spec, TextOutput):
        return return_hint(spec.output_function)
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return union_of(list(map(agent_output, spec)))
    if spec is None:
        return NoneType
    if inspect.isroutine(spec):
        return return_hint(spec)
    return spec


def union_of(members: Sequence[Any]) -> Any:
    """One type for several; `Any` where one of them is, or there are none."""
    if not members or Any in members:
        return Any
    return Union[tuple(members)]  # noqa: UP007  # made of a list


def return_hint(function: Any) -> Any:
    hints = get_type_hints(function, localns=enclosed_names(function), include_extras=True)
    return hints.get("return", Any)


def enclosed_names(function: Any) -> dict[str, Any]:
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


def base_argument(cls: type) -> Any:
    """`Out` of `BaseStep[Deps, Out]` among a class's bases."""
    for klass in cls.__mro__:
        for base in getattr(klass, "__orig_bases__", ()):
            if get_origin(base) is BaseStep:
                return get_args(base)[1]
    return Any


def _with_readable_dicts(hint: Any) -> Any:
    """A hint with each `typing.TypedDict` in it as that of `typing_extensions`, the only one that
    pydantic reads before Python 3.12.
    """
    if sys.version_info >= (3, 12):
        return hint
    if typing_extensions.is_typeddict(hint) and type(hint).__module__ == "typing":
        fields = {
            name: _field(field, is_required=name in hint.__required_keys__)
            for name, field in get_type_hints(hint, include_extras=True).items()
        }
        return typing_extensions.TypedDict(hint.__name__, fields)  # type: ignore[operator]
    arguments = get_args(hint)
    readable = tuple(map(_with_readable_dicts, arguments))
    if all(new is old for new, old in zip(readable, arguments, strict=True)):
        return hint
    if _is_union(hint):
        return Union[readable]  # noqa: UP007  # made of a tuple
    return get_origin(hint)[readable]


def _field(hint: Any, *, is_required: bool) -> Any:
    """Where annotations are text, only the resolved hint says `NotRequired`."""
    marker = get_origin(hint)
    if marker in (Required, NotRequired):
        is_required = marker is Required
        hint = get_args(hint)[0]
    readable = _with_readable_dicts(hint)
    return readable if is_required else NotRequired[readable]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, type(int | str))
