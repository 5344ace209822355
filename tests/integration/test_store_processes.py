"""One ledger, many writers: processes at once, and processes that are killed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastroai.usage import EntryState, Ledger
from tests.support import forked
from tests.support.ledger_writers import COST

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        yield str(request.getfixturevalue("postgres_url"))


def run_writers(*arguments: object) -> str:
    command = [sys.executable, "-m", "tests.support.ledger_writers", *map(str, arguments)]
    done = forked.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_four_processes_of_250_coroutines_lose_nothing_and_write_nothing_twice(
    url: str, tmp_path: Path
) -> None:
    run_writers("processes", url, 4, tmp_path / "spill", 250)
    async with Ledger.open(url) as ledger:
        entries = await ledger.entries()
        [totals] = await ledger.totals()
    assert Counter(entry.id for entry in entries) == Counter(
        f"p{p}-{n}" for p in range(4) for n in range(250)
    )
    assert {(entry.state, entry.cost_usd) for entry in entries} == {(EntryState.CHARGED, COST)}
    assert (totals.charged, totals.cost_usd, totals.tokens.input_tokens) == (
        1000,
        1000 * COST,
        3000,
    )
    assert not (tmp_path / "spill").exists()


async def test_killed_at_any_moment_every_committed_intent_is_there(
    url: str, tmp_path: Path
) -> None:
    out = run_writers("killed", url, 15, tmp_path / "spill")
    reports = [json.loads(line) for line in out.splitlines()]
    assert sum(what == "ready" for what, _ in reports) == 15
    async with Ledger.open(url) as ledger:
        entries = {entry.id: entry for entry in await ledger.entries()}
    assert {name for what, name in reports if what == "intended"} <= set(entries)
    assert all(
        entries[name].state is EntryState.CHARGED for what, name in reports if what == "settled"
    )
    unsettled = [entry for entry in entries.values() if entry.state is not EntryState.CHARGED]
    assert {entry.state for entry in unsettled} <= {EntryState.UNSETTLED}
    assert {entry.cost_usd for entry in unsettled} <= {None}
    assert {entry.settled_at for entry in unsettled} <= {None}
    # Fifteen processes with ten requests each under way: some outcome was not written in time.
    assert unsettled
