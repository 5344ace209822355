"""Contract sections 2, 6, 7 and 12: errors, steps, pipelines, their results and the router."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pydantic import BaseModel

from fastroai import (
    AgentStepWrapper,
    BasePipeline,
    BaseStep,
    ChatResponse,
    ConversationState,
    ConversationStatus,
    CostBudgetExceededError,
    DispatchSkippedError,
    ErrorCategory,
    FastroAIError,
    NoOpTracer,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    PipelineUsage,
    PipelineValidationError,
    SimpleTracer,
    StepConfig,
    StepContext,
    StepExecutionError,
    StepUsage,
    step,
)
from tests.support.chat import answering, chat_response, offline_agent
from tests.support.clock import on_virtual_clock


class Give(BaseStep[Any, Any]):
    """Gives a value, or raises it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.runs = 0

    async def execute(self, context: StepContext[Any]) -> Any:
        self.runs += 1
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class Join(BaseStep[Any, str]):
    """Joins the outputs of its dependencies."""

    def __init__(self, *step_ids: str) -> None:
        self.step_ids = step_ids

    async def execute(self, context: StepContext[Any]) -> str:
        return "+".join(str(context.get_dependency(s)) for s in self.step_ids)


def standalone() -> StepContext[Any]:
    return StepContext(step_id="s", inputs={}, deps=None, step_outputs={})


class TestErrors:
    @pytest.mark.parametrize(
        "kind",
        [
            PipelineValidationError,
            CostBudgetExceededError,
            DispatchSkippedError,
            StepExecutionError,
        ],
    )
    def test_every_error_is_a_fastroai_error(self, kind: type[Exception]) -> None:
        assert issubclass(kind, FastroAIError)
        assert issubclass(FastroAIError, Exception)

    def test_a_budget_error_says_both_numbers_and_the_step(self) -> None:
        error = CostBudgetExceededError(budget=1000, actual=1500, step_id="classify")
        assert (error.budget_microcents, error.actual_microcents, error.step_id) == (
            1000,
            1500,
            "classify",
        )
        for part in ("1000", "1500", "classify", "in step"):
            assert part in str(error)

    def test_a_budget_error_outside_a_step_names_none(self) -> None:
        error = CostBudgetExceededError(budget=1000, actual=1500)
        assert error.step_id is None
        assert "in step" not in str(error)

    def test_a_step_error_holds_the_step_and_the_very_error(self) -> None:
        original = ValueError("bad input")
        error = StepExecutionError("extract", original)
        assert error.step_id == "extract"
        assert error.original_error is original
        assert error.__cause__ is original
        assert "extract" in str(error)
        assert "bad input" in str(error)

    def test_a_skip_may_be_subclassed_with_a_constructor_of_its_own(self) -> None:
        class CircuitOpen(DispatchSkippedError):
            def __init__(self, provider: str, until: float) -> None:
                self.provider = provider
                self.until = until
                super().__init__(f"{provider} is resting until {until}")

        error = CircuitOpen("openai", 12.5)
        assert isinstance(error, FastroAIError)
        assert (error.provider, error.until) == ("openai", 12.5)
        assert str(error) == "openai is resting until 12.5"

    def test_error_categories_are_strings(self) -> None:
        assert {c.name: c.value for c in ErrorCategory} == {
            "TRANSIENT": "transient",
            "PERMANENT": "permanent",
            "RESOURCE_EXHAUSTION": "resource_exhaustion",
            "UNKNOWN": "unknown",
        }
        assert all(isinstance(c, str) for c in ErrorCategory)
        assert f"{ErrorCategory.TRANSIENT}" == "transient"
        assert ErrorCategory("permanent") is ErrorCategory.PERMANENT


