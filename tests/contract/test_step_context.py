"""Contract section 5: what a step's context offers, also outside any pipeline."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from fastroai import (
    CostBudgetExceededError,
    DispatchSkippedError,
    FastroAgent,
    NoOpTracer,
    StepConfig,
    StepContext,
    StepUsage,
)
from tests.support.chat import answering, chat_response, offline_agent
from tests.support.clock import on_virtual_clock


def context(**options: Any) -> StepContext[Any]:
    """A context of its own, with no pipeline behind it."""
    values: dict[str, Any] = {
        "step_id": "summarise",
        "inputs": {},
        "deps": None,
        "step_outputs": {},
    }
    return StepContext(**(values | options))


class HookLog:
    """Dispatch hooks that note their calls, and raise when they are told to."""

    def __init__(self, before: Exception | None = None, after: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._before, self._after = before, after

    async def before(self) -> None:
        self.calls.append(("before",))
        if self._before:
            raise self._before

    async def after(self, error: BaseException | None) -> None:
        self.calls.append(("after", error))
        if self._after:
            raise self._after

    def agent(self) -> FastroAgent[Any]:
        return offline_agent(on_before_dispatch=self.before, on_after_dispatch=self.after)


class Skipped(DispatchSkippedError):
    """A user's own skip, with a constructor of its own."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class TestReading:
    def test_its_properties_are_what_it_was_made_of(self) -> None:
        deps, tracer, config = object(), NoOpTracer(), StepConfig(retries=2)
        ctx = context(step_id="a", deps=deps, tracer=tracer, config=config)
        assert (ctx.step_id, ctx.deps, ctx.tracer, ctx.config) == ("a", deps, tracer, config)

    def test_its_arguments_may_be_given_by_position(self) -> None:
        ctx = StepContext("a", {"k": 1}, "deps", {"b": 2}, None, StepConfig(retries=1))
        assert (ctx.step_id, ctx.get_input("k"), ctx.deps, ctx.get_dependency("b")) == (
            "a",
            1,
            "deps",
            2,
        )
        assert ctx.config.retries == 1

    def test_tracer_and_config_are_optional(self) -> None:
        ctx = context()
        assert ctx.tracer is None
        assert ctx.config == StepConfig()

    @pytest.mark.parametrize("name", ["step_id", "deps", "tracer", "usage", "config"])
    def test_its_properties_are_read_only(self, name: str) -> None:
        with pytest.raises(AttributeError):
            setattr(context(), name, None)

    def test_its_usage_starts_at_zero(self) -> None:
        assert context().usage == StepUsage()
        assert context().usage.cost_microcents == 0

    def test_an_input_is_looked_up_with_a_default(self) -> None:
        ctx = context(inputs={"document": "text", "none": None})
        assert ctx.get_input("document") == "text"
        assert ctx.get_input("none", "default") is None
        assert ctx.get_input("missing") is None
        assert ctx.get_input("missing", "default") == "default"

    @pytest.mark.parametrize("output", ["text", 0, None, "", False, {"a": 1}])
    def test_a_dependency_is_looked_up_falsy_or_not(self, output: Any) -> None:
        ctx = context(step_outputs={"read": output})
        assert ctx.get_dependency("read") is output
        assert ctx.get_dependency("read", str) is output
        assert ctx.get_dependency_or_none("read") is output

    def test_a_missing_dependency_is_an_error_that_names_it_and_what_there_is(self) -> None:
        with pytest.raises(ValueError, match="not a dependency") as caught:
            context(step_outputs={"read": 1}).get_dependency("write")
        assert "write" in str(caught.value)
        assert "read" in str(caught.value)

    def test_a_missing_dependency_may_be_asked_for_as_none(self) -> None:
        assert context().get_dependency_or_none("read") is None
        assert context().get_dependency_or_none("read", str) is None


