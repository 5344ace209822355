"""A StepContext that is made by hand: its requests are booked where the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastroai import FastroAgent, Pipeline, StepConfig, StepContext, step
from fastroai.executors.in_memory import InMemoryExecutor
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.usage import Ledger
from tests.support.models import COST, counted_agent


def asked() -> FastroAgent[str]:
    return counted_agent()[0]


async def test_it_is_booked_in_the_configured_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    context = StepContext("by hand", {}, None, {})
    await context.run(asked(), "one")
    await context.run(asked(), "two")
    assert context.usage.cost_microcents == 2 * COST
    async with Ledger.open() as ledger:
        entries = await ledger.entries()
    assert [entry.attribution.step_id for entry in entries] == ["by hand"] * 2


async def test_within_a_step_it_is_booked_to_the_run() -> None:
    @step
    async def around(ctx: StepContext[Any]) -> int:
        inner = StepContext("inner", {}, None, {})
        await inner.run(asked(), "one")
        return inner.usage.cost_microcents

    pipeline = Pipeline("around", {"around": around}, executor=InMemoryExecutor())
    result = await pipeline.execute({})
    assert result.output == COST
    [entry] = result.entries
    assert (entry.attribution.pipeline, entry.attribution.step_id) == ("around", "inner")


async def test_two_of_one_name_in_a_scope_keep_their_books_apart() -> None:
    class Reports:
        """An agent that no meter sees."""

        async def run(self, **_: Any) -> Any:
            return await asked().run("reported")

    recorder = RequestRecorder()
    with DispatchScope(recorder):
        for _ in range(2):
            context = StepContext("same", {}, None, {}, config=StepConfig(cost_budget=COST + 1))
            await context.run(Reports(), "one")  # type: ignore[arg-type]
            assert context.usage.request_count == len(recorder.entries)
    assert len(recorder.entries) == 2
