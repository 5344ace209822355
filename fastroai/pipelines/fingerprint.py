"""Fingerprints: the identity of a step's code and configuration, stable across processes and machines."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from pydantic import TypeAdapter

from ..agent.agent import FastroAgent
from .agent_step import AgentStepWrapper
from .base import BaseStep
from .canonical import digest
from .decorators import FunctionStep

_CONSTANTS = (str, bytes, int, float, bool, type(None))


def fingerprint(step: BaseStep[Any, Any]) -> str:
    """Hash a step's code, its constants, and the agents it names: a changed prompt or model changes it.

    Covers the functions, agents and plain constants that the step's own code refers to by a global, closure or
    attribute name, functions followed within the same module. Comments, docstrings and layout do not count.
    """
    return digest(_describe_step(step))


def _describe_step(step: BaseStep[Any, Any]) -> Any:
    seen: set[int] = set()
    if isinstance(step, FunctionStep):
        return ["function", _describe_value(step.function, seen)]
    if isinstance(step, AgentStepWrapper):
        return ["agent", _describe_agent(step.agent), _describe_value(step.prompt, seen)]
    cls = type(step)
    own = sorted(getattr(step, "__dict__", {}).items())
    attributes = {name: _describe_value(value, seen) for name, value in own if name != "config"}
    return ["class", cls.__qualname__, _describe_function(cls.execute, seen), attributes]


def _describe_agent(agent: FastroAgent[Any]) -> Any:
    config = agent.config
    return {
        "model": _model_name(config.model),
        "system_prompt": config.system_prompt,
        "settings": [config.max_tokens, config.temperature, config.timeout],
        "output": _type_schema(getattr(agent.agent, "output_type", None)),
        "tools": sorted(getattr(toolset, "id", None) or type(toolset).__name__ for toolset in agent.toolsets),
        "name": getattr(agent.agent, "name", None),
    }


def _model_name(model: Any) -> str:
    return model if isinstance(model, str) else str(getattr(model, "model_id", type(model).__name__))


def _type_schema(output_type: Any) -> Any:
    try:
        return TypeAdapter(output_type).json_schema()
    except Exception:  # any type pydantic can't describe still has a name
        return getattr(output_type, "__qualname__", type(output_type).__qualname__)


def _describe_value(value: Any, seen: set[int]) -> Any:
    """A constant as it is, an agent or a function by what it does, anything else by its type."""
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, _CONSTANTS):
        return repr(value) if isinstance(value, float) else value
    if isinstance(value, FastroAgent):
        return _describe_agent(value)
    if isinstance(value, FunctionType):
        return _describe_function(value, seen)
    if isinstance(value, list | tuple):
        return [_describe_value(item, seen) for item in value]
    if isinstance(value, Mapping):
        return [[str(key), _describe_value(item, seen)] for key, item in value.items()]
    return ["type", type(value).__qualname__]


def _describe_function(function: Any, seen: set[int]) -> Any:
    if id(function) in seen:
        return ["seen", function.__qualname__]
    seen.add(id(function))
    code = getattr(function, "__code__", None)
    if code is None:
        return ["type", type(function).__qualname__]
    return [_source(function, code), {name: _describe_value(v, seen) for name, v in _references(function, code)}]


def _references(function: Any, code: CodeType) -> Iterator[tuple[str, Any]]:
    """The globals and closure cells a function names whose change would change what it does."""
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet: the function refers to a name defined later
            continue
    for name in sorted(set(_names(code))):
        value = function.__globals__.get(name)
        local = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if (
            local
            or isinstance(value, FastroAgent | FunctionStep)
            or (isinstance(value, _CONSTANTS) and value is not None)
        ):
            yield name, value.function if isinstance(value, FunctionStep) else value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _source(function: Any, code: CodeType) -> Any:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source at hand (a REPL, a lambda within an expression)
        return [
            code.co_code.hex(),
            [repr(c) for c in code.co_consts if not isinstance(c, CodeType)],
            list(code.co_names),
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = []
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return ast.dump(tree)