class TestSteps:
    def test_a_base_step_is_abstract(self) -> None:
        with pytest.raises(TypeError):
            BaseStep()  # type: ignore[abstract]

    async def test_a_step_needs_no_init(self) -> None:
        class Plain(BaseStep[None, int]):
            async def execute(self, context: StepContext[None]) -> int:
                return 3

        assert await Plain().execute(standalone()) == 3

    async def test_the_bare_decorator_makes_a_step(self) -> None:
        @step
        async def shout(ctx: StepContext[Any]) -> str:
            """Says it loudly."""
            return "HEY"

        assert isinstance(shout, BaseStep)
        assert isinstance(shout.config, StepConfig)
        assert shout.config == StepConfig()
        assert await shout.execute(standalone()) == "HEY"

    async def test_the_decorator_takes_options(self) -> None:
        @step(timeout=5.0, retries=2, retry_delay=0.5, cost_budget=100)
        async def shout(ctx: StepContext[Any]) -> str:
            return "HEY"

        assert isinstance(shout, BaseStep)
        config = shout.config
        assert (config.timeout, config.retries, config.retry_delay, config.cost_budget) == (
            5.0,
            2,
            0.5,
            100,
        )
        assert await shout.execute(standalone()) == "HEY"

    async def test_the_decorator_takes_empty_parentheses(self) -> None:
        @step()
        async def shout(ctx: StepContext[Any]) -> str:
            return "HEY"

        assert await shout.execute(standalone()) == "HEY"
        assert shout.config == StepConfig()

    def test_the_decorators_options_are_keywords(self) -> None:
        with pytest.raises(TypeError):
            step(5.0, 2)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            step(retrys=2)

    async def test_a_plain_function_makes_an_awaitable_step_too(self) -> None:
        @step
        def shout(ctx: StepContext[Any]) -> str:
            return ctx.get_input("word", "hey").upper()

        @step(retries=1)
        def whisper(ctx: StepContext[Any]) -> str:
            return "hey"

        assert await shout.execute(standalone()) == "HEY"
        assert await whisper.execute(standalone()) == "hey"
        assert whisper.config.retries == 1

    async def test_a_callable_object_with_an_async_call_is_awaited(self) -> None:
        class Shout:
            async def __call__(self, ctx: StepContext[Any]) -> str:
                return "HEY"

        assert await step(Shout()).execute(standalone()) == "HEY"
        assert await step(lambda ctx: Shout()(ctx)).execute(standalone()) == "HEY"

    def test_a_decorated_step_keeps_its_name_and_doc(self) -> None:
        @step
        async def shout(ctx: StepContext[Any]) -> str:
            """Says it loudly."""
            return "HEY"

        assert shout.__name__ == "shout"
        assert shout.__doc__ == "Says it loudly."

    async def test_a_decorated_step_runs_agents(self) -> None:
        agent = offline_agent()

        @step(retries=1)
        async def ask(ctx: StepContext[Any]) -> str:
            return (await ctx.run(agent, f"About {ctx.get_input('topic')}")).output

        with answering(agent, chat_response("answer")) as run:
            result = await Pipeline("p", {"ask": ask}).execute({"topic": "tea"}, None)
        assert result.output == "answer"
        assert run.call_args.kwargs["message"] == "About tea"


class TestAgentSteps:
    async def test_an_agent_as_a_step_sends_its_prompt(self) -> None:
        agent = offline_agent()
        wrapper = agent.as_step("Summarise.")
        assert isinstance(wrapper, AgentStepWrapper)
        assert isinstance(wrapper, BaseStep)
        assert wrapper.agent is agent
        deps = object()
        with answering(agent, chat_response("short")) as run:
            result = await Pipeline("p", {"s": wrapper}).execute({}, deps)
        assert result.output == "short"
        assert run.call_args[1]["message"] == "Summarise."
        assert run.call_args[1]["deps"] is deps

    async def test_the_prompt_may_be_made_from_the_context(self) -> None:
        agent = offline_agent()
        steps = {
            "read": Give("text"),
            "sum": agent.as_step(lambda ctx: f"Sum up {ctx.get_dependency('read')}"),
        }
        with answering(agent, chat_response()) as run:
            await Pipeline("p", steps, {"sum": ["read"]}).execute({}, None)
        assert run.call_args[1]["message"] == "Sum up text"

    async def test_a_prompt_may_be_a_coroutine_function(self) -> None:
        agent = offline_agent()

        async def prompt(ctx: StepContext[Any]) -> str:
            return "later"

        with answering(agent, chat_response()) as run:
            await Pipeline("p", {"s": agent.as_step(prompt)}).execute({}, None)
        assert run.call_args[1]["message"] == "later"

    async def test_its_output_is_the_agents_typed_output(self) -> None:
        class Verdict(BaseModel):
            good: bool

        agent, verdict = offline_agent(output_type=Verdict), Verdict(good=True)
        with answering(agent, chat_response(verdict)):
            result = await Pipeline("p", {"s": agent.as_step("?")}).execute({}, None)
        assert result.output is verdict

    def test_a_wrapper_has_no_config_of_its_own(self) -> None:
        assert not hasattr(offline_agent().as_step("?"), "config")

    async def test_it_inherits_the_pipelines_retries(self) -> None:
        agent = offline_agent()
        pipeline = Pipeline(
            "p", {"s": agent.as_step("?")}, config=PipelineConfig(retries=2, retry_delay=0.0)
        )
        with answering(agent, RuntimeError("down")) as run, pytest.raises(StepExecutionError):
            await pipeline.execute({}, None)
        assert run.call_count == 3


