"""Random graphs with failures and retries: entries, steps, run, artifacts and database add up to
the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.usage import RequestUsage

from fastroai import (
    BaseStep,
    FastroAgent,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    StepConfig,
    StepContext,
    StepExecutionError,
)
from fastroai.testing import ScriptedModel, fixed_prices
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.integration.read_back import RunOnServer, read_run, table, usd
from tests.support.graphs import Graph, graphs


@dataclass(frozen=True)
class Fate:
    """What happens to a step.

    Attributes:
        questions: How many it asks, one after the other, each at the same price.
        refused: Which of its requests are refused, counted from 1 over all attempts.
        failures: Attempts that raise behind the first question.
    """

    questions: int
    refused: frozenset[int]
    failures: int
    retries: int
    input_tokens: int
    output_tokens: int

    @property
    def price(self) -> Decimal:
        """USD of a request, at 1e-6 for a token of the input and two for one of the output."""
        return Decimal(self.input_tokens + 2 * self.output_tokens) / 1_000_000


fates = st.builds(
    Fate,
    questions=st.integers(0, 3),
    refused=st.frozensets(st.integers(1, 5), max_size=2),
    failures=st.integers(0, 2),
    retries=st.integers(0, 2),
    input_tokens=st.integers(1, 5000),
    output_tokens=st.integers(1, 500),
)
configs = st.builds(
    PipelineConfig,
    on_error=st.sampled_from(["fail", "continue"]),
    max_concurrency=st.none() | st.integers(1, 3),
    retry_delay=st.just(0.0),
)


class Meets(BaseStep[Any, list[str]]):
    """A step that meets its fate, and counts what it was answered."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.config = StepConfig(retries=fate.retries)
        self.answered = self.refused = 0
        usage = RequestUsage(input_tokens=fate.input_tokens, output_tokens=fate.output_tokens)
        model = ScriptedModel(self._reply, usage=usage, repeat=True)
        self._agent = FastroAgent(model=model, cost_calculator=fixed_prices(), max_retries=0)

    def _reply(self, *_: Any) -> Any:
        if self.answered + self.refused + 1 in self.fate.refused:
            self.refused += 1
            return ModelHTTPError(500, "gpt-5-mini")
        self.answered += 1
        return f"answer {self.answered}"

    async def execute(self, context: StepContext[Any]) -> list[str]:
        answers = []
        for number in range(self.fate.questions):
            answers.append((await context.run(self._agent, f"question {number}")).output)
            if context.attempt <= self.fate.failures:
                raise RuntimeError("behind a question")
        return answers


async def run(
    graph: Graph, steps: dict[str, Meets], config: PipelineConfig, executor: str
) -> PipelineResult[Any]:
    """What a run came to, whether it failed or not."""
    pipeline = Pipeline("random", dict(steps), graph, next(iter(graph)), config, executor=executor)
    try:
        return await pipeline.execute({}, None)
    except StepExecutionError as error:
        partial: PipelineResult[Any] = error.partial_result
        return partial


async def assert_books_balance(
    steps: dict[str, Meets], result: PipelineResult[Any], ledger: Ledger
) -> Decimal:
    """Entries, steps, run and database agree with what the models answered; the run's cost."""
    paid = sum((step.answered * step.fate.price for step in steps.values()), Decimal(0))
    booked = await ledger.entries(run_id=result.run_id)
    assert {entry.id: entry for entry in booked} == {entry.id: entry for entry in result.entries}
    [totals] = await ledger.totals(run_id=result.run_id)
    by_step = {total.key: total for total in await ledger.totals(by="step", run_id=result.run_id)}
    usages = result.usage.steps if result.usage is not None else {}
    assert cost_of(booked) == totals.cost_usd == paid
    assert sum((usage.cost_usd or Decimal(0) for usage in usages.values()), Decimal(0)) == paid
    assert (result.usage.total_cost_usd if result.usage is not None else 0) == paid
    for step_id, step in steps.items():
        own = [entry for entry in booked if entry.attribution.step_id == step_id]
        assert (bool(own), bool(own)) == (step_id in usages, f"random/{step_id}" in by_step)
        assert [entry.state for entry in own].count(EntryState.CHARGED) == step.answered
        # The failure of another step may have cancelled one before it was sent.
        unsent = sum((entry.error or "").startswith("Not sent: CancelledError") for entry in own)
        assert [entry.state for entry in own].count(EntryState.REFUSED) == step.refused + unsent
        if own:
            usage, total = usages[step_id], by_step[f"random/{step_id}"]
            assert (
                cost_of(own) == usage.cost_usd == total.cost_usd == step.answered * step.fate.price
            )
            assert usage.request_count == total.requests == step.answered + step.refused + unsent
            assert usage.replayed_cost_usd == total.replayed_usd == total.replayed * step.fate.price
            assert (
                usage.input_tokens
                == total.tokens.input_tokens
                == step.answered * step.fate.input_tokens
            )
    return paid


