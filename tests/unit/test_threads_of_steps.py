"""Steps that call agents from several threads, and the event loop that steps run in."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fastroai import Pipeline, StepContext, step
from fastroai.ledger.entries import EntryState
from fastroai.replay.journal import Journal
from tests.support.models import counted_agent

THREADS = 8


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns as often as Python can, so that a race shows."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_switching")
async def test_what_threads_of_a_step_asked_is_booked_and_replayed_each_once() -> None:
    agent, model = counted_agent()

    @step(retries=1, retry_delay=0.0)
    async def ask_in_threads(context: StepContext[Any]) -> int:
        def ask() -> str:
            return str(asyncio.run(context.run(agent, "the same")).output)

        answers = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(THREADS)))
        if context.attempt == 1:
            raise RuntimeError("after all were paid")
        return len(answers)

    result = await Pipeline("threads", {"ask": ask_in_threads}).execute({}, None)
    assert (result.output, len(model.prompts)) == (THREADS, THREADS)
    assert Counter(entry.state for entry in result.entries) == {
        EntryState.CHARGED: THREADS,
        EntryState.REPLAYED: THREADS,
    }
    dispatches = {(e.attribution.attempt, e.attribution.dispatch) for e in result.entries}
    assert dispatches == {(a, d) for a in (1, 2) for d in range(1, THREADS + 1)}


@pytest.mark.usefixtures("eager_switching")
async def test_threads_get_a_place_each_in_a_steps_journal() -> None:
    journal = Journal("s")

    def places() -> list[str]:
        return [journal.place("request", "the same") for _ in range(200)]

    found = await asyncio.gather(*(asyncio.to_thread(places) for _ in range(THREADS)))
    assert len({place for places in found for place in places}) == 200 * THREADS


async def test_steps_in_memory_run_in_the_callers_event_loop() -> None:
    loops = []

    @step
    async def look(context: StepContext[Any]) -> None:
        loops.append(asyncio.get_running_loop())

    await Pipeline("loop", {"a": look, "b": look}, {"b": ["a"]}).execute({}, None)
    assert loops == [asyncio.get_running_loop()] * 2
