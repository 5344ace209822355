"""Books that balance: what is sent is counted once, replays are no spend, budgets hold; the same on
every executor.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.exceptions import ModelHTTPError

from fastroai import (
    CostBudgetExceededError,
    FastroAgent,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.errors import SettingsError
from fastroai.ledger.entries import total_usd
from fastroai.usage import EntryState
from tests.conformance.third_party import AnyExecutor
from tests.support.chat import answering, chat_response, offline_agent
from tests.support.models import COST, INPUT_TOKENS, OUTPUT_TOKENS, counted_agent
from tests.support.shared import SharedList
from tests.support.steps import Give, Join, Signal, WaitsForever, soon

NOW = {"retry_delay": 0.0}


def assert_balanced(result: PipelineResult[Any], microcents: int) -> None:
    """The run's total is what its steps cost is what its entries cost, to the last digit."""
    assert result.usage is not None
    entries = total_usd(result.entries)
    assert (
        sum((u.cost_usd or Decimal(0) for u in result.usage.steps.values()), Decimal(0)) == entries
    )
    assert result.usage.total_cost_usd == entries == Decimal(microcents) / 1_000_000
    assert result.usage.total_cost_microcents == microcents
    for step_id, usage in result.usage.steps.items():
        own = [e for e in result.entries if e.attribution.step_id == step_id]
        assert total_usd(own) == usage.cost_usd
        assert sum(e.tokens.input_tokens for e in own if e.is_spend) == usage.input_tokens


def states(result: PipelineResult[Any]) -> list[EntryState]:
    return [e.state for e in result.entries]


async def failure(pipeline: Pipeline[Any, Any, Any]) -> StepExecutionError:
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None)
    return caught.value


class Asks:
    """A step that asks several questions, and fails in its first attempts behind one of them."""

    def __init__(
        self, agent: FastroAgent[Any], *questions: str, failures: int = 1, behind: int = 1
    ) -> None:
        self.agent, self.questions, self.failures, self.behind = agent, questions, failures, behind
        self._attempts = SharedList()

    @property
    def attempts(self) -> int:
        """How many there were."""
        return len(self._attempts)

    async def __call__(self, ctx: StepContext[Any]) -> list[str]:
        attempt = self._attempts.append(None) + 1
        answers = []
        for number, question in enumerate(self.questions, 1):
            answers.append((await ctx.run(self.agent, question)).output)
            if number == self.behind and attempt <= self.failures:
                raise RuntimeError(f"behind {question}")
        return answers