class TestRun:
    async def test_it_calls_the_agents_run_by_keyword(self) -> None:
        agent, deps, tracer = offline_agent(), object(), NoOpTracer()
        response = chat_response()
        with answering(agent, response) as run:
            assert await context(deps=deps, tracer=tracer).run(agent, "hello") is response
        assert run.call_args.args == ()
        assert run.call_args.kwargs["message"] == "hello"
        assert run.call_args.kwargs["deps"] is deps
        assert run.call_args.kwargs["tracer"] is tracer

    async def test_no_tracer_stays_no_tracer(self) -> None:
        agent = offline_agent()
        with answering(agent, chat_response()) as run:
            await context().run(agent, "hello")
        assert run.call_args[1]["tracer"] is None

    async def test_usage_adds_up_over_calls(self) -> None:
        agent, ctx = offline_agent(), context()
        with answering(
            agent,
            chat_response(cost=100),
            chat_response(cost=50, input_tokens=1, tool_call_count=2),
        ):
            await ctx.run(agent, "one")
            assert (ctx.usage.cost_microcents, ctx.usage.input_tokens) == (100, 10)
            await ctx.run(agent, "two")
        assert (ctx.usage.cost_microcents, ctx.usage.input_tokens, ctx.usage.output_tokens) == (
            150,
            11,
            10,
        )
        assert (
            ctx.usage.request_count,
            ctx.usage.tool_call_count,
            ctx.usage.processing_time_ms,
        ) == (2, 2, 14)
        assert ctx.usage.model == "gpt-4o"

    async def test_every_counter_of_a_response_reaches_the_usage(self) -> None:
        counters = {
            "cache_read_tokens": 3,
            "cache_write_tokens": 4,
            "input_audio_tokens": 5,
            "output_audio_tokens": 2,
            "cache_audio_read_tokens": 1,
            "request_count": 6,
            "tool_call_count": 7,
        }
        agent, ctx = offline_agent(), context()
        with answering(agent, chat_response(**counters)):
            await ctx.run(agent, "hello")
        assert {name: getattr(ctx.usage, name) for name in counters} == counters

    async def test_a_real_agent_runs_without_a_pipeline(self) -> None:
        ctx = context()
        response = await ctx.run(offline_agent(), "hello")
        assert isinstance(response.output, str)
        assert ctx.usage.input_tokens == response.input_tokens > 0

    async def test_something_that_only_has_run_will_do_for_an_agent(self) -> None:
        class Plain:
            async def run(self, message: str, deps: Any = None, tracer: Any = None) -> Any:
                return chat_response(message.upper())

        assert (await context().run(Plain(), "hello")).output == "HELLO"  # type: ignore[arg-type]


class TestRetries:
    async def test_retries_are_attempts_after_the_first(self) -> None:
        agent = offline_agent()
        ctx = context(config=StepConfig(retries=2, retry_delay=0.0))
        with (
            answering(agent, RuntimeError("down")) as run,
            pytest.raises(RuntimeError, match="down"),
        ):
            await ctx.run(agent, "hello")
        assert run.call_count == 3

    async def test_no_retries_is_the_default(self) -> None:
        agent = offline_agent()
        with (
            answering(agent, RuntimeError("down")) as run,
            pytest.raises(RuntimeError, match="down"),
        ):
            await context().run(agent, "hello")
        assert run.call_count == 1

    async def test_the_last_attempts_exception_is_raised_itself(self) -> None:
        agent, last = offline_agent(), RuntimeError("third")
        ctx = context(config=StepConfig(retries=2, retry_delay=0.0))
        answers = (RuntimeError("first"), RuntimeError("second"), last)
        with answering(agent, *answers), pytest.raises(RuntimeError) as caught:
            await ctx.run(agent, "hello")
        assert caught.value is last

    async def test_a_later_attempt_may_succeed(self) -> None:
        agent, response = offline_agent(), chat_response()
        ctx = context(config=StepConfig(retries=2, retry_delay=0.0))
        with answering(agent, RuntimeError("first"), response) as run:
            assert await ctx.run(agent, "hello") is response
        assert run.call_count == 2
        assert ctx.usage.cost_microcents == 100

    async def test_an_argument_beats_the_configured_retries(self) -> None:
        agent = offline_agent()
        ctx = context(config=StepConfig(retries=5, retry_delay=0.0))
        with answering(agent, RuntimeError("down")) as run, pytest.raises(RuntimeError):
            await ctx.run(agent, "hello", retries=1)
        assert run.call_count == 2
        with answering(agent, RuntimeError("down")) as run, pytest.raises(RuntimeError):
            await ctx.run(agent, "hello", retries=0)
        assert run.call_count == 1

    def test_the_delay_doubles_from_attempt_to_attempt(self) -> None:
        agent, began = offline_agent(), []

        async def fail(**kwargs: Any) -> Any:
            began.append(asyncio.get_running_loop().time())
            raise RuntimeError("down")

        agent.run = fail  # type: ignore[method-assign]

        async def main() -> None:
            with pytest.raises(RuntimeError):
                await context(config=StepConfig(retries=3, retry_delay=0.5)).run(agent, "hello")

        _, seconds = on_virtual_clock(main)
        assert [round(b - a, 6) for a, b in pairwise(began)] == [0.5, 1.0, 2.0]
        assert seconds == pytest.approx(3.5)

    def test_listed_delays_are_used_as_they_are(self) -> None:
        agent = offline_agent()

        async def main() -> None:
            with answering(agent, RuntimeError("down")), pytest.raises(RuntimeError):
                await context(config=StepConfig(retries=3, retry_delay=[1.0, 7.0])).run(
                    agent, "hello"
                )

        _, seconds = on_virtual_clock(main)
        assert seconds == pytest.approx(15.0)