class TestConversation:
    def test_statuses_are_strings(self) -> None:
        assert ConversationStatus.COMPLETE == "complete"
        assert ConversationStatus.INCOMPLETE == "incomplete"
        assert {s.value for s in ConversationStatus} == {"complete", "incomplete"}

    def test_a_state_has_its_own_context(self) -> None:
        first = ConversationState(status=ConversationStatus.COMPLETE)
        second = ConversationState(status=ConversationStatus.COMPLETE)
        assert first.data is None
        assert first.context == {}
        first.context["turn"] = 1
        assert second.context == {}

    def test_a_state_needs_a_status(self) -> None:
        with pytest.raises(ValueError, match="status"):
            ConversationState()  # type: ignore[call-arg]

    async def test_an_incomplete_state_ends_the_run_early(self) -> None:
        state = ConversationState(
            status=ConversationStatus.INCOMPLETE, data={"name": "Ada"}, context={"ask": "email"}
        )
        later = Give("later")
        result = await Pipeline(
            "p", {"gather": Give(state), "later": later}, {"later": ["gather"]}
        ).execute({}, None)
        assert result.stopped_early is True
        assert result.output is None
        assert result.conversation_state is not None
        assert result.conversation_state.status is ConversationStatus.INCOMPLETE
        assert result.conversation_state.data == {"name": "Ada"}
        assert result.conversation_state.context == {"ask": "email"}
        assert result.step_outputs == {"gather": state}
        assert later.runs == 0

    async def test_an_incomplete_output_step_is_still_the_output(self) -> None:
        state = ConversationState(status=ConversationStatus.INCOMPLETE, data=1)
        result = await Pipeline("p", {"gather": Give(state)}).execute({}, None)
        assert result.stopped_early is True
        assert result.output == state

    async def test_an_output_step_that_finished_before_the_stop_is_the_output(self) -> None:
        state = ConversationState(status=ConversationStatus.INCOMPLETE)
        pipeline = Pipeline(
            "p",
            {"answer": Give("answer"), "gather": Give(state), "later": Give()},
            {"gather": ["answer"], "later": ["gather"]},
            output_step="answer",
        )
        result = await pipeline.execute({}, None)
        assert (result.stopped_early, result.output) == (True, "answer")
        assert set(result.step_outputs) == {"answer", "gather"}

    async def test_a_complete_state_goes_on_and_is_handed_on(self) -> None:
        state = ConversationState(status=ConversationStatus.COMPLETE, data={"name": "Ada"})

        @step
        async def greet(ctx: StepContext[Any]) -> str:
            return "Hello " + ctx.get_dependency("gather").data["name"]

        result = await Pipeline(
            "p", {"gather": Give(state), "greet": greet}, {"greet": ["gather"]}
        ).execute({}, None)
        assert result.stopped_early is False
        assert result.output == "Hello Ada"
        assert result.conversation_state is not None
        assert result.conversation_state.status is ConversationStatus.COMPLETE
        assert result.conversation_state.data is state.data
        assert result.step_outputs["gather"] is state

    async def test_without_a_state_there_is_none(self) -> None:
        result = await Pipeline("p", {"a": Give(1)}).execute({}, None)
        assert result.conversation_state is None
        assert result.stopped_early is False


