"""Failing steps: tried again, given up, cancelled, skipped; the same on every executor."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic_ai.exceptions import ModelHTTPError, UserError

from fastroai import (
    CostBudgetExceededError,
    DispatchSkippedError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.executors import Executor
from tests.support.models import counted_agent
from tests.support.remote_runners import is_given
from tests.support.shared import SharedList
from tests.support.steps import Give, Join, Signal, WaitsForever, after, announcing, soon

NOW = {"retry_delay": 0.0}


GOES_ON = "code that is under way on a worker goes on to its end, and nobody waits for it"


class NotAnException(BaseException):
    """What `except Exception` must not catch."""


async def failure(pipeline: Pipeline[Any, Any, Any], deps: Any = None) -> StepExecutionError:
    """The error a run ends with."""
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, deps)
    return caught.value


class TestRetries:
    async def test_n_retries_are_n_plus_one_attempts(self, executor: str) -> None:
        broken = Give(RuntimeError("down"))
        error = await failure(
            Pipeline("p", {"s": broken}, config=PipelineConfig(retries=2, **NOW), executor=executor)
        )
        assert broken.runs == 3
        assert str(error.original_error) == "down"

    @pytest.mark.same_under_prefect
    async def test_the_first_success_ends_the_attempts(self, executor: str) -> None:
        flaky = Give(RuntimeError("1"), RuntimeError("2"), "fine")
        pipeline = Pipeline(
            "p", {"s": flaky}, step_configs={"s": StepConfig(retries=5, **NOW)}, executor=executor
        )
        assert (await pipeline.execute({}, None)).output == "fine"
        assert flaky.runs == 3

    @pytest.mark.same_under_prefect
    async def test_the_last_attempts_error_is_the_one(self, executor: str) -> None:
        last = RuntimeError("2")
        pipeline = Pipeline(
            "p",
            {"s": Give(RuntimeError("1"), last)},
            config=PipelineConfig(retries=1, retry_delay=[0.0]),
            executor=executor,
        )
        assert is_given((await failure(pipeline)).original_error, last, executor)

    async def test_delays_may_be_listed(self, executor: str) -> None:
        flaky = Give(RuntimeError("1"), RuntimeError("2"), "fine")
        config = PipelineConfig(retries=2, retry_delay=[0.0, 0.01])
        assert (
            await Pipeline("p", {"s": flaky}, config=config, executor=executor).execute({}, None)
        ).output == "fine"

    async def test_only_the_failing_step_is_tried_again(self, executor: str) -> None:
        first, flaky = Give(1), Give(RuntimeError(), 2)
        config = PipelineConfig(retries=1, **NOW)
        pipeline = Pipeline(
            "p", {"a": first, "b": flaky}, {"b": ["a"]}, config=config, executor=executor
        )
        assert (await pipeline.execute({}, None)).step_outputs == {"a": 1, "b": 2}
        assert (first.runs, flaky.runs) == (1, 2)

    async def test_a_step_may_be_told_not_to_retry(self, executor: str) -> None:
        broken = Give(RuntimeError("down"))
        pipeline = Pipeline(
            "p",
            {"s": broken},
            config=PipelineConfig(retries=3, **NOW),
            step_configs={"s": StepConfig(retries=0)},
            executor=executor,
        )
        await failure(pipeline)
        assert broken.runs == 1

    @pytest.mark.parametrize(
        "error",
        [
            CostBudgetExceededError(1, 2, "s"),
            DispatchSkippedError("circuit open"),
            UserError("no such tool"),
            ModelHTTPError(401, "gpt-5-mini", "bad key"),
            ModelHTTPError(400, "gpt-5-mini", "bad request"),
        ],
        ids=["budget", "skip", "user error", "401", "400"],
    )
    async def test_a_permanent_error_is_not_tried_again(
        self, executor: str, error: Exception
    ) -> None:
        broken = Give(error)
        caught = await failure(
            Pipeline("p", {"s": broken}, config=PipelineConfig(retries=3, **NOW), executor=executor)
        )
        assert broken.runs == 1
        assert is_given(caught.original_error, error, executor)

    @pytest.mark.parametrize("status", [408, 429, 500, 503])
    async def test_a_passing_provider_error_is_tried_again(
        self, executor: str, status: int
    ) -> None:
        flaky = Give(ModelHTTPError(status, "gpt-5-mini"), "fine")
        pipeline = Pipeline(
            "p", {"s": flaky}, config=PipelineConfig(retries=1, **NOW), executor=executor
        )
        assert (await pipeline.execute({}, None)).output == "fine"

    @pytest.mark.same_under_prefect
    async def test_a_refused_key_is_asked_once(self, executor: str) -> None:
        agent, model = counted_agent(ModelHTTPError(401, "gpt-5-mini", "bad key"))
        pipeline = Pipeline(
            "p",
            {"s": agent.as_step("?")},
            config=PipelineConfig(retries=3, **NOW),
            executor=executor,
        )
        assert isinstance((await failure(pipeline)).original_error, ModelHTTPError)
        assert len(model.prompts) == 1

    @pytest.mark.parametrize("hook", ["before", "after"])
    async def test_what_a_hook_raises_is_not_tried_again(self, executor: str, hook: str) -> None:
        refusal, fired = RuntimeError("enough"), SharedList()

        async def refuse(*args: Any) -> None:
            fired.append(args)
            raise refusal

        agent, model = counted_agent(**{f"on_{hook}_dispatch": refuse})
        pipeline = Pipeline(
            "p",
            {"s": agent.as_step("?")},
            config=PipelineConfig(retries=3, **NOW),
            executor=executor,
        )
        assert is_given((await failure(pipeline)).original_error, refusal, executor)
        assert len(fired) == 1
        assert len(model.prompts) == (0 if hook == "before" else 1)

    @pytest.mark.same_under_prefect
    async def test_hooks_fire_for_each_attempt_that_dispatches(self, executor: str) -> None:
        fired = SharedList()

        async def before() -> None:
            fired.append("before")

        async def after_dispatch(error: BaseException | None) -> None:
            fired.append(f"after {error}")

        agent, _ = counted_agent(
            RuntimeError("down"), "up", on_before_dispatch=before, on_after_dispatch=after_dispatch
        )
        pipeline = Pipeline(
            "p",
            {"s": agent.as_step("?")},
            config=PipelineConfig(retries=1, **NOW),
            executor=executor,
        )
        assert (await pipeline.execute({}, None)).output == "up"
        assert fired == ["before", "after down", "before", "after None"]


class TestTimeout:
    async def test_a_step_that_takes_too_long_fails_with_a_timeout_error(
        self, executor: str
    ) -> None:
        hanging = WaitsForever()
        pipeline = Pipeline(
            "p", {"s": hanging}, step_configs={"s": StepConfig(timeout=0.2)}, executor=executor
        )
        error = await failure(pipeline)
        assert error.step_id == "s"
        assert isinstance(error.original_error, TimeoutError)
        assert hanging.cleaned_up

    async def test_the_timeout_bounds_one_attempt(self, executor: str) -> None:
        attempts = SharedList()

        @step(timeout=0.3, retries=1, retry_delay=0.0)
        async def slow_once(ctx: StepContext[Any]) -> str:
            if attempts.append(1) == 0:
                await asyncio.Event().wait()
            return "fine"

        assert (
            await Pipeline("p", {"s": slow_once}, executor=executor).execute({}, None)
        ).output == "fine"
        assert len(attempts) == 2

    async def test_a_timeout_error_of_the_steps_own_is_kept(self, executor: str) -> None:
        own = TimeoutError("the database")
        pipeline = Pipeline(
            "p", {"s": Give(own)}, config=PipelineConfig(timeout=60.0), executor=executor
        )
        assert is_given((await failure(pipeline)).original_error, own, executor)

    @pytest.mark.same_under_prefect
    async def test_a_timeout_of_zero_is_none(self, executor: str) -> None:
        pipeline = Pipeline(
            "p", {"s": Give(1)}, config=PipelineConfig(timeout=0), executor=executor
        )
        assert (await pipeline.execute({}, None)).output == 1


class TestFirstFailure:
    async def test_the_error_names_the_step_and_is_the_very_one(
        self, any_executor: Executor | str
    ) -> None:
        original = ValueError("bad")
        pipeline = Pipeline(
            "p", {"a": Give(1), "b": Give(original)}, {"b": ["a"]}, executor=any_executor
        )
        error = await failure(pipeline)
        assert error.step_id == "b"
        assert is_given(error.original_error, original, any_executor)
        assert error.__cause__ is error.original_error

    @pytest.mark.same_under_prefect
    async def test_a_step_error_of_a_steps_own_goes_through(self, executor: str) -> None:
        own = StepExecutionError("inner", ValueError("bad"))
        error = await failure(Pipeline("p", {"outer": Give(own)}, executor=executor))
        assert is_given(error, own, executor)

    @pytest.mark.one_process(GOES_ON)
    async def test_siblings_are_cancelled_and_awaited(self, executor: str) -> None:
        sibling = WaitsForever()
        steps = {
            "broken": after([sibling.started], ValueError("bad")),
            "sibling": sibling,
            "end": Give(),
        }
        pipeline = Pipeline("p", steps, {"end": ["broken", "sibling"]}, executor=executor)
        error = await soon(failure(pipeline))
        assert error.step_id == "broken"
        assert sibling.cleaned_up

    @pytest.mark.same_under_prefect
    async def test_a_failure_before_a_sibling_has_begun_ends_the_run_too(
        self, executor: str
    ) -> None:
        steps = {"broken": Give(ValueError("bad")), "second": Give(2), "third": WaitsForever()}
        error = await soon(failure(Pipeline("p", steps, output_step="broken", executor=executor)))
        assert error.step_id == "broken"

    @pytest.mark.same_under_prefect
    async def test_all_steps_failing_at_once_is_one_failure(self, executor: str) -> None:
        steps = {s: Give(ValueError(s)) for s in "abc"}
        error = await soon(failure(Pipeline("p", steps, output_step="a", executor=executor)))
        assert str(error.original_error) == error.step_id

    @pytest.mark.same_under_prefect
    async def test_a_failure_while_others_wait_for_their_turn_ends_the_run_too(
        self, executor: str
    ) -> None:
        waiting = Give(2)
        steps = {"broken": Give(ValueError("bad")), "waiting": waiting}
        config = PipelineConfig(max_concurrency=1)
        pipeline = Pipeline("p", steps, output_step="broken", config=config, executor=executor)
        assert (await soon(failure(pipeline))).step_id == "broken"
        assert waiting.runs == 0

    @pytest.mark.same_under_prefect
    async def test_nothing_starts_after_the_failure(self, any_executor: Executor | str) -> None:
        behind, last = Give(), Give()
        steps = {"a": Give(ValueError()), "b": behind, "c": last}
        await failure(Pipeline("p", steps, {"b": ["a"], "c": ["b"]}, executor=any_executor))
        assert (behind.runs, last.runs) == (0, 0)

    async def test_what_was_finished_is_on_the_error(self, executor: str) -> None:
        steps = {"a": Give("A"), "b": Join("a"), "c": Give(ValueError("bad"))}
        error = await failure(Pipeline("p", steps, {"b": ["a"], "c": ["b"]}, executor=executor))
        partial = error.partial_result
        assert partial is not None
        assert partial.step_outputs == {"a": "A", "b": "b(A)"}
        assert partial.output is None
        assert partial.errors == {"c": error}
        assert partial.run_id

    @pytest.mark.one_process(GOES_ON)
    async def test_a_sibling_that_fails_while_it_is_cancelled_does_not_take_over(
        self, executor: str
    ) -> None:
        started = Signal()

        @step
        async def worse(ctx: StepContext[Any]) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("while cleaning up") from None

        steps = {"broken": after([started], ValueError("first")), "worse": worse}
        error = await soon(failure(Pipeline("p", steps, output_step="worse", executor=executor)))
        assert error.step_id == "broken"


class TestGoingOn:
    """`on_error="continue"`."""

    CONFIG = PipelineConfig(on_error="continue")

    async def test_dependents_are_skipped_and_the_rest_runs(self, executor: str) -> None:
        bad = ValueError("bad")
        behind, far_behind = Give(), Give()
        steps = {
            "broken": Give(bad),
            "behind": behind,
            "far behind": far_behind,
            "fine": Give("F"),
            "behind fine": Join("fine"),
        }
        dependencies = {
            "behind": ["broken", "fine"],
            "far behind": ["behind"],
            "behind fine": ["fine"],
        }
        pipeline = Pipeline(
            "p", steps, dependencies, "behind fine", config=self.CONFIG, executor=executor
        )
        result = await pipeline.execute({}, None)
        assert result.output == "behind fine(F)"
        assert result.step_outputs == {"fine": "F", "behind fine": "behind fine(F)"}
        assert set(result.errors) == {"broken"}
        assert isinstance(result.errors["broken"], StepExecutionError)
        assert result.errors["broken"].step_id == "broken"
        assert is_given(result.errors["broken"].original_error, bad, executor)
        assert set(result.skipped) == {"behind", "far behind"}
        assert (behind.runs, far_behind.runs) == (0, 0)

    @pytest.mark.same_under_prefect
    async def test_a_failed_output_step_has_no_output(self, executor: str) -> None:
        pipeline = Pipeline(
            "p", {"s": Give(ValueError("bad"))}, config=self.CONFIG, executor=executor
        )
        result = await pipeline.execute({}, None)
        assert (result.output, result.step_outputs, set(result.errors), result.skipped) == (
            None,
            {},
            {"s"},
            (),
        )

    @pytest.mark.same_under_prefect
    async def test_a_skipped_output_step_has_no_output(self, executor: str) -> None:
        steps = {"a": Give(ValueError("bad")), "b": Give(2)}
        result = await Pipeline(
            "p", steps, {"b": ["a"]}, config=self.CONFIG, executor=executor
        ).execute({}, None)
        assert (result.output, set(result.errors), result.skipped) == (None, {"a"}, ("b",))

    @pytest.mark.same_under_prefect
    async def test_several_failures_are_all_there(self, executor: str) -> None:
        steps = {"a": Give(ValueError("1")), "b": Give(KeyError("2")), "c": Give(3), "end": Give()}
        pipeline = Pipeline(
            "p", steps, {"end": ["a", "b", "c"]}, config=self.CONFIG, executor=executor
        )
        result = await pipeline.execute({}, None)
        assert {s: type(e.original_error) for s, e in result.errors.items()} == {
            "a": ValueError,
            "b": KeyError,
        }
        assert (result.step_outputs, result.skipped) == ({"c": 3}, ("end",))

    @pytest.mark.same_under_prefect
    async def test_siblings_are_not_disturbed(self, executor: str) -> None:
        failed = Signal()

        @step
        async def broken(ctx: StepContext[Any]) -> None:
            failed.set()
            raise ValueError("bad")

        steps = {"broken": broken, "sibling": after([failed], "S")}
        pipeline = Pipeline(
            "p", steps, output_step="sibling", config=self.CONFIG, executor=executor
        )
        assert (await pipeline.execute({}, None)).output == "S"

    @pytest.mark.same_under_prefect
    async def test_a_failing_step_has_its_retries_first(self, executor: str) -> None:
        broken = Give(ValueError("bad"))
        config = PipelineConfig(on_error="continue", retries=2, **NOW)
        await Pipeline("p", {"s": broken}, config=config, executor=executor).execute({}, None)
        assert broken.runs == 3


class TestCancellation:
    @pytest.mark.one_process(GOES_ON)
    async def test_cancelling_the_caller_cancels_the_steps(self, executor: str) -> None:
        running, waiting = WaitsForever(), Give()
        pipeline = Pipeline(
            "p",
            {"running": running, "waiting": waiting},
            {"waiting": ["running"]},
            executor=executor,
        )
        run = asyncio.create_task(pipeline.execute({}, None))
        await soon(running.started.wait())
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(run)
        assert running.cleaned_up
        assert waiting.runs == 0

    async def test_cancelling_the_caller_before_any_step_has_begun_runs_none(
        self, executor: str
    ) -> None:
        steps = {"a": Give(1), "b": Give(2)}
        run = asyncio.create_task(
            Pipeline("p", dict(steps), output_step="a", executor=executor).execute({}, None)
        )
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(run)

    @pytest.mark.one_process(GOES_ON)
    async def test_a_deadline_around_the_run_is_the_callers_timeout(self, executor: str) -> None:
        hanging = WaitsForever()
        pipeline = Pipeline(
            "p", {"s": hanging}, config=PipelineConfig(retries=3, **NOW), executor=executor
        )

        async def expire() -> None:
            async with asyncio.timeout(None) as deadline:
                started = asyncio.create_task(hanging.started.wait())
                started.add_done_callback(
                    lambda _: deadline.reschedule(asyncio.get_running_loop().time())
                )
                await pipeline.execute({}, None)

        with pytest.raises(TimeoutError):
            await soon(expire())
        assert hanging.cleaned_up

    @pytest.mark.one_process(GOES_ON)
    async def test_a_base_exception_of_a_step_goes_through(self, executor: str) -> None:
        sibling = WaitsForever()
        steps = {"s": after([sibling.started], NotAnException("stop")), "sibling": sibling}
        with pytest.raises(NotAnException, match="stop"):
            await soon(Pipeline("p", steps, output_step="s", executor=executor).execute({}, None))
        assert sibling.cleaned_up

    async def test_a_run_after_a_cancelled_one_is_not_disturbed(self, executor: str) -> None:
        running = WaitsForever()
        gate = Signal()

        @step
        async def maybe_hang(ctx: StepContext[Any]) -> str:
            if ctx.get_input("hang"):
                await running.execute(ctx)
            return "fine"

        pipeline = Pipeline(
            "p", {"a": maybe_hang, "b": announcing(gate, 1)}, {"b": ["a"]}, executor=executor
        )
        run = asyncio.create_task(pipeline.execute({"hang": True}, None))
        await soon(running.started.wait())
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(run)
        assert (await pipeline.execute({"hang": False}, None)).step_outputs == {"a": "fine", "b": 1}
        assert gate.is_set()
