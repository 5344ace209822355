"""Whole programs as they are written for fastroai 0.6: agents, tools, conversations, routers,
tracers together.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.test import TestModel

from fastroai import (
    BasePipeline,
    BaseStep,
    ChatResponse,
    ConversationState,
    ConversationStatus,
    CostCalculator,
    FastroAgent,
    FunctionToolsetBase,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    SafeToolset,
    SimpleTracer,
    StepConfig,
    StepContext,
    StepExecutionError,
    safe_tool,
    step,
)
from tests.support.chat import answering, chat_response, offline_agent
from tests.support.clock import on_virtual_clock


@dataclass
class Services:
    """What an application hands its steps."""

    user: str
    log: list[str] = field(default_factory=list)


class Summary(BaseModel):
    """A structured answer."""

    title: str
    words: int


class TestAgentPipelines:
    async def test_an_extraction_pipeline_runs_from_end_to_end(self) -> None:
        extract, classify = offline_agent(), offline_agent(output_type=Summary)

        class Extract(BaseStep[Services, str]):
            async def execute(self, context: StepContext[Services]) -> str:
                context.deps.log.append(f"extract for {context.deps.user}")
                response = await context.run(extract, f"Extract: {context.get_input('document')}")
                return str(response.output)

        @step(retries=1)
        async def classify_text(ctx: StepContext[Services]) -> Summary:
            response: ChatResponse[Summary] = await ctx.run(
                classify, ctx.get_dependency("extract", str)
            )
            return response.output

        pipeline: Pipeline[Services, dict[str, Any], Summary] = Pipeline(
            name="documents",
            steps={"extract": Extract(), "classify": classify_text},
            dependencies={"classify": ["extract"]},
        )
        services = Services("ada")
        result = await pipeline.execute({"document": "Lorem ipsum"}, deps=services)
        assert isinstance(result, PipelineResult)
        assert isinstance(result.output, Summary)
        assert isinstance(result.step_outputs["extract"], str)
        assert services.log == ["extract for ada"]
        assert result.usage is not None
        assert (
            result.usage.total_input_tokens
            == sum(u.input_tokens for u in result.usage.steps.values())
            > 0
        )

    async def test_a_tool_reads_the_applications_services(self) -> None:
        def whoami(ctx: RunContext[Services]) -> str:
            """Who asks."""
            ctx.deps.log.append("whoami")
            return ctx.deps.user

        @safe_tool(timeout=5, max_retries=2)
        async def weather(city: str) -> str:
            """The weather of a city."""
            raise RuntimeError(f"no weather in {city}")

        class Tools(SafeToolset):
            def __init__(self) -> None:
                super().__init__(tools=[whoami, weather], name="tools")

        toolset = Tools()
        assert isinstance(toolset, FunctionToolsetBase)
        agent = offline_agent(toolsets=[toolset])
        services = Services("ada")
        result = await Pipeline("tools", {"ask": agent.as_step("Who am I?")}).execute({}, services)
        assert services.log == ["whoami"]
        assert "ada" in result.output
        assert "Tool failed: no weather" in result.output
        assert result.usage is not None
        assert result.usage.total_tool_call_count == 2

    async def test_a_ready_agent_is_an_agent_too(self) -> None:
        agent = FastroAgent(agent=Agent(TestModel(custom_output_text="ready"), deps_type=Services))
        result = await Pipeline("ready", {"ask": agent.as_step("?")}).execute({}, Services("ada"))
        assert result.output == "ready"

    async def test_a_priced_run_costs_what_the_calculator_says(self) -> None:
        prices = CostCalculator({"test": {"input_per_mtok": 1_000.0, "output_per_mtok": 2_000.0}})
        agent = FastroAgent(
            agent=Agent(TestModel(custom_output_text="one two three")), cost_calculator=prices
        )
        result = await Pipeline("priced", {"ask": agent.as_step("How much?")}).execute({}, None)
        assert result.usage is not None
        usage = result.usage.steps["ask"]
        assert usage.cost_microcents == usage.input_tokens * 1_000 + usage.output_tokens * 2_000 > 0
        assert usage.model == "test"

    async def test_fan_out_and_join(self) -> None:
        agent = offline_agent()

        @step
        def split(ctx: StepContext[None]) -> list[str]:
            return str(ctx.get_input("data")).split()

        def shout(index: int) -> BaseStep[None, str]:
            @step
            async def ask(ctx: StepContext[None]) -> str:
                return str((await ctx.run(agent, ctx.get_dependency("split")[index])).output)

            return ask

        @step
        async def join(ctx: StepContext[None]) -> str:
            return " ".join(ctx.get_dependency(f"shout_{i}") for i in range(3))

        async def upper(message: str, **kwargs: Any) -> ChatResponse[str]:
            return chat_response(message.upper())

        agent.run = upper  # type: ignore[method-assign]
        steps = {"split": split, **{f"shout_{i}": shout(i) for i in range(3)}, "join": join}
        dependencies = {f"shout_{i}": ["split"] for i in range(3)} | {
            "join": [f"shout_{i}" for i in range(3)]
        }
        result = await Pipeline("fan", steps, dependencies).execute("one two three", None)
        assert result.output == "ONE TWO THREE"
        assert result.usage is not None
        assert result.usage.total_cost_microcents == 300


class TestConversations:
    class Gather(BaseStep[None, ConversationState[dict[str, str]]]):
        """Asks until it knows name and email."""

        async def execute(self, context: StepContext[None]) -> ConversationState[dict[str, str]]:
            known = {k: v for k in ("name", "email") if (v := context.get_input(k))}
            missing = [k for k in ("name", "email") if k not in known]
            status = ConversationStatus.INCOMPLETE if missing else ConversationStatus.COMPLETE
            return ConversationState(status=status, data=known, context={"missing": missing})

    async def test_a_conversation_takes_as_many_turns_as_it_needs(self) -> None:
        @step
        async def register(ctx: StepContext[None]) -> str:
            person = ctx.get_dependency("gather").data
            return f"{person['name']} <{person['email']}>"

        pipeline: Pipeline[None, dict[str, str], str] = Pipeline(
            "register", {"gather": self.Gather(), "register": register}, {"register": ["gather"]}
        )
        first = await pipeline.execute({"name": "Ada"}, None)
        assert first.stopped_early
        assert first.conversation_state is not None
        assert first.conversation_state.context == {"missing": ["email"]}
        second = await pipeline.execute(
            first.conversation_state.data | {"email": "ada@example.org"}, None
        )
        assert not second.stopped_early
        assert second.output == "Ada <ada@example.org>"


class TestRouting:
    async def test_a_router_chooses_by_the_input(self) -> None:
        agent = offline_agent()

        @step
        async def short(ctx: StepContext[Services]) -> str:
            return "no model needed"

        class ByLength(BasePipeline[Services, dict[str, str], str]):
            def __init__(self) -> None:
                super().__init__("by length")
                self.register_pipeline("short", Pipeline("short", {"s": short}))
                self.register_pipeline("long", Pipeline("long", {"s": agent.as_step("Summarise.")}))

            async def route(self, input_data: dict[str, str], deps: Services) -> str:
                deps.log.append("route")
                return "short" if len(input_data["text"]) < 10 else "long"

        router, services = ByLength(), Services("ada")
        with answering(agent, chat_response("summary")):
            assert (await router.execute({"text": "hi"}, services)).output == "no model needed"
            assert (await router.execute({"text": "a long story"}, services)).output == "summary"
        assert services.log == ["route", "route"]


class TestConfiguration:
    async def test_layers_of_retries_decide_how_often_an_agent_is_called(self) -> None:
        inherits, own, near = offline_agent(), offline_agent(), offline_agent()

        def asking(agent: FastroAgent[Any]) -> Any:
            async def ask(ctx: StepContext[None]) -> str:
                try:
                    return str((await ctx.run(agent, "?")).output)
                finally:
                    assert isinstance(ctx.config, StepConfig)

            return ask

        steps = {
            "inherits": step(asking(inherits)),
            "own": step(retries=1)(asking(own)),
            "near": step(asking(near)),
        }
        pipeline = Pipeline(
            "layers",
            steps,
            {"own": ["inherits"], "near": ["own"]},
            config=PipelineConfig(retries=2, retry_delay=0.0),
            step_configs={"near": StepConfig(retries=0)},
        )
        down, up = RuntimeError("down"), chat_response("up")
        with (
            answering(inherits, down, down, up) as first,
            answering(own, down, up) as second,
            answering(near, down) as third,
            pytest.raises(StepExecutionError) as caught,
        ):
            await pipeline.execute({}, None)
        assert (first.call_count, second.call_count, third.call_count) == (3, 2, 1)
        assert caught.value.step_id == "near"

    def test_a_diamond_takes_as_long_as_its_longest_path(self) -> None:
        def sleeping(seconds: float) -> BaseStep[None, None]:
            @step
            async def sleep(ctx: StepContext[None]) -> None:
                await asyncio.sleep(seconds)

            return sleep

        steps = {
            "start": sleeping(1),
            "left": sleeping(5),
            "right": sleeping(5),
            "end": sleeping(1),
        }
        dependencies = {"left": ["start"], "right": ["start"], "end": ["left", "right"]}
        _, seconds = on_virtual_clock(
            lambda: Pipeline("diamond", steps, dependencies).execute({}, None)
        )
        assert seconds == pytest.approx(7.0)

    async def test_a_traced_run_tells_its_story(self, caplog: pytest.LogCaptureFixture) -> None:
        agent = offline_agent()
        pipeline = Pipeline("story", {"ask": agent.as_step("?")})
        with caplog.at_level(logging.DEBUG, "fastroai.tracing"):
            await pipeline.execute({}, None, tracer=SimpleTracer())
        messages = [r.getMessage() for r in caplog.records if r.name == "fastroai.tracing"]
        for part in ("pipeline.story", "step.ask", "fastroai.agent.run", "input_tokens="):
            assert any(part in m for m in messages)

    async def test_a_failed_traced_run_tells_where(self, caplog: pytest.LogCaptureFixture) -> None:
        @step
        async def broken(ctx: StepContext[None]) -> None:
            raise ValueError("bad input")

        with caplog.at_level(logging.DEBUG, "fastroai.tracing"), pytest.raises(StepExecutionError):
            await Pipeline("story", {"broken": broken}).execute({}, None, tracer=SimpleTracer())
        assert any(
            "FAILED step.broken" in r.getMessage() and "bad input" in r.getMessage()
            for r in caplog.records
        )