class TestConstruction:
    def test_a_pipeline_shows_what_it_was_made_of(self) -> None:
        steps = {"a": Give(), "b": Give()}
        dependencies, config, step_configs = (
            {"b": ["a"]},
            PipelineConfig(),
            {"a": StepConfig(retries=1)},
        )
        pipeline = Pipeline("p", steps, dependencies, "a", config, step_configs)
        assert pipeline.name == "p"
        assert pipeline.steps is steps
        assert pipeline.dependencies == dependencies
        assert pipeline.config is config
        assert pipeline.step_configs == step_configs
        assert pipeline.output_step == "a"

    def test_the_last_step_is_the_output_step_by_default(self) -> None:
        assert Pipeline("p", {"a": Give(), "b": Give()}, {"b": ["a"]}).output_step == "b"
        assert Pipeline("p", {"only": Give()}).output_step == "only"

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ({"output_step": "x"}, ["output_step 'x' not in steps"]),
            ({"dependencies": {"x": ["a"]}}, ["Dependency for unknown step", "x"]),
            ({"dependencies": {"b": ["x"]}}, ["depends on unknown", "b", "x"]),
            ({"dependencies": {"a": ["b"], "b": ["a"]}}, ["cycle"]),
            ({"dependencies": {"a": ["a"]}}, ["cycle", "a"]),
            ({}, ["Multiple terminal steps", "a", "b"]),
        ],
    )
    def test_what_cannot_run_is_refused(self, arguments: dict[str, Any], parts: list[str]) -> None:
        with pytest.raises(PipelineValidationError) as caught:
            Pipeline("p", {"a": Give(), "b": Give()}, **arguments)
        for part in parts:
            assert part in str(caught.value)

    def test_the_checks_have_an_order(self) -> None:
        steps: dict[str, BaseStep[Any, Any]] = {"a": Give(), "b": Give()}
        with pytest.raises(PipelineValidationError, match="output_step 'x' not in steps"):
            Pipeline("p", steps, {"y": ["a"], "a": ["z"]}, "x")
        with pytest.raises(PipelineValidationError, match="Dependency for unknown step"):
            Pipeline("p", steps, {"a": ["z"], "y": ["a"]})
        with pytest.raises(PipelineValidationError, match="depends on unknown"):
            Pipeline("p", steps, {"a": ["b", "z"], "b": ["a"]})

    def test_a_cycle_is_named_step_by_step(self) -> None:
        steps = {s: Give() for s in "abcd"}
        with pytest.raises(PipelineValidationError, match="cycle") as caught:
            Pipeline("p", steps, {"b": ["a", "d"], "c": ["b"], "d": ["c"]})
        for name in "bcd":
            assert f"{name}" in str(caught.value).split("cycle", 1)[1]

    def test_a_long_chain_is_no_cycle_and_no_recursion_error(self) -> None:
        steps = {f"s{i}": Give() for i in range(5000)}
        pipeline = Pipeline("p", steps, {f"s{i}": [f"s{i - 1}"] for i in range(1, 5000)})
        assert pipeline.output_step == "s4999"

    def test_a_named_output_step_makes_several_ends_acceptable(self) -> None:
        assert Pipeline("p", {"a": Give(), "b": Give()}, output_step="a").output_step == "a"

    @pytest.mark.parametrize(
        "arguments",
        [
            {"steps": {}},
            {"steps": {"a": "not a step"}},
            {"steps": {"a": lambda ctx: 1}},
            {"steps": {"a": Give()}, "step_configs": {"x": StepConfig()}},
            {"steps": {"a": Give(), "b": Give()}, "dependencies": {"b": "a"}},
        ],
    )
    def test_what_is_ill_typed_is_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(PipelineValidationError):
            Pipeline("p", **arguments)

    def test_an_unknown_keyword_is_refused(self) -> None:
        with pytest.raises(TypeError):
            Pipeline("p", {"a": Give()}, depends={"a": []})  # type: ignore[call-arg]