def cost_of(entries: Iterable[LedgerEntry]) -> Decimal:
    return sum(
        (e.cost_usd or Decimal(0) for e in entries if e.state is EntryState.CHARGED), Decimal(0)
    )


def assert_artifacts_say_the_same(
    stored: RunOnServer, result: PipelineResult[Any], paid: Decimal
) -> None:
    tables = {artifact.key: table(artifact) for artifact in stored.cost_tables()}
    whole = tables.pop("costs-random")
    assert usd(whole) == paid
    assert sum((usd(rows) for rows in tables.values()), Decimal(0)) == paid
    for row in whole:
        usage = result.usage.steps.get(row["step"]) if result.usage is not None else None
        assert Decimal(row["cost_usd"]) == (usage.cost_usd if usage is not None else 0)
        assert row["requests"] == (usage.request_count if usage is not None else 0)
        of_step = tables.get(f"costs-random--{row['step']}", [])
        assert usd(of_step) == Decimal(row["cost_usd"])
        assert sum(own["replayed"] for own in of_step) == row["replayed"]


def meeting(data: st.DataObject, graph: Graph) -> dict[str, Meets]:
    return {step_id: Meets(data.draw(fates, label=step_id)) for step_id in graph}


@pytest.fixture
def ledger_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    return url


def examples(sample: int, whole: int) -> pytest.MarkDecorator:
    """How many runs a test makes up: a sample of them, or all."""
    return pytest.mark.parametrize("number", [sample, pytest.param(whole, marks=pytest.mark.long)])


def made_up(number: int) -> settings:
    """A run takes too long to make a failing example small by running hundreds more."""
    return settings(deadline=None, phases=[Phase.reuse, Phase.generate], max_examples=number)


# One database for all runs of a test: they tell each other apart, as those of one ledger have to.


@examples(12, 60)
def test_in_memory_all_sums_are_the_same(ledger_url: str, number: int) -> None:
    @given(data=st.data(), graph=graphs(), config=configs)
    @made_up(number)
    def sums_are_the_same(data: st.DataObject, graph: Graph, config: PipelineConfig) -> None:
        steps = meeting(data, graph)

        async def main() -> None:
            result = await run(graph, steps, config, "memory")
            async with Ledger.open(ledger_url) as ledger:
                await assert_books_balance(steps, result, ledger)

        asyncio.run(main())

    sums_are_the_same()


@examples(2, 12)
def test_under_prefect_the_artifacts_add_up_to_the_same(
    prefect_api: str, ledger_url: str, number: int
) -> None:
    @given(data=st.data(), graph=graphs(largest=6), config=configs)
    @made_up(number)
    def artifacts_add_up(data: st.DataObject, graph: Graph, config: PipelineConfig) -> None:
        steps = meeting(data, graph)

        async def main() -> None:
            result = await run(graph, steps, config, "prefect")
            async with Ledger.open(ledger_url) as ledger:
                paid = await assert_books_balance(steps, result, ledger)
            assert_artifacts_say_the_same(await read_run(result.run_id, tasks=0), result, paid)

        asyncio.run(main())

    artifacts_add_up()
