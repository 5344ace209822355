"""FastroAgent.run on scripted models: what is sent, and what comes back."""

from __future__ import annotations

import pickle
import re
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RequestUsage

from fastroai import AgentConfig, FastroAgent, NoOpTracer
from fastroai.testing import ScriptedModel, ToolCall, fixed_prices


class City(BaseModel):
    name: str
    people: int


def settings_seen(seen: list[Any]) -> Any:
    """A reply that notes the settings of its request."""

    def reply(_: list[ModelMessage], info: AgentInfo) -> str:
        seen.append(dict(info.model_settings or {}))
        return "noted"

    return reply


class Spans(NoOpTracer):
    """Notes the attributes of spans."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def span(self, name: str, **attributes: Any) -> Any:
        self.seen.append((name, attributes))
        return super().span(name, **attributes)


async def test_tokens_and_cost_come_from_the_requests() -> None:
    model = ScriptedModel(
        "Hello!", usage=RequestUsage(input_tokens=1000, output_tokens=500), model_name="gpt-4o"
    )
    response = await FastroAgent(model=model).run("Hi")
    assert (response.output, response.model) == ("Hello!", "gpt-4o")
    assert (response.input_tokens, response.output_tokens, response.total_tokens) == (
        1000,
        500,
        1500,
    )
    assert response.cost_usd == Decimal("0.0075")
    assert response.cost_microcents == 7500
    assert [entry.response_id for entry in response.entries] == ["scripted-1"]


async def test_a_thousand_costs_below_a_microcent_are_not_lost() -> None:
    model = ScriptedModel("x", usage=RequestUsage(input_tokens=9, output_tokens=0), repeat=True)
    agent = FastroAgent(model=model, cost_calculator=fixed_prices(input_per_mtok=0.1))
    responses = [await agent.run("Hi") for _ in range(10)]
    assert sum(response.cost_usd or 0 for response in responses) == Decimal("0.000009")


async def test_a_tool_loop_is_one_entry_for_each_request() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    model = ScriptedModel(ToolCall("add", {"a": 1, "b": 2}), "It is 3.")
    response = await FastroAgent(model=model, toolsets=[FunctionToolset([add])]).run("1 + 2?")
    assert response.output == "It is 3."
    assert len(response.entries) == response.request_count == 2
    assert [(call["tool_name"], call["args"]) for call in response.tool_calls] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert response.tool_call_count == 1


async def test_calls_that_only_carry_the_output_are_no_tool_calls() -> None:
    response = await FastroAgent(
        model=ScriptedModel(City(name="Oslo", people=7)), output_type=City
    ).run("Hi")
    assert response.output == City(name="Oslo", people=7)
    assert response.tool_calls == []


async def test_a_refused_output_is_paid_too() -> None:
    model = ScriptedModel({"name": "Oslo"}, City(name="Oslo", people=7))
    response = await FastroAgent(model=model, output_type=City).run("Hi")
    assert response.output.people == 7
    assert response.request_count == 2
    assert response.cost_usd == sum((e.cost_usd or 0 for e in response.entries), Decimal(0))


async def test_a_conversation_goes_on_with_the_messages_of_a_response() -> None:
    def count(messages: list[ModelMessage], _: AgentInfo) -> str:
        return str(sum(isinstance(message, ModelRequest) for message in messages))

    agent = FastroAgent(model=ScriptedModel("one", count))
    first = await agent.run("Hi")
    second = await agent.run("And?", message_history=first.messages)
    assert second.output == "2"
    assert len(second.messages) == 4


async def test_a_response_survives_pickle_and_json() -> None:
    response = await FastroAgent(model=ScriptedModel("Hello!")).run("Hi")
    assert pickle.loads(pickle.dumps(response)) == response
    read_back = type(response).model_validate_json(response.model_dump_json())
    assert read_back.entries == response.entries
    assert read_back.cost_usd == response.cost_usd


async def test_given_settings_win_over_the_configured_ones() -> None:
    seen: list[Any] = []
    agent = FastroAgent(
        model=ScriptedModel(settings_seen(seen), repeat=True), timeout=2.5, max_tokens=10
    )
    await agent.run("Hi", model_settings={"temperature": 0.0, "seed": 1})
    await agent.run("Hi", model_settings=lambda _: {"max_tokens": 99})
    assert seen[0] == {"max_tokens": 10, "temperature": 0.0, "timeout": 2.5, "seed": 1}
    assert seen[1] == {"max_tokens": 99, "temperature": 0.7, "timeout": 2.5}


async def test_a_ready_agent_keeps_its_own_settings() -> None:
    seen: list[Any] = []
    own = Agent(
        ScriptedModel(settings_seen(seen), repeat=True),
        model_settings={"temperature": 0.1, "max_tokens": 7},
    )
    await FastroAgent(agent=own).run("Hi")
    await FastroAgent(agent=own, temperature=0.9).run("Hi")
    assert seen == [{"temperature": 0.1, "max_tokens": 7}, {"temperature": 0.9, "max_tokens": 7}]


async def test_what_is_given_beside_a_ready_agent_is_not_ignored() -> None:
    def add(a: int) -> int:
        return a

    def tools(messages: list[ModelMessage], info: AgentInfo) -> Any:
        assert info.instructions == "Be brief."
        assert [tool.name for tool in info.function_tools] == ["add"]
        return City(name="Oslo", people=7)

    agent: FastroAgent[City] = FastroAgent(
        agent=Agent(ScriptedModel(tools)),  # type: ignore[arg-type]  # the output type is the next argument
        output_type=City,
        toolsets=[FunctionToolset([add])],
        system_prompt="Be brief.",
    )
    assert (await agent.run("Hi")).output == City(name="Oslo", people=7)


async def test_a_ready_agent_is_metered() -> None:
    response = await FastroAgent(agent=Agent(ScriptedModel("Hello!"), name="own")).run("Hi")
    assert [(entry.agent, entry.model_answered) for entry in response.entries] == [
        ("own", "gpt-5-mini")
    ]


async def test_a_model_put_in_place_for_a_while_is_metered() -> None:
    agent = FastroAgent(model="openai:gpt-4o")
    with agent.agent.override(model=ScriptedModel("overridden")):
        response = await agent.run("Hi")
    assert response.output == "overridden"
    assert len(response.entries) == 1


async def test_a_model_given_for_a_run_is_metered() -> None:
    response = await FastroAgent(model="test").run("Hi", model=ScriptedModel("given"))
    assert response.output == "given"
    assert len(response.entries) == 1


async def test_an_agent_has_a_name_in_its_entries() -> None:
    response = await FastroAgent(model=ScriptedModel("Hi"), name="greeter").run("Hi")
    assert response.entries[0].agent == "greeter"


async def test_a_missing_key_is_named_before_anything_is_sent() -> None:
    agent = FastroAgent(model="openai:gpt-4o")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        await agent.run("Hi")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        [chunk async for chunk in agent.run_stream("Hi")]


def test_a_model_without_a_provider_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"Unknown model: gpt-4o"):
        FastroAgent(model="gpt-4o")


def test_an_unknown_option_is_refused_with_its_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"'temprature' \(did you mean 'temperature'\?\)"):
        FastroAgent(model="test", temprature=0.1)


def test_an_unknown_option_is_answered_with_all_that_are_known() -> None:
    with pytest.raises(TypeError, match=r"'toolset' \(did you mean 'toolsets'\?\)") as caught:
        FastroAgent(toolset=[])
    assert {"model", "config", "cost_calculator", "name"} <= set(
        re.findall(r"\w+", str(caught.value))
    )


def test_options_beside_a_config_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"temperature=0\.1"):
        FastroAgent(config=AgentConfig(model="test"), temperature=0.1)


async def test_a_timeout_has_its_name_in_the_span_and_on_its_error() -> None:
    tracer = Spans()
    agent = FastroAgent(
        model=ScriptedModel(TimeoutError("too slow")), timeout=3, timeout_name="extract"
    )
    with pytest.raises(TimeoutError) as raised:
        await agent.run("Hi", tracer=tracer)
    assert raised.value.__notes__ == ["Timeout 'extract': 3 s for one request."]
    name, attributes = tracer.seen[0]
    assert name == "fastroai.agent.run"
    assert attributes == {
        "model": "scripted:gpt-5-mini",
        "timeout_name": "extract",
        "has_history": False,
        "history_length": 0,
    }


async def test_nobody_is_asked_for_a_temperature_that_a_reasoning_model_does_not_take() -> None:
    seen: list[Any] = []
    model = ScriptedModel(settings_seen(seen), repeat=True)
    model._profile = {"thinking_enabled_by_default": True}
    await FastroAgent(model=model).run("Hi")
    await FastroAgent(model=model, temperature=0.7).run("Hi")
    assert seen == [{"max_tokens": 4096}, {"max_tokens": 4096, "temperature": 0.7}]


async def test_a_tool_that_asks_for_another_try_gets_it() -> None:
    tries: list[int] = []

    def pick(number: int) -> str:
        tries.append(number)
        if number < 2:
            raise ModelRetry("larger")
        return "good"

    model = ScriptedModel(ToolCall("pick", {"number": 1}), ToolCall("pick", {"number": 2}), "done")
    response = await FastroAgent(model=model, toolsets=[FunctionToolset([pick])]).run("Pick")
    assert tries == [1, 2]
    assert response.request_count == 3


async def test_the_test_model_has_tokens_but_no_price() -> None:
    response = await FastroAgent(model=TestModel(custom_output_text="hi")).run("Hi")
    assert response.input_tokens > 0
    assert (response.cost_microcents, response.cost_usd) == (0, None)


class Asked:
    """An agent of a user's own class, which takes the arguments that it needs, and no others."""

    model = name = None

    async def run(
        self,
        user_prompt: str,
        *,
        deps: object,
        message_history: object,
        model_settings: object,
        capabilities: object,
    ) -> Any:
        return await Agent(ScriptedModel(f"You asked: {user_prompt}")).run(user_prompt)


async def test_an_agent_of_ones_own_class_is_given_the_arguments_of_a_run_only() -> None:
    ready: Any = Asked()
    assert (await FastroAgent(agent=ready).run("Hi")).content == "You asked: Hi"