class TestTimeout:
    @staticmethod
    def hanging_agent() -> tuple[FastroAgent[Any], list[str]]:
        agent, calls = offline_agent(), []

        async def hang(**kwargs: Any) -> Any:
            calls.append(kwargs["message"])
            await asyncio.sleep(3600)

        agent.run = hang  # type: ignore[method-assign]
        return agent, calls

    def test_each_attempt_has_the_timeout_to_itself(self) -> None:
        agent, calls = self.hanging_agent()

        async def main() -> BaseException:
            ctx = context(config=StepConfig(timeout=5.0, retries=1, retry_delay=0.0))
            with pytest.raises(TimeoutError) as caught:
                await ctx.run(agent, "hello")
            return caught.value

        error, seconds = on_virtual_clock(main)
        assert len(calls) == 2
        assert seconds == pytest.approx(10.0)
        assert "5.0s" in str(error)

    def test_an_argument_beats_the_configured_timeout(self) -> None:
        agent, _ = self.hanging_agent()

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await context(config=StepConfig(timeout=500.0)).run(agent, "hello", timeout=2.0)

        _, seconds = on_virtual_clock(main)
        assert seconds == pytest.approx(2.0)

    def test_the_after_hook_sees_the_timeout(self) -> None:
        hooks = HookLog()
        agent = hooks.agent()

        async def hang(**kwargs: Any) -> Any:
            await asyncio.sleep(3600)

        agent.run = hang  # type: ignore[method-assign]

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await context().run(agent, "hello", timeout=1.0)

        on_virtual_clock(main)
        assert [type(c[1]) for c in hooks.calls if c[0] == "after"] == [TimeoutError]

    async def test_the_callers_own_timeout_goes_through(self) -> None:
        agent, calls = self.hanging_agent()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(context(config=StepConfig(retries=3)).run(agent, "hello"), 0.01)
        assert len(calls) == 1


class TestBudget:
    async def test_the_pinned_sequence(self) -> None:
        agent, ctx = offline_agent(), context(config=StepConfig(cost_budget=150))
        with answering(agent, chat_response(cost=100)) as run:
            await ctx.run(agent, "one")
            assert ctx.usage.cost_microcents == 100
            await ctx.run(agent, "two")
            assert ctx.usage.cost_microcents == 200
            with pytest.raises(CostBudgetExceededError) as caught:
                await ctx.run(agent, "three")
        assert run.call_count == 2
        error = caught.value
        assert (error.budget_microcents, error.actual_microcents, error.step_id) == (
            150,
            200,
            "summarise",
        )

    async def test_spend_equal_to_the_budget_has_reached_it(self) -> None:
        agent, ctx = offline_agent(), context(config=StepConfig(cost_budget=100))
        with answering(agent, chat_response(cost=100)):
            await ctx.run(agent, "one")
            with pytest.raises(CostBudgetExceededError):
                await ctx.run(agent, "two")

    async def test_a_budget_of_nothing_sends_nothing(self) -> None:
        agent = offline_agent()
        with answering(agent, chat_response()) as run, pytest.raises(CostBudgetExceededError):
            await context(config=StepConfig(cost_budget=0)).run(agent, "one")
        assert run.call_count == 0

    async def test_no_hook_fires_when_the_budget_is_spent(self) -> None:
        hooks = HookLog()
        agent = hooks.agent()
        with answering(agent, chat_response()), pytest.raises(CostBudgetExceededError):
            await context(config=StepConfig(cost_budget=0, retries=3)).run(agent, "one")
        assert hooks.calls == []


