"""Agents as plain lists: models, prompts, settings, tools and output types."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.agent import AbstractAgent, WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import AbstractToolset

from ..agent.agent import FastroAgent
from .classes import is_hint
from .describer import Describer

NOT_ABOUT_THE_ANSWER = {
    "timeout": "decides whether an answer comes, not which",
    "request_timeout": "decides whether an answer comes, not which",
    "first_event_timeout": "decides whether an answer comes, not which",
    "max_retries": "sends the same request again",
    "cache": "what the provider keeps of a prompt changes its price",
    "service_tier": "changes price and speed",
}
"""Model settings that are left out of a fingerprint, each with its reason."""

_LIBRARIES = ("pydantic_ai", "fastroai")
_PARTS = (AbstractAgent, Model, AbstractToolset, AbstractCapability)
# How a tool's schema was made; the schema itself is described.
_MEANS = frozenset(
    {"docstring_format", "require_parameter_descriptions", "schema_generator", "output_schema"}
)
# Objects made when a schema is built; their types differ with what is installed.
_BUILT = frozenset({"validator"})
_PRIVATE = ("_id", "_instructions", "_source", "_registry")


def is_part_of_an_agent(value: object) -> bool:
    """Whether this module knows what counts about an object: pydantic-ai's own ones, and what is
    derived from them.
    """
    return isinstance(value, _PARTS) or type(value).__module__.partition(".")[0] == "pydantic_ai"


def describe_agent(agent: FastroAgent[Any], describer: Describer) -> object:
    """An agent as its runs use it.

    Its name, hooks, prices and retries of a request do not change an answer.
    """
    built = agent._is_built
    return [
        "agent",
        None if type(agent) is FastroAgent else describer.root(type(agent)),
        describe_ready_agent(agent.agent, describer, agent.config.model if built else None),
        describe_settings(agent._build_default_model_settings(), describer),
        describe_member(agent._run_options, describer),
    ]


def describe_part(value: object, describer: Describer) -> object:
    """A pydantic-ai object by what counts about it."""
    if isinstance(value, AbstractAgent):
        return describe_ready_agent(value, describer)
    if isinstance(value, Model):
        return describe_model(value, describer)
    cls = type(value)
    # A library's class counts by its name, someone's own by its code.
    is_a_librarys = cls.__module__.partition(".")[0] in _LIBRARIES
    return [
        _label(cls) if is_a_librarys else describer.root(cls),
        [[name, describe_member(item, describer)] for name, item in given_members(value)],
    ]


def describe_ready_agent(
    agent: Any, describer: Describer, model: str | Model | None = None
) -> object:
    while isinstance(agent, WrapperAgent):
        agent = agent.wrapped
    if not isinstance(agent, Agent):
        return ["agent of another kind", type(agent).__qualname__]
    # First: what is described twice is numbered in this order.
    capabilities = own_capabilities(agent, describer)
    return {
        "model": describe_model(model if model is not None else agent.model, describer),
        "system prompts": describer.value(agent._system_prompts),
        "system prompt functions": [
            [describer.root(f.function), f.dynamic] for f in agent._system_prompt_functions
        ],
        "instructions": describe_member(
            [source.instruction for source in agent._instructions], describer
        ),
        "output": describe_member(agent.output_type, describer),
        "output validators": [
            describer.root(validator.function) for validator in agent._output_validators
        ],
        "settings": describe_settings(agent.model_settings, describer),
        "tools": describe_member(agent._function_toolset.tools, describer),
        "toolsets": describe_member([*agent._user_toolsets, *agent._dynamic_toolsets], describer),
        "capabilities": capabilities,
        # A tool or validator can see which try is its last, and give something else then.
        "retries": [agent._max_tool_retries, agent._max_output_retries],
        "end strategy": agent.end_strategy,
        # A tool that is too slow is answered with a request to try again.
        "tool timeout": describer.value(agent._tool_timeout),
        # Validators and tools can read these.
        "validation context": describe_member(agent._validation_context, describer),
        "metadata": describe_member(agent._metadata, describer),
    }


def own_capabilities(agent: Agent[Any, Any], describer: Describer) -> list[object]:
    """Those that may change answers, without what pydantic-ai gives every agent."""
    # Those that make runs durable keep answers and don't change them.
    described = [
        describe_part(part, describer)
        for part in agent._root_capability.capabilities
        if not type(part).__module__.startswith("pydantic_ai.durable_exec")
    ]
    return [part for part in described if part not in _given_to_all()]


def describe_model(model: object, describer: Describer) -> object:
    """A model by its names; where it is reached, and by which key, is left out."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, str | None):
        return model
    if not isinstance(model, Model):
        return ["type", type(model).__qualname__]
    if isinstance(model, FallbackModel):
        return ["fallback", [describe_model(member, describer) for member in model.models]]
    return [type(model).__qualname__, model.model_id, describe_settings(model.settings, describer)]


def describe_settings(settings: object, describer: Describer) -> object:
    if isinstance(settings, Mapping):
        return sorted(
            [name, describer.value(value)]
            for name, value in settings.items()
            if name not in NOT_ABOUT_THE_ANSWER
        )
    return describe_member(settings, describer)


@functools.cache
def _given_to_all() -> list[object]:
    """The capabilities that pydantic-ai gives every agent; another version may give others."""
    given: Sequence[AbstractCapability[Any]] = Agent()._root_capability.capabilities
    return [[_label(type(part)), list(map(list, given_members(part)))] for part in given]


def _label(cls: type) -> str:
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


def given_members(value: object) -> Iterator[tuple[str, object]]:
    """What an object was given beyond the defaults, by name; without what is derived from that."""
    defaults = members_and_defaults(value)
    public = {name for name in defaults if not name.startswith("_")}
    for name in sorted({*public, *_PRIVATE} - _MEANS):
        item = getattr(value, name, None)
        default = defaults.get(name, dataclasses.MISSING)
        is_default = type(item) is type(default) and item == default
        if not is_empty(item) and not is_default:
            yield name, item


def members_and_defaults(value: object) -> dict[str, object]:
    """What an object is made of; `MISSING` for what has no default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: f.default for f in fields if f.init and f.name not in _BUILT}
    slots = (getattr(cls, "__slots__", ()) for cls in type(value).__mro__)
    names = itertools.chain(getattr(value, "__dict__", ()), *slots)
    return dict.fromkeys(names, dataclasses.MISSING)


def is_empty(item: object) -> bool:
    if isinstance(item, list | tuple | dict | str):
        return not item
    return item is None or item is False


def describe_member(value: object, describer: Describer) -> object:
    """A part of an agent's definition: functions and types are followed wherever they are
    defined.
    """
    if isinstance(value, FunctionType | MethodType | functools.partial):
        return describer.root(value)
    if is_hint(value):
        return describer.hint(value)
    if isinstance(value, list | tuple):
        return [describe_member(item, describer) for item in value]
    if type(value) is dict:
        return [
            [describer.value(key), describe_member(item, describer)] for key, item in value.items()
        ]
    return describer.value(value)