class TestExecution:
    async def test_a_step_reads_inputs_deps_and_the_tracer(self) -> None:
        seen: dict[str, Any] = {}

        class Look(BaseStep[Any, None]):
            async def execute(self, context: StepContext[Any]) -> None:
                seen.update(
                    id=context.step_id,
                    input=context.get_input("k"),
                    deps=context.deps,
                    tracer=context.tracer,
                )

        deps, tracer = object(), NoOpTracer()
        await Pipeline("p", {"look": Look()}).execute({"k": 1}, deps, tracer)
        assert seen == {"id": "look", "input": 1, "deps": deps, "tracer": tracer}
        assert seen["deps"] is deps
        assert seen["tracer"] is tracer
        await Pipeline("p", {"look": Look()}).execute(input_data={"k": 2}, deps=deps, tracer=tracer)
        assert seen["input"] == 2

    async def test_a_step_always_has_a_tracer(self) -> None:
        @step
        async def look(ctx: StepContext[Any]) -> bool:
            return isinstance(ctx.tracer, NoOpTracer)

        assert (await Pipeline("p", {"look": look}).execute({}, None)).output is True

    @pytest.mark.parametrize("data", ["text", 7, None, ["a"], 0, ""])
    async def test_an_input_that_is_no_dict_becomes_data(self, data: Any) -> None:
        @step
        async def read(ctx: StepContext[Any]) -> Any:
            return ctx.get_input("data", "missing")

        assert (await Pipeline("p", {"read": read}).execute(data, None)).output == data

    async def test_all_outputs_are_in_the_result(self) -> None:
        steps = {"a": Give(1), "b": Give(2), "c": Join("a", "b")}
        result = await Pipeline("p", steps, {"c": ["a", "b"]}).execute({}, None)
        assert isinstance(result, PipelineResult)
        assert result.output == "1+2"
        assert result.step_outputs == {"a": 1, "b": 2, "c": "1+2"}
        assert result.usage is None

    async def test_the_output_step_chooses_the_output(self) -> None:
        steps = {"a": Give(1), "b": Give(2)}
        assert (
            await Pipeline("p", steps, {"b": ["a"]}, output_step="a").execute({}, None)
        ).output == 1

    @pytest.mark.parametrize("output", [None, 0, "", False, [], {}])
    async def test_a_falsy_output_is_an_output(self, output: Any) -> None:
        result = await Pipeline("p", {"a": Give(output), "b": Join("a")}, {"b": ["a"]}).execute(
            {}, None
        )
        assert result.step_outputs == {"a": output, "b": str(output)}

    def test_independent_steps_overlap(self) -> None:
        def sleeping(seconds: float) -> BaseStep[Any, Any]:
            @step
            async def sleep(ctx: StepContext[Any]) -> float:
                await asyncio.sleep(seconds)
                return seconds

            return sleep

        steps = {"a": sleeping(1), "b": sleeping(2), "c": sleeping(3), "d": sleeping(1)}
        pipeline = Pipeline("p", steps, {"b": ["a"], "c": ["a"], "d": ["b", "c"]})
        result, seconds = on_virtual_clock(lambda: pipeline.execute({}, None))
        assert set(result.step_outputs) == set("abcd")
        assert seconds == pytest.approx(5.0)

    def test_a_step_does_not_wait_for_a_level(self) -> None:
        def sleeping(seconds: float) -> BaseStep[Any, Any]:
            @step
            async def sleep(ctx: StepContext[Any]) -> float:
                await asyncio.sleep(seconds)
                return seconds

            return sleep

        steps = {
            "quick": sleeping(1),
            "slow": sleeping(10),
            "after quick": sleeping(8),
            "end": sleeping(1),
        }
        pipeline = Pipeline("p", steps, {"after quick": ["quick"], "end": ["after quick", "slow"]})
        _, seconds = on_virtual_clock(lambda: pipeline.execute({}, None))
        assert seconds == pytest.approx(11.0)

    async def test_a_pipeline_may_run_again_and_at_once(self) -> None:
        @step
        async def echo(ctx: StepContext[Any]) -> Any:
            await asyncio.sleep(0)
            return ctx.get_input("n")

        pipeline = Pipeline("p", {"a": echo, "b": Join("a")}, {"b": ["a"]})
        assert (await pipeline.execute({"n": 1}, None)).output == "1"
        results = await asyncio.gather(*(pipeline.execute({"n": n}, None) for n in range(20)))
        assert [r.output for r in results] == [str(n) for n in range(20)]
        assert len({r.run_id for r in results}) == 20

    async def test_it_opens_a_span_for_itself_and_for_each_step(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            await Pipeline("demo", {"a": Give(), "b": Give()}, {"b": ["a"]}).execute(
                {}, None, SimpleTracer()
            )
        text = caplog.text
        for span in ("pipeline.demo", "step.a", "step.b"):
            assert span in text


class TestFailure:
    async def test_a_failing_step_is_named_and_its_error_is_kept(self) -> None:
        error = ValueError("bad")
        with pytest.raises(StepExecutionError) as caught:
            await Pipeline("p", {"a": Give(1), "b": Give(error)}, {"b": ["a"]}).execute({}, None)
        assert caught.value.step_id == "b"
        assert caught.value.original_error is error
        assert caught.value.__cause__ is error

    async def test_a_step_error_raised_by_a_step_is_not_wrapped_again(self) -> None:
        inner = StepExecutionError("inner", ValueError("bad"))
        with pytest.raises(StepExecutionError) as caught:
            await Pipeline("p", {"outer": Give(inner)}).execute({}, None)
        assert caught.value is inner
        assert caught.value.step_id == "inner"

    async def test_a_spent_budget_arrives_wrapped(self) -> None:
        agent = offline_agent()

        @step(cost_budget=150)
        async def spend(ctx: StepContext[Any]) -> None:
            for _ in range(3):
                await ctx.run(agent, "again")

        with (
            answering(agent, chat_response(cost=100)) as run,
            pytest.raises(StepExecutionError) as caught,
        ):
            await Pipeline("p", {"spend": spend}).execute({}, None)
        error = caught.value.original_error
        assert isinstance(error, CostBudgetExceededError)
        assert (error.budget_microcents, error.actual_microcents, error.step_id) == (
            150,
            200,
            "spend",
        )
        assert run.call_count == 2

    async def test_the_pipelines_budget_stops_a_single_step_at_the_same_call(self) -> None:
        agent = offline_agent()

        @step
        async def spend(ctx: StepContext[Any]) -> None:
            for _ in range(3):
                await ctx.run(agent, "again")

        pipeline = Pipeline("p", {"spend": spend}, config=PipelineConfig(cost_budget=150))
        with answering(agent, chat_response(cost=100)), pytest.raises(StepExecutionError) as caught:
            await pipeline.execute({}, None)
        error = caught.value.original_error
        assert isinstance(error, CostBudgetExceededError)
        assert (error.budget_microcents, error.actual_microcents) == (150, 200)

    async def test_steps_after_a_failure_do_not_run(self) -> None:
        later = Give()
        with pytest.raises(StepExecutionError):
            await Pipeline("p", {"a": Give(ValueError()), "b": later}, {"b": ["a"]}).execute(
                {}, None
            )
        assert later.runs == 0

    @pytest.mark.parametrize("where", ["pipeline", "step", "step_configs"])
    async def test_retries_of_two_are_three_calls(self, where: str) -> None:
        agent, config = offline_agent(), {"retries": 2, "retry_delay": 0.0}

        @step(**(config if where == "step" else {}))
        async def ask(ctx: StepContext[Any]) -> Any:
            return (await ctx.run(agent, "?")).output

        pipeline = Pipeline(
            "p",
            {"ask": ask},
            config=PipelineConfig(**config) if where == "pipeline" else None,
            step_configs={"ask": StepConfig(**config)} if where == "step_configs" else None,
        )
        with (
            answering(agent, RuntimeError("down")) as run,
            pytest.raises(StepExecutionError) as caught,
        ):
            await pipeline.execute({}, None)
        assert run.call_count == 3
        assert isinstance(caught.value.original_error, RuntimeError)
        with answering(
            agent, RuntimeError("down"), RuntimeError("down"), chat_response("up")
        ) as run:
            assert (await pipeline.execute({}, None)).output == "up"
        assert run.call_count == 3

    def test_a_configured_timeout_is_a_timeout_error(self) -> None:
        agent = offline_agent()

        async def hang(**kwargs: Any) -> Any:
            await asyncio.sleep(3600)

        agent.run = hang  # type: ignore[method-assign]
        pipeline = Pipeline("p", {"s": agent.as_step("?")}, config=PipelineConfig(timeout=2.0))

        async def main() -> StepExecutionError:
            with pytest.raises(StepExecutionError) as caught:
                await pipeline.execute({}, None)
            return caught.value

        error, seconds = on_virtual_clock(main)
        assert isinstance(error.original_error, TimeoutError)
        assert seconds == pytest.approx(2.0)


class TestUsage:
    def test_step_usage_starts_at_zero(self) -> None:
        usage = StepUsage()
        names = [
            "input_tokens",
            "output_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
            "input_audio_tokens",
            "output_audio_tokens",
            "cache_audio_read_tokens",
            "request_count",
            "tool_call_count",
            "cost_microcents",
            "processing_time_ms",
        ]
        assert [getattr(usage, name) for name in names] == [0] * 11
        assert usage.model is None

    def test_step_usage_comes_from_a_response(self) -> None:
        usage = StepUsage.from_chat_response(
            chat_response(cost=70, cache_read_tokens=3, request_count=2)
        )
        assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (10, 5, 3)
        assert (usage.cost_microcents, usage.processing_time_ms, usage.request_count) == (70, 7, 2)
        assert usage.model == "gpt-4o"

    def test_step_usages_add_up(self) -> None:
        first, second = (
            StepUsage(input_tokens=1, cost_microcents=10),
            StepUsage(input_tokens=2, cost_microcents=5, model="b"),
        )
        total = first + second
        assert (total.input_tokens, total.cost_microcents, total.model) == (3, 15, "b")
        assert (StepUsage(model="a") + second).model == "a"
        assert (first.input_tokens, second.input_tokens) == (1, 2)

    def test_pipeline_usage_sums_its_steps(self) -> None:
        steps = {
            "a": StepUsage(
                input_tokens=10, output_tokens=1, cost_microcents=1_000_000, processing_time_ms=5
            ),
            "b": StepUsage(
                input_tokens=20, tool_call_count=2, request_count=3, cost_microcents=500_000
            ),
        }
        usage = PipelineUsage.from_step_usages(steps)
        assert (usage.total_input_tokens, usage.total_output_tokens) == (30, 1)
        assert (usage.total_cost_microcents, usage.total_processing_time_ms) == (1_500_000, 5)
        assert (usage.total_tool_call_count, usage.total_request_count) == (2, 3)
        assert usage.total_cost_dollars == 1.5
        assert usage.steps == steps

    def test_pipeline_usage_of_nothing_is_zero(self) -> None:
        usage = PipelineUsage.from_step_usages({})
        assert usage == PipelineUsage()
        assert usage.total_cost_microcents == 0
        assert usage.steps == {}

    async def test_a_runs_usage_is_the_sum_of_its_steps(self) -> None:
        agent = offline_agent()
        steps = {"a": agent.as_step("a"), "b": agent.as_step("b"), "c": Join("a", "b")}
        with answering(agent, chat_response(cost=100)):
            result = await Pipeline("p", steps, {"c": ["a", "b"]}).execute({}, None)
        assert result.usage is not None
        assert set(result.usage.steps) == {"a", "b"}
        assert result.usage.total_cost_microcents == 200
        assert result.usage.total_input_tokens == 20
        assert result.usage.total_cost_dollars == pytest.approx(0.0002)

    def test_a_result_has_defaults(self) -> None:
        result: PipelineResult[Any] = PipelineResult()
        assert (result.output, result.step_outputs, result.conversation_state) == (None, {}, None)
        assert (result.usage, result.stopped_early) == (None, False)
        assert PipelineResult(output=object()).output is not None


class TestRouter:
    class Router(BasePipeline[Any, Any, Any]):
        async def route(self, input_data: Any, deps: Any) -> str:
            return str(input_data["to"])

    class Nameless(BasePipeline[Any, Any, Any]):
        def __init__(self) -> None:
            pass

        async def route(self, input_data: Any, deps: Any) -> str:
            return "a"

    def test_a_router_is_abstract(self) -> None:
        with pytest.raises(TypeError):
            BasePipeline("router")  # type: ignore[abstract]

    async def test_it_hands_the_input_to_the_chosen_pipeline(self) -> None:
        router = self.Router("router")
        assert router.name == "router"
        router.register_pipeline("a", Pipeline("pa", {"s": Give("A")}))
        router.register_pipeline("b", Pipeline("pb", {"s": Give("B")}))
        assert (await router.execute({"to": "a"}, None)).output == "A"
        assert (await router.execute({"to": "b"}, deps=None, tracer=NoOpTracer())).output == "B"

    async def test_inputs_and_deps_arrive(self) -> None:
        @step
        async def look(ctx: StepContext[Any]) -> tuple[Any, Any]:
            return ctx.get_input("to"), ctx.deps

        router, deps = self.Router("router"), object()
        router.register_pipeline("a", Pipeline("pa", {"s": look}))
        assert (await router.execute({"to": "a"}, deps)).output == ("a", deps)

    async def test_a_name_registered_again_is_replaced(self) -> None:
        router = self.Router("router")
        router.register_pipeline("a", Pipeline("old", {"s": Give("old")}))
        router.register_pipeline("a", Pipeline("new", {"s": Give("new")}))
        assert (await router.execute({"to": "a"}, None)).output == "new"

    async def test_an_unknown_name_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="Unknown pipeline") as caught:
            await self.Router("router").execute({"to": "x"}, None)
        assert "x" in str(caught.value)
        assert isinstance(caught.value, FastroAIError)

    async def test_a_router_need_not_call_super(self) -> None:
        router = self.Nameless()
        router.register_pipeline("a", Pipeline("pa", {"s": Give("A")}))
        assert (await router.execute({}, None)).output == "A"