class TestSums:
    async def test_a_run_costs_what_its_requests_cost(self, any_executor: AnyExecutor) -> None:
        agent, model = counted_agent()
        steps = {"a": agent.as_step("a"), "b": agent.as_step("b"), "c": Join("a", "b")}
        result = await Pipeline("sum", steps, {"c": ["a", "b"]}, executor=any_executor).execute(
            {}, None
        )
        assert sorted(model.prompts) == ["a", "b"]
        assert_balanced(result, 2 * COST)
        assert result.usage is not None
        assert set(result.usage.steps) == {"a", "b"}
        assert result.usage.total_input_tokens == 2 * INPUT_TOKENS
        assert result.usage.total_output_tokens == 2 * OUTPUT_TOKENS
        assert result.usage.total_request_count == 2
        assert states(result) == [EntryState.CHARGED] * 2

    @pytest.mark.same_under_prefect
    async def test_each_entry_says_who_asked(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent()

        @step
        async def twice(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, "one")
            await ctx.run(agent, "two")

        result = await Pipeline("who", {"twice": twice}, executor=any_executor).execute({}, None)
        assert [(e.attribution.pipeline, e.attribution.step_id) for e in result.entries] == [
            ("who", "twice")
        ] * 2
        assert [(e.attribution.attempt, e.attribution.dispatch) for e in result.entries] == [
            (1, 1),
            (1, 2),
        ]
        assert {e.attribution.run_id for e in result.entries} == {result.run_id}
        assert {e.agent for e in result.entries} == {"counted"}

    @pytest.mark.same_under_prefect
    async def test_a_run_without_requests_has_no_usage(self, any_executor: AnyExecutor) -> None:
        result = await Pipeline("free", {"a": Give(1)}, executor=any_executor).execute({}, None)
        assert (result.usage, result.entries) == (None, ())

    @pytest.mark.same_under_prefect
    @pytest.mark.one_process("the agent is patched here")
    async def test_an_agent_that_no_meter_sees_is_booked_as_it_reports(
        self, any_executor: AnyExecutor
    ) -> None:
        agent = offline_agent()
        with answering(agent, chat_response(cost=100)):
            pipeline = Pipeline("reported", {"a": agent.as_step("a")}, executor=any_executor)
            result = await pipeline.execute({}, None)
        assert_balanced(result, 100)
        assert result.usage is not None
        assert result.usage.steps["a"].model == "gpt-4o"

    async def test_parallel_steps_of_one_agent_keep_their_books_apart(
        self, any_executor: AnyExecutor
    ) -> None:
        agent, _ = counted_agent()

        @step
        async def ask(ctx: StepContext[Any]) -> int:
            for number in range(len(ctx.step_id)):
                await ctx.run(agent, f"{ctx.step_id} {number}")
            return ctx.usage.cost_microcents

        steps = {"a": ask, "bb": ask, "ccc": ask}
        result = await Pipeline("apart", steps, output_step="a", executor=any_executor).execute(
            {}, None
        )
        assert result.step_outputs == {"a": COST, "bb": 2 * COST, "ccc": 3 * COST}
        assert_balanced(result, 6 * COST)

    async def test_identical_questions_are_each_sent(self, any_executor: AnyExecutor) -> None:
        agent, model = counted_agent("first", "second", "third")

        @step
        async def thrice(ctx: StepContext[Any]) -> list[str]:
            return [(await ctx.run(agent, "same")).output for _ in range(3)]

        result = await Pipeline("same", {"s": thrice}, executor=any_executor).execute({}, None)
        assert list(result.output) == ["first", "second", "third"]
        assert len(model.prompts) == 3
        assert_balanced(result, 3 * COST)

    async def test_identical_questions_of_different_steps_are_each_sent(
        self, any_executor: AnyExecutor
    ) -> None:
        agent, model = counted_agent()
        steps = {"a": agent.as_step("same"), "b": agent.as_step("same")}
        result = await Pipeline("same", steps, output_step="a", executor=any_executor).execute(
            {}, None
        )
        assert len(model.prompts) == 2
        assert_balanced(result, 2 * COST)

    @pytest.mark.same_under_prefect
    async def test_a_second_run_pays_again(self, any_executor: AnyExecutor) -> None:
        agent, model = counted_agent()
        pipeline = Pipeline("again", {"a": agent.as_step("a")}, executor=any_executor)
        for run in (1, 2):
            assert_balanced(await pipeline.execute({}, None), COST)
            assert len(model.prompts) == run


class TestReplay:
    async def test_a_call_that_succeeded_is_not_sent_again(self, executor: str) -> None:
        agent, model = counted_agent("first", "second")
        asks = Asks(agent, "one", "two")
        pipeline = Pipeline(
            "replay", {"s": step(asks)}, config=PipelineConfig(retries=1, **NOW), executor=executor
        )
        result = await pipeline.execute({}, None)
        assert list(result.output) == ["first", "second"]
        assert asks.attempts == 2
        assert model.prompts == ["one", "two"]
        assert_balanced(result, 2 * COST)

    async def test_a_replay_is_in_the_books_but_no_spend(self, executor: str) -> None:
        agent, _ = counted_agent()
        pipeline = Pipeline(
            "replay",
            {"s": step(Asks(agent, "one"))},
            config=PipelineConfig(retries=1, **NOW),
            executor=executor,
        )
        result = await pipeline.execute({}, None)
        assert states(result) == [EntryState.CHARGED, EntryState.REPLAYED]
        paid, replayed = result.entries
        assert replayed.replay_of == paid.id
        assert (paid.attribution.attempt, replayed.attribution.attempt) == (1, 2)
        assert result.usage is not None
        usage = result.usage.steps["s"]
        assert (usage.request_count, usage.replayed_count) == (1, 1)
        assert usage.replayed_cost_usd == Decimal(COST) / 1_000_000
        assert usage.input_tokens == INPUT_TOKENS

    async def test_identical_questions_replay_in_their_order(self, executor: str) -> None:
        agent, model = counted_agent("first", "second", "third")
        asks = Asks(agent, "same", "same", "same", behind=2)
        pipeline = Pipeline(
            "replay", {"s": step(asks)}, config=PipelineConfig(retries=1, **NOW), executor=executor
        )
        assert list((await pipeline.execute({}, None)).output) == ["first", "second", "third"]
        assert len(model.prompts) == 3

    async def test_a_call_that_failed_is_sent_again(self, executor: str) -> None:
        agent, model = counted_agent("first", RuntimeError("down"), "second")
        asks = Asks(agent, "one", "two", failures=0)
        pipeline = Pipeline(
            "resend", {"s": step(asks)}, config=PipelineConfig(retries=1, **NOW), executor=executor
        )
        result = await pipeline.execute({}, None)
        assert list(result.output) == ["first", "second"]
        assert model.prompts == ["one", "two", "two"]

    @pytest.mark.same_under_prefect
    async def test_a_replay_fits_a_spent_budget(self, executor: str) -> None:
        """The answer is there already: it costs nothing, so no budget forbids it."""
        agent, model = counted_agent()
        asks = Asks(agent, "one", failures=1)
        config = StepConfig(retries=1, cost_budget=COST + 1, **NOW)
        pipeline = Pipeline(
            "replay", {"s": step(asks)}, step_configs={"s": config}, executor=executor
        )
        assert_balanced(await pipeline.execute({}, None), COST)
        assert len(model.prompts) == 1

    async def test_replays_do_not_cross_runs(self, executor: str) -> None:
        agent, model = counted_agent()

        @step(retries=1, **NOW)
        async def asks(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, "one")
            if ctx.attempt == 1:
                raise RuntimeError("behind one")

        pipeline = Pipeline("replay", {"s": asks}, executor=executor)
        await pipeline.execute({}, None)
        await pipeline.execute({}, None)
        assert model.prompts == ["one", "one"]

    async def test_replays_do_not_cross_steps(self, executor: str) -> None:
        agent, model = counted_agent()
        steps = {"a": step(Asks(agent, "one")), "b": step(Asks(agent, "one"))}
        config = PipelineConfig(retries=1, **NOW)
        result = await Pipeline(
            "replay", steps, {"b": ["a"]}, config=config, executor=executor
        ).execute({}, None)
        assert model.prompts == ["one", "one"]
        assert_balanced(result, 2 * COST)


class TestSpendOfFailures:
    @pytest.mark.same_under_prefect
    async def test_a_failed_step_keeps_its_spend(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent()
        steps = {"a": agent.as_step("a"), "b": step(Asks(agent, "b", failures=9))}
        error = await failure(Pipeline("spent", steps, {"b": ["a"]}, executor=any_executor))
        partial = error.partial_result
        assert partial is not None
        assert_balanced(partial, 2 * COST)
        assert partial.usage is not None
        assert set(partial.usage.steps) == {"a", "b"}

    async def test_every_failed_attempts_new_spend_counts(self, executor: str) -> None:
        agent, model = counted_agent()
        attempts = SharedList()

        @step(retries=2, retry_delay=0.0)
        async def ask(ctx: StepContext[Any]) -> None:
            attempts.append(1)
            await ctx.run(agent, f"question of attempt {len(attempts)}")
            raise RuntimeError("bad")

        error = await failure(Pipeline("spent", {"s": ask}, executor=executor))
        assert len(model.prompts) == 3
        assert error.partial_result is not None
        assert_balanced(error.partial_result, 3 * COST)

    @pytest.mark.same_under_prefect
    async def test_a_failed_step_keeps_its_spend_when_the_run_goes_on(self, executor: str) -> None:
        agent, _ = counted_agent()
        steps = {"a": step(Asks(agent, "a", failures=9)), "b": agent.as_step("b")}
        config = PipelineConfig(on_error="continue")
        result = await Pipeline(
            "spent", steps, output_step="b", config=config, executor=executor
        ).execute({}, None)
        assert set(result.errors) == {"a"}
        assert_balanced(result, 2 * COST)

    async def test_a_cancelled_siblings_spend_is_kept(self, executor: str) -> None:
        agent, _ = counted_agent()
        hanging = WaitsForever()

        @step
        async def ask_and_hang(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, "one")
            await hanging.execute(ctx)

        @step
        async def broken(ctx: StepContext[Any]) -> None:
            await soon(hanging.started.wait())
            raise ValueError("bad")

        steps = {"sibling": ask_and_hang, "broken": broken}
        error = await failure(Pipeline("spent", steps, output_step="broken", executor=executor))
        assert error.partial_result is not None
        assert_balanced(error.partial_result, COST)

    @pytest.mark.same_under_prefect
    async def test_a_request_cut_off_by_a_timeout_is_unsettled(self, executor: str) -> None:
        asked = Signal()

        async def never(*args: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

        agent, _ = counted_agent(never)
        pipeline = Pipeline(
            "cut",
            {"s": agent.as_step("one")},
            config=PipelineConfig(timeout=0.5),
            executor=executor,
        )
        error = await failure(pipeline)
        assert asked.is_set()
        assert isinstance(error.original_error, TimeoutError)
        assert error.partial_result is not None
        assert states(error.partial_result) == [EntryState.UNSETTLED]
        assert error.partial_result.entries[0].error
        assert error.partial_result.usage is not None
        assert error.partial_result.usage.total_unsettled_count == 1

    @pytest.mark.same_under_prefect
    async def test_a_refused_request_is_no_spend(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent(ModelHTTPError(401, "gpt-5-mini", "bad key"))
        error = await failure(
            Pipeline("refused", {"s": agent.as_step("one")}, executor=any_executor)
        )
        assert error.partial_result is not None
        assert states(error.partial_result) == [EntryState.REFUSED]
        assert total_usd(error.partial_result.entries) == 0


class TestBudgets:
    @pytest.mark.same_under_prefect
    async def test_a_steps_budget_stops_its_next_dispatch(self, any_executor: AnyExecutor) -> None:
        agent, model = counted_agent()
        config = StepConfig(cost_budget=COST + 1, retries=2, **NOW)
        steps = {"s": step(Asks(agent, "one", "two", "three", failures=0))}
        error = await failure(
            Pipeline("budget", steps, step_configs={"s": config}, executor=any_executor)
        )
        spent = error.original_error
        assert isinstance(spent, CostBudgetExceededError)
        assert (spent.budget_microcents, spent.actual_microcents, spent.step_id) == (
            COST + 1,
            2 * COST,
            "s",
        )
        assert model.prompts == ["one", "two"]

    @pytest.mark.same_under_prefect
    async def test_a_steps_budget_is_its_own(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent()
        steps = {"a": agent.as_step("a"), "b": agent.as_step("b"), "c": agent.as_step("c")}
        configs = {s: StepConfig(cost_budget=COST) for s in steps}
        pipeline = Pipeline(
            "own", steps, {"b": ["a"], "c": ["b"]}, step_configs=configs, executor=any_executor
        )
        assert_balanced(await pipeline.execute({}, None), 3 * COST)

    async def test_a_steps_budget_spans_its_attempts(self, executor: str) -> None:
        agent, model = counted_agent()
        attempts = SharedList()

        @step(retries=9, retry_delay=0.0, cost_budget=2 * COST)
        async def ask(ctx: StepContext[Any]) -> None:
            attempts.append(1)
            await ctx.run(agent, f"question of attempt {len(attempts)}")
            raise RuntimeError("bad")

        error = await failure(Pipeline("budget", {"s": ask}, executor=executor))
        assert isinstance(error.original_error, CostBudgetExceededError)
        assert len(model.prompts) == 2
        assert len(attempts) == 3

    async def test_the_pipelines_budget_is_the_total_of_the_run(
        self, any_executor: AnyExecutor
    ) -> None:
        agent, model = counted_agent()
        steps = {s: agent.as_step(s) for s in "abc"}
        config = PipelineConfig(cost_budget=COST + 1)
        error = await failure(
            Pipeline("total", steps, {"b": ["a"], "c": ["b"]}, config=config, executor=any_executor)
        )
        assert error.step_id == "c"
        spent = error.original_error
        assert isinstance(spent, CostBudgetExceededError)
        assert (spent.budget_microcents, spent.actual_microcents, spent.step_id) == (
            COST + 1,
            2 * COST,
            "c",
        )
        assert model.prompts == ["a", "b"]
        assert error.partial_result is not None
        assert_balanced(error.partial_result, 2 * COST)

    @pytest.mark.same_under_prefect
    async def test_a_new_run_has_its_budget_anew(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent()
        pipeline = Pipeline(
            "anew",
            {"a": agent.as_step("a")},
            config=PipelineConfig(cost_budget=COST),
            executor=any_executor,
        )
        for _ in range(2):
            assert_balanced(await pipeline.execute({}, None), COST)

    @pytest.mark.same_under_prefect
    async def test_a_steps_own_budget_does_not_lift_the_runs(
        self, any_executor: AnyExecutor
    ) -> None:
        agent, model = counted_agent()
        steps = {s: agent.as_step(s) for s in "ab"}
        pipeline = Pipeline(
            "total",
            steps,
            {"b": ["a"]},
            config=PipelineConfig(cost_budget=COST),
            step_configs={"b": StepConfig(cost_budget=100 * COST)},
            executor=any_executor,
        )
        error = await failure(pipeline)
        assert isinstance(error.original_error, CostBudgetExceededError)
        assert model.prompts == ["a"]


async def test_prices_that_can_not_be_read_stop_a_run_before_anything_is_sent(
    any_executor: AnyExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.json").write_text('{"models": {"acme": {"input_per_mtok": "cheap"}}}')
    monkeypatch.setenv("FASTROAI_PRICES", str(tmp_path / "prices.json"))
    agent, model = counted_agent()
    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        "p", {"ask": agent.as_step("Hi")}, executor=any_executor
    )
    with pytest.raises((SettingsError, StepExecutionError), match="'acme': input_per_mtok"):
        await pipeline.execute({}, None)
    assert model.prompts == []
