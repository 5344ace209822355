"""Results, requests and books that an earlier version wrote are used by this one.

`tests/fixtures/earlier_records` was written by `tests.support.recorded_runs` under version 1.0.0a1
before results were stored through `fastroai.storage`.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fastroai.ledger.ledger import Ledger
from fastroai.testing import ScriptedModel
from tests.support.recorded_runs import (
    LEDGER,
    RESULTS,
    RUN_KEY,
    SUMMARY,
    execute_resumed,
    execute_reused,
    nothing,
)

pytestmark = pytest.mark.usefixtures("prefect_api")

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier_records"
CHARGED_BEFORE = 6
"""Requests in the books of the earlier version, for both forms of records."""


@pytest.fixture(params=["none", "gzip"])
def results(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder of earlier records in one of their forms, beside an earlier ledger."""
    ledger = tmp_path / "ledger.db"
    with closing(sqlite3.connect(ledger)) as connection:
        connection.executescript((EARLIER / LEDGER).read_text())
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{ledger}")
    folder = tmp_path / "results"
    shutil.copytree(EARLIER / RESULTS / request.param, folder)
    return folder


def unasked() -> ScriptedModel:
    return ScriptedModel(AssertionError("it was asked again"))


async def booked(state: str) -> int:
    async with Ledger.open() as ledger:
        return sum(entry.state == state for entry in await ledger.entries())


async def test_results_of_an_earlier_version_are_replayed(results: Path):
    model = unasked()
    result = await execute_reused(model, results)
    assert model.prompts == []
    assert result.output == SUMMARY
    assert result.usage.total_cost_usd == 0
    assert (await booked("charged"), await booked("replayed")) == (CHARGED_BEFORE, 1)


async def test_a_run_that_an_earlier_version_left_goes_on_where_it_was(results: Path):
    model = unasked()
    result = await execute_resumed(model, results, nothing)
    assert model.prompts == []
    assert result.output == "The rate is 1."
    assert (await booked("charged"), await booked("replayed")) == (CHARGED_BEFORE, 2)
    async with Ledger.open() as ledger:
        runs = {entry.attribution.run_id for entry in await ledger.entries(run_key=RUN_KEY)}
    assert len(runs) == 3