class TestPipelineExecutor:
    async def test_it_runs_without_a_pipeline_and_without_a_tracer(self) -> None:
        from fastroai.pipelines.executor import PipelineExecutor

        executor = PipelineExecutor(steps={"simple": Give("done")}, dependencies={})
        result = await executor.execute({}, None, tracer=None)
        assert result.outputs["simple"] == "done"
        assert (result.usages, result.conversation_state, result.stopped_early) == ({}, None, False)

    async def test_it_takes_configs(self) -> None:
        from fastroai.pipelines.executor import PipelineExecutor

        @step
        async def probe(ctx: StepContext[Any]) -> tuple[int, float | None]:
            return ctx.config.retries, ctx.config.timeout

        executor = PipelineExecutor(
            {"probe": probe}, {}, PipelineConfig(timeout=9.0), {"probe": StepConfig(retries=4)}
        )
        assert (await executor.execute({}, None)).outputs == {"probe": (4, 9.0)}

    def test_it_validates_when_it_is_made(self) -> None:
        from fastroai.pipelines.executor import PipelineExecutor

        with pytest.raises(PipelineValidationError, match="cycle"):
            PipelineExecutor(
                steps={"a": Give(), "b": Give()}, dependencies={"a": ["b"], "b": ["a"]}
            )


