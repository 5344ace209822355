"""`kill -9` at random moments of runs that are executed again until they end: the books agree
over all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.killed_books import (
    assert_each_run_ended_well,
    assert_no_stored_step_is_sent_again,
    assert_recorded_answers_are_not_asked_for_again,
    assert_replays_were_paid_for,
    books_agree,
)
from tests.support.killed_runs import PATIENCE, run_killed
from tests.support.provider_process import ProviderProcess


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.mark.timeout(PATIENCE + 100)
async def test_killed_thirty_times_under_prefect(
    provider: ProviderProcess,
    prefect_api: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    attempts = run_killed("prefect", 30, results, provider)
    assert sum(attempt.killed for attempt in attempts) == 30
    compared, entries = await books_agree(provider, attempts, url)
    assert_each_run_ended_well(attempts)
    stored = assert_no_stored_step_is_sent_again(provider.lines, attempts)
    replayed = assert_replays_were_paid_for(entries)
    lost = assert_recorded_answers_are_not_asked_for_again(provider.lines, attempts)
    # The kills hit: requests under way, and runs with steps behind them.
    hits = len(compared.unknown + compared.unsent)
    print(  # noqa: T201
        f"{hits} of 30 kills hit {lost} requests, {stored} results were stored, "
        f"{replayed} requests replayed"
    )
    assert hits >= 5
    assert stored >= 5
    assert replayed >= 5


@pytest.mark.timeout(PATIENCE + 100)
async def test_killed_ten_times_in_memory_nothing_is_resumed_and_nothing_is_lost(
    provider: ProviderProcess, results: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", postgres_url)
    attempts = run_killed("memory", 10, results, provider)
    assert sum(attempt.killed for attempt in attempts) == 10
    compared, entries = await books_agree(provider, attempts, postgres_url)
    assert_each_run_ended_well(attempts)
    assert assert_replays_were_paid_for(entries) == 0
    assert len(compared.unknown + compared.unsent) >= 3
