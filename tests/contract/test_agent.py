"""Contract sections 3, 11 and 12: the agent's public surface, and the fakes that existing suites
put into it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset

import fastroai.agent
from fastroai import (
    AgentConfig,
    AgentStepWrapper,
    ChatResponse,
    CostCalculator,
    FastroAgent,
    SimpleTracer,
    StreamChunk,
)
from fastroai.agent import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_MAX_TOKENS,
    DEFAULT_MODEL,
    DEFAULT_SYSTEM_PROMPT,
    DEFAULT_TEMPERATURE,
)

REQUIRED: dict[str, Any] = {
    "output": "hi",
    "content": "hi",
    "model": "gpt-4o",
    "input_tokens": 100,
    "output_tokens": 50,
    "total_tokens": 150,
    "cost_microcents": 750,
    "processing_time_ms": 12,
}


def fake_usage(**counts: Any) -> MagicMock:
    """Usage as existing suites fake it: some counters set, any other attribute a truthy mock."""
    usage = MagicMock()
    given = {
        "input_tokens": 100,
        "output_tokens": 50,
        "total_tokens": 150,
        "requests": 1,
        "tool_calls": 0,
        "details": {},
    }
    for name, value in (given | counts).items():
        setattr(usage, name, value)
    return usage


def fake_result(output: Any = "Hello", model: str | None = "gpt-4o", **counts: Any) -> MagicMock:
    """A result in the style of pydantic-ai 1: `usage` is called."""
    result = MagicMock()
    result.output = output
    result.usage.return_value = fake_usage(**counts)
    result.new_messages.return_value = []
    message = MagicMock()
    message.model_name = model
    result.all_messages.return_value = [message]
    return result


def returning(agent: FastroAgent[Any], result: Any) -> Any:
    return patch.object(agent._agent, "run", AsyncMock(return_value=result))


@pytest.fixture
def agent() -> FastroAgent[Any]:
    return FastroAgent(model="test")


class TestNames:
    def test_the_constants_keep_their_values(self) -> None:
        assert DEFAULT_MODEL == "openai:gpt-4o"
        assert DEFAULT_MAX_TOKENS == 4096
        assert DEFAULT_TEMPERATURE == 0.7
        assert DEFAULT_MAX_RETRIES == 3
        assert DEFAULT_SYSTEM_PROMPT == "You are a helpful AI assistant."

    def test_the_agent_package_exports_the_step_wrapper(self) -> None:
        assert fastroai.agent.AgentStepWrapper is AgentStepWrapper

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="Nothing"):
            fastroai.agent.Nothing  # noqa: B018 - looking it up is the test


class TestConfig:
    def test_defaults(self) -> None:
        config = AgentConfig()
        assert (config.model, config.system_prompt, config.max_tokens) == (
            "openai:gpt-4o",
            None,
            4096,
        )
        assert (config.temperature, config.timeout, config.timeout_name, config.max_retries) == (
            0.7,
            None,
            None,
            3,
        )

    @pytest.mark.parametrize("temperature", [-0.1, 2.1])
    def test_a_temperature_out_of_range_is_a_value_error(self, temperature: float) -> None:
        with pytest.raises(ValueError, match="temperature"):
            AgentConfig(temperature=temperature)

    @pytest.mark.parametrize("temperature", [0.0, 2.0])
    def test_the_bounds_of_the_temperature_belong_to_it(self, temperature: float) -> None:
        assert AgentConfig(temperature=temperature).temperature == temperature

    @pytest.mark.parametrize("timeout", [0, -1])
    def test_a_timeout_must_be_positive(self, timeout: int) -> None:
        with pytest.raises(ValueError, match="timeout"):
            AgentConfig(timeout=timeout)

    def test_a_timeout_may_be_a_part_of_a_second(self) -> None:
        assert AgentConfig(timeout=2.5).timeout == 2.5

    def test_max_retries_may_not_be_negative(self) -> None:
        with pytest.raises(ValueError, match="max_retries"):
            AgentConfig(max_retries=-1)

    def test_an_empty_system_prompt_counts_as_set(self) -> None:
        assert AgentConfig(system_prompt="").get_effective_system_prompt() == ""
        assert AgentConfig().get_effective_system_prompt() == DEFAULT_SYSTEM_PROMPT
        assert AgentConfig(system_prompt="Be brief.").get_effective_system_prompt() == "Be brief."

    def test_an_unknown_key_is_refused_with_its_nearest_name(self) -> None:
        with pytest.raises(ValidationError, match=r"'temprature' \(did you mean 'temperature'"):
            AgentConfig(temprature=0.5)  # type: ignore[call-arg]  # the mistake is the test

    def test_a_model_may_be_an_instance(self) -> None:
        model = TestModel()
        assert AgentConfig(model=model).model is model

    def test_a_model_of_another_type_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            AgentConfig(model=3)  # type: ignore[arg-type]  # the mistake is the test


class TestChatResponse:
    def test_required_fields_are_enough(self) -> None:
        response = ChatResponse(**REQUIRED)
        assert (response.tool_calls, response.tool_call_count, response.request_count) == ([], 0, 1)
        assert (response.trace_id, response.usage_details, response.cache_read_tokens) == (
            None,
            {},
            0,
        )
        assert response.cost_dollars == pytest.approx(0.00075)

    @pytest.mark.parametrize("missing", sorted(REQUIRED))
    def test_no_required_field_has_a_default(self, missing: str) -> None:
        with pytest.raises(ValidationError, match=missing):
            ChatResponse(**{key: value for key, value in REQUIRED.items() if key != missing})

    def test_defaults_are_not_shared(self) -> None:
        first, second = ChatResponse(**REQUIRED), ChatResponse(**REQUIRED)
        first.tool_calls.append({"tool_name": "x"})
        first.usage_details["x"] = 1
        assert second.tool_calls == []
        assert second.usage_details == {}

    def test_a_parametrised_response_checks_its_output(self) -> None:
        with pytest.raises(ValidationError):
            ChatResponse[int](**REQUIRED)

    def test_it_survives_pickle_and_json(self) -> None:
        response = ChatResponse(**REQUIRED)
        assert pickle.loads(pickle.dumps(response)) == response
        assert (
            ChatResponse[str].model_validate_json(response.model_dump_json()).model_dump()
            == response.model_dump()
        )


class TestStreamChunk:
    def test_defaults(self) -> None:
        chunk: StreamChunk[str] = StreamChunk()
        assert (chunk.content, chunk.is_final, chunk.usage_data) == ("", False, None)

    def test_an_unparametrised_response_is_accepted(self) -> None:
        response = ChatResponse(**REQUIRED)
        assert StreamChunk(is_final=True, usage_data=response).usage_data is not None
        typed = StreamChunk[str](is_final=True, usage_data=response).usage_data
        assert typed is not None
        assert typed.cost_microcents == 750


class TestConstruction:
    def test_the_test_model_needs_no_key(self) -> None:
        assert FastroAgent(model="test").config.model == "test"

    def test_keyword_arguments_make_the_config(self) -> None:
        config = FastroAgent(model="test", system_prompt="Be brief.", temperature=0.1).config
        assert (config.system_prompt, config.temperature) == ("Be brief.", 0.1)

    def test_a_config_is_kept(self) -> None:
        config = AgentConfig(model="test")
        assert FastroAgent(config=config).config is config

    def test_toolsets_and_calculator_are_kept(self) -> None:
        toolset, calculator = FunctionToolset[Any](), CostCalculator()
        agent = FastroAgent(model="test", toolsets=[toolset], cost_calculator=calculator)
        assert agent.toolsets == [toolset]
        assert agent.cost_calculator is calculator

    def test_no_toolsets_is_an_empty_list(self, agent: FastroAgent[Any]) -> None:
        assert agent.toolsets == []
        assert isinstance(agent.cost_calculator, CostCalculator)

    def test_a_ready_agent_is_stored_as_it_is(self) -> None:
        own = Agent(TestModel())
        agent = FastroAgent(agent=own)
        assert agent._agent is own
        assert agent.agent is own

    def test_hooks_are_stored_unchanged(self) -> None:
        before, after = AsyncMock(), AsyncMock()
        agent = FastroAgent(model="test", on_before_dispatch=before, on_after_dispatch=after)
        assert agent._on_before_dispatch is before
        assert agent._on_after_dispatch is after

    def test_hooks_default_to_none(self, agent: FastroAgent[Any]) -> None:
        assert agent._on_before_dispatch is None
        assert agent._on_after_dispatch is None

    def test_attributes_can_be_set_on_the_instance(self, agent: FastroAgent[Any]) -> None:
        with patch.object(agent, "run", AsyncMock(return_value="patched")):
            assert agent.run is not type(agent).run

    def test_as_step_wraps_this_agent(self, agent: FastroAgent[Any]) -> None:
        assert agent.as_step("Say hi.").agent is agent


class TestDefaultSettings:
    def test_a_timeout_is_sent_when_configured(self) -> None:
        settings = FastroAgent(model="test", timeout=42)._build_default_model_settings()
        assert settings.get("timeout") == 42
        assert settings["max_tokens"] == 4096
        assert settings["temperature"] == 0.7

    def test_without_one_the_key_is_absent(self, agent: FastroAgent[Any]) -> None:
        assert "timeout" not in agent._build_default_model_settings()


class TestRunWithAFake:
    async def test_the_response_is_read_from_the_result(self, agent: FastroAgent[Any]) -> None:
        with returning(agent, fake_result()):
            response = await agent.run("Hi")
        assert (response.output, response.content, response.model) == ("Hello", "Hello", "gpt-4o")
        assert (response.input_tokens, response.output_tokens, response.total_tokens) == (
            100,
            50,
            150,
        )
        assert response.cost_microcents == 750
        assert response.processing_time_ms >= 0
        assert response.entries == ()

    async def test_usage_may_also_be_a_plain_attribute(self, agent: FastroAgent[Any]) -> None:
        result = fake_result()
        result.usage = SimpleNamespace(input_tokens=100, output_tokens=50)
        with returning(agent, result):
            response = await agent.run("Hi")
        assert (response.total_tokens, response.request_count, response.cost_microcents) == (
            150,
            1,
            750,
        )

    async def test_counters_that_are_mocks_or_missing_are_zero(
        self, agent: FastroAgent[Any]
    ) -> None:
        with returning(agent, fake_result(input_tokens=None)):
            response = await agent.run("Hi")
        assert response.input_tokens == 0
        assert response.cache_read_tokens == 0

    async def test_details_keep_their_whole_numbers(self, agent: FastroAgent[Any]) -> None:
        with returning(
            agent,
            fake_result(
                details={"reasoning": 7, "speed": 0.5, "note": "x"}, requests=3, tool_calls=2
            ),
        ):
            response = await agent.run("Hi")
        assert response.usage_details == {"reasoning": 7}
        assert (response.request_count, response.tool_call_count) == (3, 2)

    async def test_everything_is_passed_on_by_keyword(self, agent: FastroAgent[Any]) -> None:
        history, deps = [MagicMock()], object()
        with returning(agent, fake_result()) as run:
            await agent.run("Hi", deps=deps, message_history=history, infer_name=False)
        passed = run.call_args.kwargs
        assert run.call_args.args == ()
        assert (passed["user_prompt"], passed["message_history"], passed["infer_name"]) == (
            "Hi",
            history,
            False,
        )
        assert passed["deps"] is deps

    async def test_the_trace_id_is_a_uuid(self, agent: FastroAgent[Any]) -> None:
        with returning(agent, fake_result()):
            response = await agent.run("Hi", tracer=SimpleTracer())
        assert response.trace_id is not None
        assert len(response.trace_id) == 36

    async def test_an_output_that_is_no_text_becomes_one(self, agent: FastroAgent[Any]) -> None:
        class Answer(BaseModel):
            number: int

        with returning(agent, fake_result(Answer(number=3))):
            response = await agent.run("Hi")
        assert response.output == Answer(number=3)
        assert response.content == "number=3"

    async def test_settings_are_merged_key_by_key(self, agent: FastroAgent[Any]) -> None:
        with returning(agent, fake_result()) as run:
            await agent.run("Hi", model_settings={"temperature": 0.0})
        assert run.call_args.kwargs["model_settings"] == {"max_tokens": 4096, "temperature": 0.0}

    async def test_errors_pass_unchanged_and_reach_the_tracer(
        self, agent: FastroAgent[Any]
    ) -> None:
        error = RuntimeError("broken")
        tracer = MagicMock(wraps=SimpleTracer())
        with (
            patch.object(agent._agent, "run", AsyncMock(side_effect=error)),
            pytest.raises(RuntimeError) as raised,
        ):
            await agent.run("Hi", tracer=tracer)
        assert raised.value is error
        assert tracer.log_error.call_args.args[1] is error

    async def test_three_metrics_are_logged(self, agent: FastroAgent[Any]) -> None:
        tracer = MagicMock(wraps=SimpleTracer())
        with returning(agent, fake_result()):
            await agent.run("Hi", tracer=tracer)
        logged = {call.args[1]: call.args[2] for call in tracer.log_metric.call_args_list}
        assert logged == {"input_tokens": 100, "output_tokens": 50, "cost_microcents": 750}


class TestModelNames:
    async def test_the_last_message_with_a_name_counts(self, agent: FastroAgent[Any]) -> None:
        result = fake_result()
        result.all_messages.return_value = [
            SimpleNamespace(model_name="gpt-4o"),
            SimpleNamespace(model_name="gpt-4o-mini"),
            SimpleNamespace(model_name=None),
            SimpleNamespace(),
        ]
        with returning(agent, result):
            assert (await agent.run("Hi")).model == "gpt-4o-mini"

    async def test_a_built_agent_falls_back_to_its_configured_model(self) -> None:
        agent = FastroAgent(model="openai:gpt-4o")
        with returning(agent, fake_result(model=None)):
            response = await agent.run("Hi")
        assert response.model == "openai:gpt-4o"
        assert response.cost_microcents == 750

    async def test_messages_that_are_a_mock_tell_nothing(self, agent: FastroAgent[Any]) -> None:
        result = fake_result()
        result.all_messages.return_value = MagicMock()
        with returning(agent, result):
            assert (await agent.run("Hi")).model == "test"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, None),
            ({"model": "openai:gpt-4o"}, "openai:gpt-4o"),
            ({"config": AgentConfig()}, None),
            ({"config": AgentConfig(model="openai:gpt-4o-mini")}, "openai:gpt-4o-mini"),
        ],
    )
    async def test_a_ready_agent_falls_back_only_to_a_model_that_was_named(
        self, options: dict[str, Any], expected: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        agent = FastroAgent(agent=Agent(TestModel()), **options)
        result = fake_result(model=None)
        with returning(agent, result), caplog.at_level(logging.WARNING, logger="fastroai.agent"):
            response = await agent.run("Hi")
        assert response.model == expected
        assert response.input_tokens == 100
        assert (response.cost_microcents == 0) is (expected is None)
        assert bool(caplog.records) is (expected is None)


class TestToolCalls:
    def part(self, **fields: Any) -> MagicMock:
        part = MagicMock()
        for name, value in fields.items():
            setattr(part, name, value)
        return part

    async def test_calls_are_recognised_by_their_fields(self, agent: FastroAgent[Any]) -> None:
        result = fake_result()
        call = self.part(tool_name="search", args={"q": "x"}, tool_call_id="c1")
        result.new_messages.return_value = [
            SimpleNamespace(parts=[call, SimpleNamespace(content="text")])
        ]
        with returning(agent, result):
            response = await agent.run("Hi")
        assert response.tool_calls == [
            {"tool_name": "search", "args": {"q": "x"}, "tool_call_id": "c1"}
        ]

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            ('{"q": "x"}', {"q": "x"}),
            ("not json", {}),
            ("[1]", {}),
            (None, {}),
            ({"q": 1}, {"q": 1}),
        ],
    )
    def test_arguments_as_json_are_decoded(
        self, agent: FastroAgent[Any], args: Any, expected: dict[str, Any]
    ) -> None:
        message = SimpleNamespace(parts=[SimpleNamespace(tool_name="search", args=args)])
        assert agent._extract_tool_calls_from_messages([message]) == [
            {"tool_name": "search", "args": expected, "tool_call_id": None}
        ]

    def test_a_result_whose_messages_raise_has_none(self, agent: FastroAgent[Any]) -> None:
        result = MagicMock()
        result.new_messages.side_effect = RuntimeError("no messages")
        assert agent._extract_tool_calls(result) == []

    def test_messages_that_can_not_be_iterated_have_none(self, agent: FastroAgent[Any]) -> None:
        messages = MagicMock()
        messages.__iter__ = MagicMock(side_effect=RuntimeError("no iteration"))
        assert agent._extract_tool_calls_from_messages(messages) == []


class TestStreamWithAFake:
    def stream(self, output: Any = "Hello world") -> MagicMock:
        async def pieces(*_: Any, **__: Any) -> AsyncIterator[str]:
            for piece in ("Hello", " ", "world"):
                yield piece

        stream = MagicMock()
        stream.stream_text = pieces
        stream.get_output.return_value = output
        stream.usage.return_value = fake_usage()
        stream.new_messages.return_value = []
        context = MagicMock()
        context.__aenter__ = AsyncMock(return_value=stream)
        context.__aexit__ = AsyncMock(return_value=None)
        return context

    async def test_pieces_come_one_by_one_and_the_response_last(
        self, agent: FastroAgent[Any]
    ) -> None:
        with patch.object(agent._agent, "run_stream", return_value=self.stream()):
            chunks = [chunk async for chunk in agent.run_stream("Hi")]
        assert [chunk.content for chunk in chunks] == ["Hello", " ", "world", ""]
        assert [chunk.is_final for chunk in chunks] == [False, False, False, True]
        response = chunks[-1].usage_data
        assert response is not None
        assert (response.output, response.input_tokens, response.model) == (
            "Hello world",
            100,
            "test",
        )
        assert response.trace_id is not None

    async def test_an_output_that_must_be_awaited_is(self, agent: FastroAgent[Any]) -> None:
        fake = self.stream()
        fake.__aenter__.return_value.get_output = AsyncMock(return_value="awaited")
        with patch.object(agent._agent, "run_stream", return_value=fake):
            chunks = [chunk async for chunk in agent.run_stream("Hi")]
        assert chunks[-1].usage_data is not None
        assert chunks[-1].usage_data.output == "awaited"