class TestPatchedNames:
    """Section 12: names that existing suites patch or call."""

    async def test_run_may_be_replaced_on_the_instance(self) -> None:
        agent = offline_agent()

        async def replacement(
            message: str, deps: Any = None, tracer: Any = None, **kwargs: Any
        ) -> ChatResponse[Any]:
            return chat_response(message)

        agent.run = replacement  # type: ignore[method-assign]
        assert (await Pipeline("p", {"s": agent.as_step("hi")}).execute({}, None)).output == "hi"

    def test_the_agents_private_names_are_there(self) -> None:
        async def hook(*args: Any) -> None: ...

        agent = offline_agent(on_before_dispatch=hook, on_after_dispatch=hook)
        assert agent._agent is agent.agent
        assert agent._on_before_dispatch is hook
        assert agent._on_after_dispatch is hook
        assert offline_agent()._on_before_dispatch is None
        assert offline_agent()._on_after_dispatch is None
        assert offline_agent(timeout=42)._build_default_model_settings().get("timeout") == 42
        assert "timeout" not in offline_agent()._build_default_model_settings()

    def test_tool_call_extraction_never_raises(self) -> None:
        class Broken:
            def new_messages(self) -> Any:
                raise RuntimeError("broken")

            def __iter__(self) -> Any:
                raise RuntimeError("broken")

        assert offline_agent()._extract_tool_calls(Broken()) == []
        assert offline_agent()._extract_tool_calls_from_messages(Broken()) == []

    def test_the_logfire_module_is_a_name_of_the_tracer_module(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fastroai import LogfireTracer
        from fastroai.tracing import tracer

        assert hasattr(LogfireTracer(), "_logfire")
        monkeypatch.setattr(tracer, "logfire_module", None)
        with pytest.raises(ImportError, match="logfire is required"):
            LogfireTracer()
