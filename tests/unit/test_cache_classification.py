"""Everything one can configure is classified: part of a step's cache key, or not, because …"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset, ModelSettings
from pydantic_ai.agent import AgentRetries
from pydantic_ai.capabilities import Thinking, WebSearch
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import AgentConfig, CostCalculator, FastroAgent, PipelineConfig, StepConfig
from fastroai.budgets import Budget
from fastroai.executors._prefect.caching import CacheKey, StepIdentity
from fastroai.fingerprint.agents import NOT_ABOUT_THE_ANSWER
from fastroai.fingerprint.steps import fingerprint
from fastroai.pipelines.decorators import FunctionStep


class Points(BaseModel):
    points: list[str]


class Counts(BaseModel):
    points: int


def lookup(name: str) -> str:
    return name


def search(name: str) -> str:
    return name * 2


async def before() -> None: ...


async def after(error: BaseException | None) -> None: ...


class InKey(NamedTuple):
    """Two values that give different answers."""

    one: Any
    other: Any


class NotInKey(NamedTuple):
    """Two values that give the same answer, and why."""

    one: Any
    other: Any
    because: str


Table = Mapping[str, InKey | NotInKey]

AT_A_LIMIT = "takes over at the limit of a budget"
STOPS = "decides whether an answer comes, not which"
LABEL = "a name for people"

MODEL = InKey("openai:gpt-5-mini", "openai:gpt-5")

AGENT_CONFIG: Table = {
    "model": MODEL,
    "cheaper_model": NotInKey("openai:a", "openai:b", AT_A_LIMIT),
    "system_prompt": InKey("Be short.", "Be long."),
    "max_tokens": InKey(10, 20),
    "temperature": InKey(0.1, 0.2),
    "timeout": NotInKey(1, 2, STOPS),
    "timeout_name": NotInKey("a", "b", LABEL),
    "max_retries": NotInKey(1, 2, "sends the same request again"),
}

FASTRO_AGENT: Table = {
    "config": InKey(AgentConfig(system_prompt="a"), AgentConfig(system_prompt="b")),
    "agent": InKey(Agent("test", instructions="a"), Agent("test", instructions="b")),
    "output_type": InKey(Points, Counts),
    "toolsets": InKey([FunctionToolset([lookup])], [FunctionToolset([search])]),
    "cost_calculator": NotInKey(
        None, CostCalculator({"m": {"input_per_mtok": 1.0, "output_per_mtok": 1.0}}), "prices"
    ),
    "on_before_dispatch": NotInKey(None, before, STOPS),
    "on_after_dispatch": NotInKey(None, after, "comes after the answer"),
    "name": NotInKey("a", "b", LABEL),
    "options": InKey({"system_prompt": "a"}, {"system_prompt": "b"}),
}


def _model(**settings: Any) -> OpenAIResponsesModel:
    provider = OpenAIProvider(api_key="none", base_url="http://127.0.0.1:1/v1")
    return OpenAIResponsesModel("gpt-5-mini", provider=provider, settings=ModelSettings(**settings))


READY_AGENT: Table = {
    "model": InKey(_model(seed=1), _model(seed=2)),
    "output_type": InKey(Points, Counts),
    "instructions": InKey(["a", lambda: "x"], ["a", lambda: "y"]),
    "system_prompt": InKey(["a", "b"], ["a", "c"]),
    "deps_type": NotInKey(int, str, "is for type checkers"),
    "name": NotInKey("a", "b", LABEL),
    "description": NotInKey("a", "b", "describes the agent to people and traces"),
    "model_settings": InKey(ModelSettings(seed=1), ModelSettings(seed=2)),
    "retries": InKey(AgentRetries(tools=1), AgentRetries(tools=2)),
    "validation_context": InKey({"a": 1}, {"a": 2}),
    "tools": InKey([lookup], [search]),
    "toolsets": InKey([FunctionToolset([lookup])], [lambda ctx: FunctionToolset([lookup])]),
    "defer_model_check": NotInKey(True, False, "when a missing key is found"),
    "end_strategy": InKey("early", "exhaustive"),
    "metadata": InKey({"a": 1}, {"a": 2}),
    "tool_timeout": InKey(1.0, 2.0),
    "max_concurrency": NotInKey(1, 2, "makes runs wait"),
    "capabilities": InKey([WebSearch()], [WebSearch(), Thinking()]),
}

_SAME = {name: NotInKey(1, 2, reason) for name, reason in NOT_ABOUT_THE_ANSWER.items()}
MODEL_SETTINGS: Table = _SAME | {
    name: InKey(1, 2)
    for name in (
        "citations",
        "extra_body",
        "extra_headers",
        "framing_announcement",
        "frequency_penalty",
        "logit_bias",
        "max_tokens",
        "parallel_tool_calls",
        "presence_penalty",
        "seed",
        "stop_sequences",
        "temperature",
        "thinking",
        "tool_choice",
        "top_k",
        "top_p",
    )
}

LATER = {"first_event_timeout", "framing_announcement"}
"""Settings that pydantic-ai has since 2.66."""

KEEPS = "decides whether and where a result is kept, not what it is"
STEP_CONFIG: Table = {
    "timeout": NotInKey(1.0, 2.0, STOPS),
    "retries": NotInKey(1, 2, "does the same again"),
    "retry_delay": NotInKey(1.0, 2.0, "waits"),
    "cost_budget": NotInKey(1, 2, STOPS),
    "budget": NotInKey(Budget(usd="1"), Budget(usd="2"), STOPS),
    "optional": NotInKey(True, False, "a step that was left out gives nothing to keep"),
    "persist_result": NotInKey(True, None, KEEPS),
    "result_storage": NotInKey("a", "b", KEEPS),
    "cache_policy": NotInKey("run", "off", "decides whether the run is part of the key"),
    "cache_expiration": NotInKey(1, timedelta(days=1), "how long, not what"),
    "cache_scope": InKey("a", "b"),
    "durable": NotInKey("step", "request", KEEPS),
    "formerly": NotInKey(None, "a", "where else to look"),
    "remote": NotInKey(True, False, "decides where the same code runs"),
}
PIPELINE_CONFIG: Table = STEP_CONFIG | {
    "trace": NotInKey(True, False, "watches"),
    "on_error": NotInKey(
        "fail", "continue", "a step runs only when its dependencies have outputs, under both"
    ),
    "max_concurrency": NotInKey(1, 2, "makes steps wait"),
    "cheaper_model": NotInKey("openai:a", "openai:b", AT_A_LIMIT),
}


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (AGENT_CONFIG, set(AgentConfig.model_fields)),
        (FASTRO_AGENT, _parameters(FastroAgent.__init__)),
        (READY_AGENT, _parameters(Agent.__init__)),
        (MODEL_SETTINGS, LATER | set(ModelSettings.__annotations__)),
        (STEP_CONFIG, {f.name for f in dataclasses.fields(StepConfig)}),
        (PIPELINE_CONFIG, {f.name for f in dataclasses.fields(PipelineConfig)}),
    ],
    ids=["AgentConfig", "FastroAgent", "Agent", "ModelSettings", "StepConfig", "PipelineConfig"],
)
def test_everything_is_classified_as_part_of_the_key_or_not(table: Table, names: set[str]):
    """A new name here: does it change what a step gives? Then it is InKey, and the fingerprint must
    cover it.
    """
    assert set(table) == names


def _differs(make: Callable[[Any], FastroAgent[Any]], entry: InKey | NotInKey) -> bool:
    one, other = (fingerprint(make(value).as_step("prompt")) for value in entry[:2])
    assert one == fingerprint(make(entry.one).as_step("prompt"))
    return one != other


def _cases(table: Table) -> Any:
    return pytest.mark.parametrize("name", table)


@_cases(AGENT_CONFIG)
def test_a_field_of_an_agents_config(name: str):
    entry = AGENT_CONFIG[name]
    assert _differs(lambda value: FastroAgent(AgentConfig(**{name: value})), entry) == isinstance(
        entry, InKey
    )


@_cases(FASTRO_AGENT)
def test_a_parameter_of_an_agent(name: str):
    entry = FASTRO_AGENT[name]

    def make(value: Any) -> FastroAgent[Any]:
        return FastroAgent(**value) if name == "options" else FastroAgent(**{name: value})

    assert _differs(make, entry) == isinstance(entry, InKey)


@_cases(READY_AGENT)
def test_a_parameter_of_a_ready_agent(name: str):
    entry = READY_AGENT[name]
    rest = {} if name == "model" else {"model": TestModel()}
    assert _differs(
        lambda value: FastroAgent(agent=Agent(**rest, **{name: value})), entry
    ) == isinstance(entry, InKey)


@_cases(MODEL_SETTINGS)
def test_a_model_setting(name: str):
    entry = MODEL_SETTINGS[name]
    for make in (
        lambda value: FastroAgent(agent=Agent("test", model_settings={name: value})),
        lambda value: FastroAgent(agent=Agent(_model(**{name: value}))),
    ):
        assert _differs(make, entry) == isinstance(entry, InKey)


IDENTITY = StepIdentity("pipeline", "step", "fingerprint", "inputs", {"up": "output"}, "scope")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(StepIdentity)])
def test_every_field_of_an_identity_is_in_the_key_and_says_why(name: str):
    other = dataclasses.replace(
        IDENTITY, **{name: {"up": "other"} if name == "dependencies" else "other"}
    )
    assert CacheKey(vars(other), None).digest() != CacheKey(vars(IDENTITY), None).digest()
    assert f"        {name}: " in (StepIdentity.__doc__ or "")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(CacheKey)])
def test_every_field_of_a_key_is_in_its_digest_and_says_why(name: str):
    key = CacheKey(vars(IDENTITY), "run")
    other = {"identity": {}, "run": None, "format": 0}[name]
    assert dataclasses.replace(key, **{name: other}).digest() != key.digest()
    assert f"        {name}: " in (CacheKey.__doc__ or "")


@pytest.mark.parametrize("name", STEP_CONFIG)
def test_a_field_of_a_steps_config_is_no_part_of_its_fingerprint(name: str):
    """What of it is in the key is so by a field of its own."""
    one, other = (
        fingerprint(_configured(StepConfig(**{name: value}))) for value in STEP_CONFIG[name][:2]
    )
    assert one == other


def _configured(config: StepConfig) -> FunctionStep:
    return FunctionStep(_body, config)


async def _body(context: Any) -> int:
    return 1
