"""`Pipeline.estimate`: what recorded runs let expect, and an upper bound; nothing is sent."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import BinaryContent
from pydantic_ai.models.fallback import FallbackModel

from fastroai import (
    ConversationState,
    ConversationStatus,
    CostEstimate,
    FastroAgent,
    InputValidationError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepEstimate,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.ledger.entries import total_usd
from fastroai.pipelines.estimates import LeftOut
from fastroai.testing import OfflineModel, ScriptedModel, fixed_prices
from fastroai.tools import FunctionToolsetBase
from tests.support.models import COST, counted_agent

USD = Decimal(COST) / 1_000_000


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    return url


def times(agent: FastroAgent[Any], **config: Any) -> Any:
    """A step that asks as often as the run's input says."""

    @step(**config)
    async def ask(ctx: StepContext[Any]) -> int:
        for number in range(ctx.get_input("times")):
            await ctx.run(agent, f"question {number}")
        return ctx.get_input("times")

    return ask


def step_of(estimate: CostEstimate, step_id: str) -> StepEstimate:
    return {one.step_id: one for one in estimate.steps}[step_id]


async def recorded(pipeline: Pipeline[Any, Any, Any], *counts: int) -> None:
    for count in counts:
        await pipeline.execute({"times": count})


def write_documents(folder: Path, lengths: list[int]) -> None:
    folder.mkdir()
    for number, length in enumerate(lengths):
        text = " ".join(f"The mill at Lund grinds {n} tons." for n in range(length // 7))
        (folder / f"{number}.md").write_text(f"{text} It is unclear who pays.")


@pytest.mark.long
async def test_of_30_recorded_runs_of_the_digest_the_percentile_holds_for_8_of_10_more(
    tmp_path: Path,
) -> None:
    pipeline = import_module("flows.document_digest").pipeline
    any_ = random.Random(7)
    costs = []
    for number in range(40):
        folder = tmp_path / f"documents-{number}"
        write_documents(folder, [any_.randint(20, 4000) for _ in range(any_.randint(1, 12))])
        if number == 30:
            found = await pipeline.estimate({"documents": str(folder)})
        result = await pipeline.execute({"documents": str(folder)})
        costs.append(total_usd(result.entries))
    assert len(set(costs)) == 40
    expected = found.expected
    assert expected is not None
    assert (expected.runs, expected.forecasts) == (30, 20)
    assert sum(cost <= expected.p90_usd for cost in costs[30:]) >= 8
    # It is no mere maximum, and half of what was recorded cost no more than the median.
    assert expected.p90_usd < max(costs[:30])
    assert sum(cost <= expected.median_usd for cost in costs[:30]) == 15
    assert found.simulated
    asking = [one.step_id for one in found.steps if one.expected is not None]
    assert asking == ["topics", "open_points", "summaries", "digest"]


async def test_median_and_percentile_are_of_the_runs_and_of_each_step() -> None:
    agent, _ = counted_agent()
    pipeline = Pipeline("p", {"a": times(agent), "b": times(agent)}, {"b": ["a"]})
    await recorded(pipeline, 1, 2, 6)
    found = await pipeline.estimate({"times": 9})
    assert found.expected is not None
    assert (found.expected.median_usd, found.expected.p90_usd) == (4 * USD, 12 * USD)
    expected = step_of(found, "b").expected
    assert expected is not None
    assert (expected.median_usd, expected.p90_usd, expected.runs) == (2 * USD, 6 * USD, 3)
    # 2 after 1: off by 1; 6 after 1 and 2: off by 3.
    assert (expected.forecasts, expected.within_p90, expected.off_by) == (2, 0, 2.0)


async def test_without_a_ledger_nothing_is_expected_and_none_is_made(tmp_path: Path) -> None:
    agent, _ = counted_agent()
    pipeline = Pipeline("p", {"a": times(agent)})
    found = await pipeline.estimate({"times": 1})
    assert (found.runs, found.expected, found.left_out) == (0, None, LeftOut())
    assert not (tmp_path / "ledger.db").exists()


async def test_an_input_that_does_not_fit_is_refused() -> None:
    class Count(BaseModel):
        times: int

    agent, _ = counted_agent()
    pipeline: Any = Pipeline("p", {"a": times(agent)}, input_type=Count)
    with pytest.raises(InputValidationError):
        await pipeline.estimate({"times": "many"})


class TestWhichRunsCount:
    async def test_one_that_failed_halfway_does_not(self) -> None:
        agent, _ = counted_agent()

        @step
        async def fails(ctx: StepContext[Any]) -> None:
            if ctx.get_input("times") == 7:
                raise RuntimeError("bad")

        steps = {"a": times(agent), "b": fails}
        pipeline = Pipeline("p", steps, {"b": ["a"]})
        await recorded(pipeline, 1)
        with pytest.raises(StepExecutionError):
            await recorded(pipeline, 7)
        config = PipelineConfig(on_error="continue")
        goes_on = Pipeline("p", steps, {"b": ["a"]}, output_step="b", config=config)
        await recorded(goes_on, 7)
        found = await pipeline.estimate({"times": 1})
        assert found.expected is not None
        assert (found.expected.runs, found.expected.p90_usd) == (1, USD)

    async def test_one_that_left_out_a_step_or_stopped_early_does_not(self) -> None:
        agent, _ = counted_agent()

        @step
        async def asks_back(ctx: StepContext[Any]) -> ConversationState[str]:
            return ConversationState(status=ConversationStatus.INCOMPLETE)

        skipped = Budget(usd="0", at_limit="skip")
        last = times(agent, optional=True, budget=skipped)
        for name, between in (("p", times(agent)), ("q", asks_back)):
            steps = {"a": times(agent), "b": between, "c": last}
            pipeline = Pipeline(name, steps, {"b": ["a"], "c": ["b"]})
            await recorded(pipeline, 1)
            found = await pipeline.estimate({"times": 1})
            assert (found.runs, found.expected) == (0, None)

    async def test_a_failed_attempt_is_part_of_what_a_run_costs(self) -> None:
        agent, _ = counted_agent()
        failures = ["once"]

        @step(retries=1, retry_delay=0.0, durable="step")
        async def ask(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, "question")
            if failures:
                raise ConnectionError(failures.pop())

        pipeline = Pipeline("p", {"a": ask})
        await pipeline.execute({})
        found = await pipeline.estimate({})
        assert found.expected is not None
        assert found.expected.median_usd == 2 * USD

    async def test_one_with_a_request_at_an_unknown_price_is_left_out_and_not_0(self) -> None:
        model = ScriptedModel("x", model_name="nobody-lists-this", repeat=True)
        pipeline = Pipeline("p", {"a": times(FastroAgent(model=model))})
        await recorded(pipeline, 1, 2)
        found = await pipeline.estimate({"times": 1})
        assert (found.runs, found.expected) == (2, None)
        assert found.left_out == step_of(found, "a").left_out == LeftOut(unknown=2)

    async def test_one_that_asked_another_model_is_left_out(self) -> None:
        before, _ = counted_agent()
        model = ScriptedModel("x", model_name="gpt-5-nano", repeat=True)
        after: FastroAgent[Any] = FastroAgent(
            model=model, cost_calculator=fixed_prices("gpt-5-nano")
        )
        await recorded(Pipeline("p", {"a": times(before), "b": times(before)}, {"b": ["a"]}), 1)
        pipeline = Pipeline("p", {"a": times(after), "b": times(before)}, {"b": ["a"]})
        found = await pipeline.estimate({"times": 1})
        assert found.expected is None
        assert found.left_out == step_of(found, "a").left_out == LeftOut(other_models=1)
        assert step_of(found, "b").expected is not None

    async def test_a_simulated_one_says_nothing_of_a_real_one(self) -> None:
        offline: FastroAgent[Any] = FastroAgent(model=OfflineModel())

        @step
        async def ask(ctx: StepContext[Any]) -> None:
            await ctx.run(ctx.deps, "question")  # which agent that is, its code does not tell

        pipeline = Pipeline("p", {"a": ask})
        await pipeline.execute({}, offline)
        found = await pipeline.estimate({})
        assert (found.simulated, found.expected) == (False, None)
        assert found.left_out == LeftOut(other_models=1)
        real, _ = counted_agent()
        await pipeline.execute({}, real)
        assert (await pipeline.estimate({})).expected is not None

    async def test_one_with_other_steps_says_what_these_cost_but_not_the_run(self) -> None:
        agent, _ = counted_agent()
        await recorded(Pipeline("p", {"a": times(agent)}), 3)
        pipeline = Pipeline("p", {"a": times(agent), "b": times(agent)}, {"b": ["a"]})
        found = await pipeline.estimate({"times": 1})
        assert (found.expected, found.left_out) == (None, LeftOut(other_steps=1))
        expected = step_of(found, "a").expected
        assert expected is not None
        assert expected.median_usd == 3 * USD

    async def test_one_under_former_names_does(self) -> None:
        agent, _ = counted_agent()
        await recorded(Pipeline("before", {"a": times(agent)}), 3)
        renamed = {"b": StepConfig(formerly="a")}
        config = PipelineConfig(formerly="before")
        pipeline = Pipeline("after", {"b": times(agent)}, config=config, step_configs=renamed)
        found = await pipeline.estimate({"times": 1})
        expected = step_of(found, "b").expected
        assert expected is not None
        assert found.expected == expected
        assert expected.median_usd == 3 * USD

    async def test_only_the_last_ones_do(self) -> None:
        agent, _ = counted_agent()
        pipeline = Pipeline("p", {"a": times(agent)})
        await recorded(pipeline, 9, 9, 9, 1, 1)
        found = await pipeline.estimate({"times": 1}, last=2)
        assert found.expected is not None
        assert (found.runs, found.expected.p90_usd) == (2, USD)

    async def test_executions_under_one_key_are_one_run(self) -> None:
        agent, _ = counted_agent()
        failures = ["once"]

        @step
        async def ask(ctx: StepContext[Any]) -> None:
            await ctx.run(agent, "question")
            if failures:
                raise ConnectionError(failures.pop())

        pipeline = Pipeline("p", {"a": ask})
        with pytest.raises(StepExecutionError):
            await pipeline.execute({}, run_key="k")
        await pipeline.execute({}, run_key="k")
        found = await pipeline.estimate({})
        assert found.expected is not None
        assert (found.expected.runs, found.expected.median_usd) == (1, 2 * USD)


def limited(step_id: str, **fields: Any) -> dict[str, StepConfig]:
    return {step_id: StepConfig(budget=Budget(**{"usd": "0.5", "strength": "reserved"} | fields))}


async def bound_of(found: Any, **options: Any) -> StepEstimate:
    """The estimate of the last step of a pipeline."""
    steps = found if isinstance(found, dict) else {"s": found}
    inputs = options.pop("inputs", {"text": "question"})
    deps = options.pop("deps", None)
    pipeline: Any = Pipeline("p", steps, **options)
    estimate = await pipeline.estimate(inputs, deps)
    return step_of(estimate, list(steps)[-1])


class TestUpperBound:
    """No estimate sends anything: the models here would count it."""

    async def test_it_is_what_each_send_can_cost_at_most_times_all_that_may_be_sent(self) -> None:
        once, model = counted_agent(max_retries=0, max_tokens=1000)
        found = await bound_of(once.as_step("question"))
        assert found.upper_bound_usd is not None
        # Two answers, as an empty one is asked for again: at most 2 USD a million tokens out, and
        # 1 USD in, of which there are more than bytes in the message.
        tokens_in = found.upper_bound_usd * 1_000_000 - 2 * 2 * 1000
        assert 2 * (1024 + len("question")) < tokens_in < 2 * 4000
        again, _ = counted_agent(max_retries=2, max_tokens=1000)
        config = PipelineConfig(retries=3)
        more = await bound_of(again.as_step("question"), config=config)
        assert more.upper_bound_usd == found.upper_bound_usd * 3 * 4
        assert model.prompts == []

    async def test_a_run_never_costs_more(self) -> None:
        agent, model = counted_agent("", "", "answer", max_retries=0, max_tokens=50)
        pipeline = Pipeline("p", {"s": agent.as_step("question")})
        found = await pipeline.estimate({})
        assert found.upper_bound_usd is not None
        with pytest.raises(StepExecutionError) as caught:  # two empty answers are one too many
            await pipeline.execute({})
        assert len(model.prompts) == 2
        assert 0 < total_usd(caught.value.partial_result.entries) <= found.upper_bound_usd

    async def test_a_prompt_that_is_a_function_of_the_input_is_made(self) -> None:
        agent, model = counted_agent()
        asking = agent.as_step(lambda ctx: ctx.get_input("text") + ctx.deps)
        short = await bound_of(asking, deps="!")
        long = await bound_of(asking, inputs={"text": "question" * 1000}, deps="!")
        assert short.upper_bound_usd is not None
        assert long.upper_bound_usd is not None
        assert long.upper_bound_usd - short.upper_bound_usd >= Decimal(999 * 8) / 1_000_000
        assert model.prompts == []

    @pytest.mark.parametrize("strength", ["reserved", "settled"])
    async def test_a_budget_that_reserves_is_one(self, strength: str) -> None:
        agent, _ = counted_agent()
        found = await bound_of(
            {"s": times(agent)}, step_configs=limited("s", usd="0.5", strength=strength)
        )
        if strength == "reserved":
            assert (found.upper_bound_usd, found.no_upper_bound) == (Decimal("0.5"), None)
        else:
            assert found.upper_bound_usd is None
            assert found.no_upper_bound is not None

    @pytest.mark.parametrize("more", [{"at_limit": "downgrade"}, {"max_request_usd": "0.01"}])
    async def test_one_that_some_requests_may_pass_is_none(self, more: dict[str, Any]) -> None:
        agent, _ = counted_agent()
        found = await bound_of({"s": times(agent)}, step_configs=limited("s", **more))
        assert found.upper_bound_usd is None

    async def test_the_lower_one_of_requests_and_budget_counts(self) -> None:
        agent, _ = counted_agent()
        for usd in ("0.001", "500"):
            found = await bound_of(agent.as_step("question"), step_configs=limited("s", usd=usd))
            assert found.upper_bound_usd is not None
            assert found.upper_bound_usd <= Decimal(usd)
        assert found.upper_bound_usd < 1

    async def test_that_of_a_run_is_the_sum_or_the_lowest_budget_of_the_run(self) -> None:
        agent, _ = counted_agent()
        asking = agent.as_step("question")
        steps = {"a": asking, "b": asking}
        both = await Pipeline("p", steps, {"b": ["a"]}).estimate({})
        assert both.upper_bound_usd is not None
        assert both.upper_bound_usd == 2 * (both.steps[0].upper_bound_usd or 0)
        pipeline = Pipeline("p", {**steps, "c": times(agent)}, {"c": ["a", "b"]})
        assert (await pipeline.estimate({})).upper_bound_usd is None
        for usd in ("3", "2", "5"):
            pipeline = pipeline.with_budget(Budget(usd=usd, strength="reserved"))
        assert (await pipeline.estimate({})).upper_bound_usd == 2

    async def test_where_there_is_none_the_reason_says_why(self) -> None:
        agent, model = counted_agent()
        other, _ = counted_agent()

        async def look() -> str:
            """Looks."""
            return "more"

        async def coroutine(ctx: StepContext[Any]) -> str:
            return "question"

        def sending(ctx: StepContext[Any]) -> str:
            with ThreadPoolExecutor() as pool:
                return pool.submit(agent.agent.run_sync, "question").result().output

        with_tools, _ = counted_agent(toolsets=[FunctionToolsetBase(tools=[look])])
        typed, _ = counted_agent(output_type=dict[str, int])
        cheaper, _ = counted_agent(cheaper_model=ScriptedModel("x"))
        hooked, _ = counted_agent(on_before_dispatch=lambda: None)
        fallback: FastroAgent[Any] = FastroAgent(model=FallbackModel(model, ScriptedModel("x")))
        unpriced: FastroAgent[Any] = FastroAgent(
            model=ScriptedModel("x", model_name="nobody-lists-this")
        )
        image = BinaryContent(b"", media_type="image/png")
        cases: list[tuple[Any, str]] = [
            (times(agent), "its code decides"),
            (with_tools.as_step("x"), "its tools"),
            (typed.as_step("x"), "its output may be asked for again"),
            (cheaper.as_step("x"), "another model"),
            (hooked.as_step("x"), "its hooks"),
            (fallback.as_step("x"), "has others answer"),
            (unpriced.as_step("x"), "'scripted:nobody-lists-this'"),
            (FastroAgent(agent=Agent(model)).as_step("x"), "a ready agent"),
            (FastroAgent(model="openai:gpt-5-mini").as_step("x"), "can't be made"),
            (agent.as_step(coroutine), "a coroutine"),
            (agent.as_step(lambda ctx: 1 / 0), "can't be made"),  # type: ignore[arg-type]
            (agent.as_step(sending), "can't be made"),
            (agent.as_step(lambda ctx: ["x", image]), "not only text"),  # type: ignore[arg-type]
            ({"o": times(other), "s": agent.as_step(lambda ctx: "x")}, "other steps return"),
        ]
        for found, reason in cases:
            depends = {"dependencies": {"s": ["o"]}} if isinstance(found, dict) else {}
            estimate = await bound_of(found, **depends)
            assert estimate.upper_bound_usd is None
            assert reason in (estimate.no_upper_bound or ""), estimate
        config = PipelineConfig(cheaper_model=ScriptedModel("x"))
        assert (await bound_of(agent.as_step("x"), config=config)).upper_bound_usd is None
        assert model.prompts == []


async def test_a_further_budget_changes_no_fingerprint_and_not_the_pipeline_it_is_given_to() -> (
    None
):
    agent, model = counted_agent()
    pipeline = Pipeline("p", {"s": times(agent)}, config=PipelineConfig(retries=1))
    limited = pipeline.with_budget(Budget(usd=0, strength="reserved"))
    assert limited.plan.fingerprints == pipeline.plan.fingerprints
    assert limited.plan.version == pipeline.plan.version
    assert limited.plan.config == pipeline.plan.config
    with pytest.raises(StepExecutionError, match="Cost budget exceeded"):
        await limited.execute({"times": 1})
    assert model.prompts == []
    await pipeline.execute({"times": 1})
    assert len(model.prompts) == 1


def test_a_further_budget_must_be_a_runs() -> None:
    agent, _ = counted_agent()
    with pytest.raises(ValueError, match="no scope and no window"):
        Pipeline("p", {"s": times(agent)}).with_budget(Budget(usd=1, window="day"))