class TestDispatchHooks:
    async def test_they_surround_a_call(self) -> None:
        hooks = HookLog()
        agent = hooks.agent()

        async def note(**kwargs: Any) -> Any:
            hooks.calls.append(("run",))
            return chat_response()

        agent.run = note  # type: ignore[method-assign]
        await context().run(agent, "hello")
        assert hooks.calls == [("before",), ("run",), ("after", None)]

    async def test_they_fire_once_for_each_attempt(self) -> None:
        hooks, error = HookLog(), RuntimeError("first")
        agent = hooks.agent()
        with answering(agent, error, chat_response()):
            await context(config=StepConfig(retries=1, retry_delay=0.0)).run(agent, "hello")
        assert hooks.calls == [("before",), ("after", error), ("before",), ("after", None)]

    async def test_they_do_not_fire_for_a_direct_run(self) -> None:
        hooks = HookLog()
        await hooks.agent().run("hello")
        assert hooks.calls == []

    async def test_what_the_before_hook_raises_ends_the_call(self) -> None:
        refusal = RuntimeError("circuit open")
        hooks = HookLog(before=refusal)
        agent = hooks.agent()
        with answering(agent, chat_response()) as run, pytest.raises(RuntimeError) as caught:
            await context(config=StepConfig(retries=3, retry_delay=0.0)).run(agent, "hello")
        assert caught.value is refusal
        assert run.call_count == 0
        assert hooks.calls == [("before",)]

    async def test_a_skip_in_the_before_hook_ends_the_call(self) -> None:
        skip = Skipped("circuit open", 7)
        hooks = HookLog(before=skip)
        agent = hooks.agent()
        with answering(agent, chat_response()) as run, pytest.raises(Skipped) as caught:
            await context(config=StepConfig(retries=3)).run(agent, "hello")
        assert caught.value is skip
        assert caught.value.code == 7
        assert run.call_count == 0
        assert hooks.calls == [("before",)]

    @pytest.mark.parametrize("skip", [DispatchSkippedError("no"), Skipped("no", 1)])
    async def test_a_skip_inside_the_call_fires_the_after_hook_once_and_is_not_retried(
        self, skip: Exception
    ) -> None:
        hooks = HookLog()
        agent = hooks.agent()
        with answering(agent, skip) as run, pytest.raises(DispatchSkippedError) as caught:
            await context(config=StepConfig(retries=3, retry_delay=0.0)).run(agent, "hello")
        assert caught.value is skip
        assert run.call_count == 1
        assert hooks.calls == [("before",), ("after", skip)]

    async def test_what_the_after_hook_raises_after_a_failure_ends_the_call(self) -> None:
        refusal = ValueError("stop")
        hooks = HookLog(after=refusal)
        agent = hooks.agent()
        with (
            answering(agent, RuntimeError("down")) as run,
            pytest.raises(ValueError, match="stop") as caught,
        ):
            await context(config=StepConfig(retries=3, retry_delay=0.0)).run(agent, "hello")
        assert caught.value is refusal
        assert run.call_count == 1

    async def test_what_the_after_hook_raises_after_a_success_keeps_the_spend(self) -> None:
        hooks = HookLog(after=ValueError("stop"))
        agent, ctx = hooks.agent(), context(config=StepConfig(retries=3, retry_delay=0.0))
        with (
            answering(agent, chat_response(cost=100)) as run,
            pytest.raises(ValueError, match="stop"),
        ):
            await ctx.run(agent, "hello")
        assert run.call_count == 1
        assert ctx.usage.cost_microcents == 100

    def test_the_after_hook_fires_before_the_delay(self) -> None:
        hooks = HookLog()
        agent, fired = hooks.agent(), []

        async def after(error: BaseException | None) -> None:
            fired.append(asyncio.get_running_loop().time())

        agent._on_after_dispatch = after

        async def main() -> float:
            began = asyncio.get_running_loop().time()
            with answering(agent, RuntimeError("down")), pytest.raises(RuntimeError):
                await context(config=StepConfig(retries=1, retry_delay=10.0)).run(agent, "hello")
            return began

        began, seconds = on_virtual_clock(main)
        assert [round(at - began, 6) for at in fired] == [0.0, 10.0]
        assert seconds == pytest.approx(10.0)

    async def test_one_hook_alone_will_do(self) -> None:
        hooks = HookLog()
        only_before, only_after = (
            offline_agent(on_before_dispatch=hooks.before),
            offline_agent(on_after_dispatch=hooks.after),
        )
        for agent in (only_before, only_after):
            with answering(agent, chat_response()):
                await context().run(agent, "hello")
        assert hooks.calls == [("before",), ("after", None)]
