"""Random maps: lists with equal elements, failures, keys, limits, a map over a map; every executor
gives the same outputs, errors and books, and none pays twice for what was answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.usage import RequestUsage

from fastroai import (
    FastroAgent,
    MappedResults,
    Pipeline,
    PipelineResult,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.errors import MappedStepError
from fastroai.testing import ScriptedModel, fixed_prices
from fastroai.usage import EntryState, LedgerEntry
from tests.conformance.test_random_books import examples, ledger_url, made_up

__all__ = ["ledger_url"]

PRICE = Decimal(200) / 1_000_000


@dataclass(frozen=True)
class Fate:
    """What happens to an item.

    Attributes:
        questions: How many it asks, one after the other.
        failures: Attempts that raise behind the first question, of two that there are.
        is_broken: Whether it fails behind its last question, whatever is tried.
    """

    questions: int = 1
    failures: int = 0
    is_broken: bool = False

    @property
    def succeeds(self) -> bool:
        return not self.is_broken and self.failures < 2


@dataclass(frozen=True)
class Job:
    """A list to be mapped over, and what is to come of it.

    Attributes:
        fates: Of each value that the list may have.
    """

    values: list[int]
    fates: dict[int, Fate]
    has_keys: bool
    is_twofold: bool
    max_concurrency: int
    max_failures: float

    @property
    def distinct(self) -> list[int]:
        return list(dict.fromkeys(self.values))

    @property
    def failing(self) -> list[int]:
        return [value for value in self.distinct if not self.fates[value].succeeds]

    @property
    def completes(self) -> bool:
        return len(self.failing) <= (
            int(self.max_failures * len(self.distinct))
            if isinstance(self.max_failures, float)
            else self.max_failures
        )


fates = st.builds(
    Fate,
    questions=st.integers(0, 2),
    failures=st.sampled_from([0, 0, 0, 1, 2]),
    is_broken=st.sampled_from([False, False, False, True]),
)
jobs = st.builds(
    Job,
    values=st.lists(st.integers(0, 7), max_size=12),
    fates=st.fixed_dictionaries(dict.fromkeys(range(8), fates)),
    has_keys=st.booleans(),
    is_twofold=st.booleans(),
    max_concurrency=st.integers(1, 5),
    max_failures=st.sampled_from([0, 1, 3, 0.3]),
)


@dataclass
class Asking:
    """The steps of a job, and how often each question was answered."""

    job: Job
    answered: Counter[str] = field(default_factory=Counter, kw_only=True)

    def _reply(self, messages: Any, info: Any) -> str:
        return self.answer(messages[-1].parts[-1].content)

    def answer(self, prompt: str) -> str:
        self.answered[prompt] += 1
        return f"about {prompt}"

    def pipeline(self, executor: str) -> Pipeline[Any, Any, Any]:
        usage = RequestUsage(input_tokens=100, output_tokens=50)
        model = ScriptedModel(self._reply, usage=usage, repeat=True)
        agent = FastroAgent(model=model, cost_calculator=fixed_prices(), max_retries=0)

        @step(retries=1, retry_delay=0.0, version="1")
        async def ask(context: StepContext[Any]) -> int:
            fate = self.job.fates[context.item]
            for number in range(fate.questions):
                await context.run(agent, f"{context.step_id} {context.item} {number}")
                if context.attempt <= fate.failures:
                    raise RuntimeError(f"{context.item} failed")
            if fate.is_broken or (not fate.questions and context.attempt <= fate.failures):
                raise RuntimeError(f"{context.item} failed")
            return int(context.item)

        options = {
            "key": str if self.job.has_keys else None,
            "max_concurrency": self.job.max_concurrency,
            "max_failures": self.job.max_failures,
        }
        steps = {"one": ask.map(over="values", **options)}
        if self.job.is_twofold:
            steps["two"] = ask.map(over="one", **options | {"key": None})
        return Pipeline("random maps", steps, output_step=[*steps][-1], executor=executor)


async def run(
    pipeline: Pipeline[Any, Any, Any], job: Job, run_key: str
) -> tuple[PipelineResult[Any], BaseException | None]:
    """What a run came to, and why it failed."""
    try:
        return await pipeline.execute({"values": job.values}, run_key=run_key), None
    except StepExecutionError as error:
        partial: PipelineResult[Any] = error.partial_result
        return partial, error


def told(result: PipelineResult[Any]) -> dict[str, Any]:
    """What the steps of a run that completed gave."""
    found = {}
    for step_id, output in result.step_outputs.items():
        is_partial = isinstance(output, MappedResults)
        errors = {k: repr(e) for k, e in output.errors.items()} if is_partial else {}
        found[step_id] = (list(output.items()) if is_partial else list(output), errors)
    return found


def paid_by_item(entries: tuple[LedgerEntry, ...]) -> Counter[tuple[str | None, str | None]]:
    charged = (e.attribution for e in entries if e.state is EntryState.CHARGED)
    return Counter((at.step_id, at.item) for at in charged)


def assert_paid_for_what_was_answered(result: PipelineResult[Any], asking: Asking) -> None:
    answered = asking.answered.total()
    assert sum(paid_by_item(result.entries).values()) == answered
    assert result.usage is not None or not answered
    if result.usage is not None:
        assert result.usage.total_cost_usd == answered * PRICE
    assert not [e for e in result.entries if e.state is EntryState.UNSETTLED]


async def compare(job: Job, executors: tuple[str, ...], run_key: str) -> None:
    results = []
    for executor in executors:
        asking = Asking(job)
        pipeline = asking.pipeline(executor)
        result, error = await run(pipeline, job, run_key)
        assert_paid_for_what_was_answered(result, asking)
        assert (error is None) is job.completes
        assert error is None or isinstance(error, MappedStepError)
        # A question that was answered is asked once, whatever its item was tried again for.
        assert set(asking.answered.values()) <= {1}
        results.append((result, paid_by_item(result.entries)))
        if executor == "prefect":
            await go_on(asking, pipeline, run_key)
    if job.completes:
        expected, books = results[0]
        assert len(expected.output) == len(job.distinct if job.max_failures else job.values) - (
            len(job.failing)
        )
        for result, by_item in results[1:]:
            assert told(result) == told(expected)
            assert by_item == books


async def go_on(asking: Asking, pipeline: Pipeline[Any, Any, Any], run_key: str) -> None:
    """Execute the run again, now that nothing fails any more: only what is missing is asked."""
    job, fates_before = asking.job, asking.job.fates
    asking.job = replace(job, fates={v: Fate(f.questions) for v, f in fates_before.items()})
    result, error = await run(pipeline, job, run_key)
    assert error is None
    assert len(result.output) == len(job.distinct if job.max_failures else job.values)
    steps = ["one", "two"] if job.is_twofold else ["one"]
    questions = [
        f"{step_id} {value} {number}"
        for step_id in steps
        for value in job.distinct
        for number in range(fates_before[value].questions)
    ]
    assert asking.answered == Counter(questions)


@examples(15, 300)
def test_in_memory_what_is_answered_is_paid_for_once(ledger_url: str, number: int) -> None:
    @given(job=jobs)
    @made_up(number)
    def is_paid_for_once(job: Job) -> None:
        asyncio.run(compare(job, ("memory",), "the run"))

    is_paid_for_once()


@pytest.mark.timeout(600)
@examples(2, 80)
def test_memory_and_prefect_give_the_same(
    prefect_api: str,
    ledger_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))
    runs = iter(range(number))

    @given(job=jobs)
    @made_up(number)
    def give_the_same(job: Job) -> None:
        asyncio.run(compare(job, ("memory", "prefect"), f"run-{next(runs)}"))

    give_the_same()
