"""Budgets hold for every request of a run, whatever sends it; the same on every executor."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.fallback import FallbackModel

from fastroai import (
    CostBudgetExceededError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.ledger.entries import total_usd
from fastroai.testing import ScriptedModel, ToolCall
from fastroai.tools import FunctionToolsetBase
from fastroai.usage import EntryState
from tests.support.models import COST, counted_agent, shared_agent, shared_model

USD = Decimal(COST) / 1_000_000
BOUND = Decimal("0.015")
"""More than a request of these tests can cost at most, and less than twice that."""


async def refused(pipeline: Pipeline[Any, Any, Any], **options: Any) -> CostBudgetExceededError:
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None, **options)
    error = caught.value.original_error
    assert isinstance(error, CostBudgetExceededError)
    return error


def asking(agent: Any, times: int, **config: Any) -> Any:
    @step(**config)
    async def ask(ctx: StepContext[Any]) -> list[str]:
        return [(await ctx.run(agent, f"question {number}")).output for number in range(times)]

    return ask


class TestEveryWayOfSending:
    """A budget of two requests and a bit: the third is sent, the fourth is not."""

    BUDGET = 2 * COST + 1

    async def test_a_tool_loop_stops_in_its_middle(self, executor: str) -> None:
        async def look() -> str:
            """Looks."""
            return "more"

        agent, model = counted_agent(ToolCall("look"), toolsets=[FunctionToolsetBase(tools=[look])])
        ask = asking(agent, 1, cost_budget=self.BUDGET)
        error = await refused(Pipeline("loop", {"s": ask}, executor=executor))
        assert len(model.prompts) == 3
        assert (error.step_id, error.scope, error.name) == ("s", "step", "s")
        assert (error.spent, error.held, error.unknown) == (3 * USD, 0, 0)

    @pytest.mark.same_under_prefect
    async def test_an_agent_within_a_tool_counts(self, executor: str) -> None:
        inner, model = counted_agent()

        async def consult() -> str:
            """Asks another agent."""
            for number in range(9):
                await inner.run(f"inner {number}")
            return "done"

        outer, outer_model = counted_agent(
            ToolCall("consult"), toolsets=[FunctionToolsetBase(tools=[consult])]
        )
        ask = asking(outer, 1, cost_budget=self.BUDGET)
        await refused(Pipeline("nested", {"s": ask}, executor=executor))
        assert len(model.prompts) + len(outer_model.prompts) == 3

    @pytest.mark.same_under_prefect
    async def test_a_raw_agent_counts(self, executor: str) -> None:
        model = shared_model("x", repeat=True)

        @step(budget=Budget(usd="0.000000001"))
        async def ask(ctx: StepContext[Any]) -> None:
            agent = Agent(model)
            for number in range(9):
                await agent.run(f"question {number}")

        await refused(Pipeline("raw", {"s": ask}, executor=executor))
        assert len(model.prompts) == 1

    @pytest.mark.same_under_prefect
    async def test_an_output_that_is_asked_for_again_counts(self, executor: str) -> None:
        agent, model = counted_agent({"nonsense": 1}, output_type=dict[str, list[str]])
        ask = asking(agent, 9, cost_budget=1)
        with pytest.raises(StepExecutionError):
            await Pipeline("output", {"s": ask}, executor=executor).execute({}, None)
        assert len(model.prompts) == 1

    @pytest.mark.same_under_prefect
    async def test_a_member_of_a_fallback_counts_and_none_takes_a_refused_request(
        self, executor: str
    ) -> None:
        models = [shared_model("x", repeat=True) for _ in range(2)]

        @step(budget=Budget(usd="0.000000001"), retries=3, retry_delay=0.0)
        async def ask(ctx: StepContext[Any]) -> None:
            agent = Agent(FallbackModel(*models, fallback_on=(Exception,)))
            for number in range(9):
                await agent.run(f"question {number}")

        with pytest.raises(StepExecutionError):
            await Pipeline("fallback", {"s": ask}, executor=executor).execute({}, None)
        assert [len(model.prompts) for model in models] == [1, 0]

    @pytest.mark.same_under_prefect
    async def test_a_stream_counts(self, executor: str) -> None:
        agent, model = counted_agent()

        @step(cost_budget=self.BUDGET)
        async def ask(ctx: StepContext[Any]) -> None:
            for number in range(9):
                async with aclosing(agent.run_stream(f"question {number}")) as chunks:
                    [chunk async for chunk in chunks]

        await refused(Pipeline("streams", {"s": ask}, executor=executor))
        assert len(model.prompts) == 3

    @pytest.mark.same_under_prefect
    async def test_what_was_not_answered_in_time_counts_for_the_most_it_can_have_cost(
        self, executor: str
    ) -> None:
        async def never(*_: Any) -> Any:
            await asyncio.Event().wait()

        agent, model = counted_agent(never)

        @step(budget=Budget(usd="0.001"))
        async def ask(ctx: StepContext[Any]) -> None:
            for number in range(9):
                try:
                    await ctx.run(agent, f"question {number}", timeout=0.5)
                except TimeoutError:
                    continue

        error = await refused(Pipeline("slow", {"s": ask}, executor=executor))
        assert len(model.prompts) == 1
        assert error.spent == 0
        assert error.unknown is not None
        assert error.unknown > Decimal("0.001")

    async def test_a_pipeline_within_a_step_counts_for_the_run_around_it(
        self, executor: str
    ) -> None:
        agent, model = counted_agent()
        # Within the budget of another run, steps aren't sent from one process to the next.
        within = executor if isinstance(executor, str) else "memory"
        inner = Pipeline("inner", {"s": asking(agent, 9)}, executor=within)

        @step
        async def outer(ctx: StepContext[Any]) -> None:
            await inner.execute({}, None)

        pipeline = Pipeline(
            "outer", {"s": outer}, config=PipelineConfig(cost_budget=self.BUDGET), executor=executor
        )
        with pytest.raises(StepExecutionError):
            await pipeline.execute({}, None)
        assert len(model.prompts) == 3

    @pytest.mark.same_under_prefect
    async def test_simulated_requests_cost_nothing(self, executor: str) -> None:
        from fastroai.testing import OfflineModel

        agent = shared_agent(model=OfflineModel())
        ask = asking(agent, 3, cost_budget=1)
        result = await Pipeline("simulated", {"s": ask}, executor=executor).execute({}, None)
        assert len(result.output) == 3


class TestSeveralExecutions:
    async def test_executions_under_one_key_share_the_runs_budget(
        self, executor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
        agent, model = counted_agent()

        @step
        async def ask(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, f"question {uuid4()}")
            raise RuntimeError("bad")

        pipeline = Pipeline(
            "keyed",
            {"s": ask},
            config=PipelineConfig(cost_budget=COST + 1),
            executor=executor,
        )
        key = str(uuid4())
        for _ in range(2):
            with pytest.raises(StepExecutionError, match="bad"):
                await pipeline.execute({}, None, run_key=key)
        error = await refused(pipeline, run_key=key)
        assert len(model.prompts) == 2
        assert (error.scope, error.name, error.spent) == ("run", "keyed", 2 * USD)


@pytest.mark.one_process("a budget of strength 'reserved' is kept by the process of its run")
class TestReserved:
    async def test_parallel_requests_never_pass_the_budget_and_use_it_up(
        self, executor: str
    ) -> None:
        """All at once, with bounds far above what they cost: most wait, those that fit are sent."""
        agent, model = counted_agent(slowly)
        budget = Budget(usd=BOUND + 20 * USD, strength="reserved")

        @step(budget=budget)
        async def ask(ctx: StepContext[Any]) -> int:
            async def one(number: int) -> int:
                try:
                    await ctx.run(agent, f"question {number}")
                except CostBudgetExceededError:
                    return 0
                return 1

            return sum(await asyncio.gather(*map(one, range(200))))

        result = await Pipeline("fan", {"s": ask}, executor=executor).execute({}, None)
        spent = total_usd(result.entries)
        assert spent <= budget.usd
        assert len(model.prompts) == result.output == len(result.entries)
        # No request was refused that would have fitted: what is left is below the bound of one.
        assert budget.usd - spent < BOUND
        assert {e.state for e in result.entries} == {EntryState.CHARGED}

    async def test_the_budget_of_a_run_holds_over_its_parallel_steps(self, executor: str) -> None:
        agent, model = counted_agent(slowly)
        steps = {f"s{number}": asking(agent, 3) for number in range(6)}
        config = PipelineConfig(
            budget=Budget(usd=BOUND + 5 * USD, strength="reserved"), on_error="continue"
        )
        pipeline = Pipeline("wide", steps, output_step="s0", config=config, executor=executor)
        result = await pipeline.execute({}, None)
        assert total_usd(result.entries) <= BOUND + 5 * USD
        assert len(model.prompts) >= 5
        for error in result.errors.values():
            assert isinstance(error.original_error, CostBudgetExceededError)

    @pytest.mark.same_under_prefect
    async def test_what_has_no_upper_bound_is_refused_with_what_to_set(self, executor: str) -> None:
        model = ScriptedModel("x", repeat=True)
        agent = Agent(model)  # no max_tokens

        @step(budget=Budget(usd="100", strength="reserved"))
        async def ask(ctx: StepContext[Any]) -> None:
            await agent.run("question")

        error = await refused(Pipeline("unbounded", {"s": ask}, executor=executor))
        assert "max_tokens" in str(error)
        assert "max_request_usd" in str(error)
        assert model.prompts == []

    @pytest.mark.same_under_prefect
    async def test_a_bound_that_is_given_stands_for_one_that_can_not_be_told(
        self, executor: str
    ) -> None:
        model = ScriptedModel("x", repeat=True)
        agent = Agent(model)

        @step(budget=Budget(usd="1", strength="reserved", max_request_usd="0.5"))
        async def ask(ctx: StepContext[Any]) -> None:
            await agent.run("question")

        await Pipeline("bounded", {"s": ask}, executor=executor).execute({}, None)
        assert len(model.prompts) == 1


async def slowly(*_: Any) -> str:
    await asyncio.sleep(0.001)
    return "answer"


class TestAtTheLimit:
    @pytest.mark.same_under_prefect
    async def test_an_optional_step_is_left_out_and_the_run_goes_on(self, executor: str) -> None:
        agent, model = counted_agent()
        budget = Budget(usd=USD, at_limit="skip")
        polish = asking(agent, 1, optional=True)

        @step
        async def last(ctx: StepContext[Any]) -> Any:
            return ctx.get_dependency("draft"), ctx.get_dependency_or_none("polish")

        pipeline = Pipeline(
            "skip",
            {"draft": asking(agent, 1), "polish": polish, "last": last},
            {"polish": ["draft"], "last": ["draft", "polish"]},
            config=PipelineConfig(budget=budget),
            executor=executor,
        )
        result = await pipeline.execute({}, None)
        assert result.output == (["answer"], None)
        assert result.skipped == ("polish",)
        assert result.errors == {}
        assert len(model.prompts) == 1

    @pytest.mark.same_under_prefect
    async def test_a_step_that_is_not_optional_fails_at_the_limit_all_the_same(
        self, executor: str
    ) -> None:
        agent, _ = counted_agent()
        config = PipelineConfig(budget=Budget(usd=USD, at_limit="skip"))
        steps = {"a": asking(agent, 1), "b": asking(agent, 1)}
        pipeline = Pipeline("skip", steps, {"b": ["a"]}, config=config, executor=executor)
        assert (await refused(pipeline)).at_limit == "skip"

    @pytest.mark.parametrize("where", ["agent", "pipeline"])
    @pytest.mark.same_under_prefect
    async def test_a_cheaper_model_takes_further_requests_and_the_books_say_so(
        self, executor: str, where: str
    ) -> None:
        cheap = shared_model("cheap", model_name="gpt-5-nano", repeat=True)
        agent, dear = counted_agent(
            "dear", **({"cheaper_model": cheap} if where == "agent" else {})
        )
        config = PipelineConfig(
            budget=Budget(usd=2 * USD, at_limit="downgrade"),
            **({"cheaper_model": cheap} if where == "pipeline" else {}),
        )
        pipeline = Pipeline("down", {"s": asking(agent, 4)}, config=config, executor=executor)
        result = await pipeline.execute({}, None)
        assert result.output == ["dear", "dear", "cheap", "cheap"]
        assert (len(dear.prompts), len(cheap.prompts)) == (2, 2)
        assert [entry.downgraded_from for entry in result.entries] == [
            None,
            None,
            "scripted:gpt-5-mini",
            "scripted:gpt-5-mini",
        ]
        assert result.entries[-1].model_asked == "scripted:gpt-5-nano"

    async def test_a_second_budget_limits_what_the_cheaper_model_spends(self) -> None:
        cheap = ScriptedModel("cheap", model_name="gpt-5-nano", repeat=True)
        agent, dear = counted_agent("dear", cheaper_model=cheap)
        budgets = [Budget(usd=USD, at_limit="downgrade"), Budget(usd=3 * USD, name="all")]
        config = StepConfig(budget=budgets)
        pipeline = Pipeline(
            "down", {"s": asking(agent, 999)}, step_configs={"s": config}, executor="memory"
        )
        error = await refused(pipeline)
        assert error.name == "all"
        assert len(dear.prompts) == 1
        assert len(cheap.prompts) > 1

    @pytest.mark.same_under_prefect
    async def test_without_a_cheaper_model_the_request_is_refused(self, executor: str) -> None:
        agent, _ = counted_agent()
        ask = asking(agent, 2, budget=Budget(usd=USD, at_limit="downgrade"))
        error = await refused(Pipeline("down", {"s": ask}, executor=executor))
        assert error.at_limit == "downgrade"
