"""`kill -9` of workers and their runs at random moments; the books agree over all of them.

Each kill takes about ten seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from tests.acceptance.killed_books import (
    assert_each_run_ended_well,
    assert_no_stored_step_is_sent_again,
    assert_recorded_answers_are_not_asked_for_again,
    assert_replays_were_paid_for,
    books_agree,
    with_costs,
)
from tests.support.killed_runs import run_killed
from tests.support.killed_workers import Killing, deploy, environment
from tests.support.provider_process import ProviderProcess


# Of one killed worker, tests/integration/test_dead_runs.py tells in `make test`.
@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("kills", [2, 12])
async def test_killed_workers_leave_runs_that_others_finish_without_paying_twice(
    kills: int,
    provider: ProviderProcess,
    prefect_api: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, url = time.monotonic(), f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    for name, value in environment(tmp_path / "results").items():
        monkeypatch.setenv(name, value)
    seed = random.randrange(2**32)
    print(f"seed of the workers {seed}")  # noqa: T201 - shown when the test fails
    async with get_client() as client:
        killing = Killing(
            client, provider, await deploy(client), kills, random.Random(seed), tmp_path / "results"
        )
        left_alone = asyncio.to_thread(run_killed, "prefect", 0, tmp_path / "alone", provider)
        [alone], _ = await asyncio.gather(left_alone, killing.go())
    attempts = [alone, *killing.attempts]
    compared, entries = await books_agree(provider, attempts, url)
    told = [with_costs(attempt, entries) for attempt in attempts]
    assert (told[0].paid, told[0].replayed) == (alone.paid, alone.replayed)
    assert_each_run_ended_well(told)
    stored = assert_no_stored_step_is_sent_again(provider.lines, attempts)
    replayed = assert_replays_were_paid_for(entries)
    lost = assert_recorded_answers_are_not_asked_for_again(provider.lines, attempts)
    hits = len(compared.unknown + compared.unsent)
    print(  # noqa: T201
        f"{killing.done} kills hit {killing.hit} runs, {hits} with requests under way; {lost} "
        f"answers were lost, {stored} results were stored, {replayed} requests replayed. Without a "
        f"heartbeat: {killing.unheard}. {time.monotonic() - began:.0f} s"
    )
    # A worker was killed before its run had had a heartbeat.
    assert killing.unheard
    assert killing.done == kills
    # The kills hit: requests under way, and runs with steps behind them.
    assert hits >= kills // 4
    assert stored >= kills // 4
    assert replayed >= kills // 4
