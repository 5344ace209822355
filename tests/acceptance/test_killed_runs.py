"""`kill -9` at random moments of runs that are executed again until they end: the books agree
over all of them. Of a few kills none may hit what they are meant to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.killed_books import (
    assert_each_run_ended_well,
    assert_no_stored_step_is_sent_again,
    assert_recorded_answers_are_not_asked_for_again,
    assert_replays_were_paid_for,
    books_agree,
)
from tests.support.killed_runs import MANY_AT_ONCE, MANY_KILLED, PATIENCE, WIDTH, run_killed
from tests.support.provider_process import ProviderProcess


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def long(subject: str, kills: int, least: int, patience: float = PATIENCE) -> Any:
    marks = [pytest.mark.long, pytest.mark.timeout(patience + 100)]
    return pytest.param(subject, kills, least, patience, marks=marks)


@pytest.mark.parametrize(
    ("subject", "kills", "least", "patience"),
    [
        pytest.param("mapped", 1, 0, PATIENCE, marks=pytest.mark.timeout(PATIENCE + 100)),
        long("prefect", 30, 5),
        long("mapped", 20, 3),
        long(MANY_KILLED, 20, 3, 1800.0),
    ],
)
async def test_killed_under_prefect_no_run_pays_twice(
    subject: str,
    kills: int,
    least: int,
    patience: float,
    provider: ProviderProcess,
    prefect_api: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    attempts = run_killed(subject, kills, results, provider, patience)
    assert sum(attempt.killed for attempt in attempts) == kills
    compared, entries = await books_agree(
        provider, attempts, url, MANY_AT_ONCE if subject == MANY_KILLED else WIDTH
    )
    assert_each_run_ended_well(attempts)
    stored = assert_no_stored_step_is_sent_again(provider.lines, attempts)
    replayed = assert_replays_were_paid_for(entries)
    lost = assert_recorded_answers_are_not_asked_for_again(provider.lines, attempts)
    # The kills hit: requests under way, and runs with steps behind them.
    hits = len(compared.unknown + compared.unsent)
    print(  # noqa: T201
        f"{hits} of {kills} kills hit {lost} requests, {stored} results were stored, "
        f"{replayed} requests replayed"
    )
    assert hits >= least
    assert stored >= least
    assert replayed >= least


@pytest.mark.timeout(PATIENCE + 100)
@pytest.mark.parametrize(("kills", "least"), [(1, 0), pytest.param(10, 3, marks=pytest.mark.long)])
async def test_killed_in_memory_nothing_is_resumed_and_nothing_is_lost(
    kills: int,
    least: int,
    provider: ProviderProcess,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: str,
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", postgres_url)
    attempts = run_killed("memory", kills, results, provider)
    assert sum(attempt.killed for attempt in attempts) == kills
    compared, entries = await books_agree(provider, attempts, postgres_url)
    assert_each_run_ended_well(attempts)
    assert assert_replays_were_paid_for(entries) == 0
    assert len(compared.unknown + compared.unsent) >= least
