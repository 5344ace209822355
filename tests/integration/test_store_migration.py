"""Ledgers of earlier versions are brought up to date, and go on; those of later ones are left
alone.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, text

from fastroai.database.engine import Database, database_url, open_database
from fastroai.database.migrations import CURRENT, MIGRATIONS, metadata, version_of
from fastroai.errors import LedgerUnavailableError
from fastroai.leases.table import LeaseTable
from fastroai.ledger.store import open_store
from fastroai.usage import EntryState, Ledger
from tests.support.ledger_entries import charged

VERSION_1 = [
    "CREATE TABLE fastroai_schema (version INTEGER NOT NULL PRIMARY KEY)",
    "INSERT INTO fastroai_schema (version) VALUES (1)",
    *MIGRATIONS[1],
    "INSERT INTO fastroai_intents (id, run_id, attempt, dispatch, tags, model_asked, sent_at, "
    "request_count, simulated)"
    """ VALUES ('paid', 'r', 1, 1, '{"team":"search"}', 'openai:gpt-5-mini', 1767225600000000, 1,
        FALSE)""",
    "INSERT INTO fastroai_intents (id, run_id, attempt, dispatch, sent_at, request_count, "
    "simulated) VALUES ('lost', 'r', 2, 1, 1767225601000000, 1, FALSE)",
    "INSERT INTO fastroai_outcomes (entry_id, final, state, settled_at, input_tokens, "
    "output_tokens, cache_read_tokens, cache_write_tokens, input_audio_tokens, "
    "output_audio_tokens, cache_audio_read_tokens, cost) VALUES ('paid', 1, 'charged', "
    "1767225602000000, 7, 3, 0, 0, 0, 0, 0, 123456789)",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


def execute(url: str, *statements: str) -> None:
    database = Database(database_url(url), writes=True)
    database.run(
        lambda connection: [connection.execute(text(statement)) for statement in statements]
    )
    database.close()


def read(url: str, work: Any) -> Any:
    database = Database(database_url(url), writes=False)
    try:
        return database.run(work)
    finally:
        database.close()


async def test_a_ledger_of_version_1_is_brought_up_to_date_with_all_it_holds(url: str) -> None:
    await asyncio.to_thread(execute, url, *VERSION_1)
    async with Ledger.open(url) as ledger:
        paid, lost = await ledger.entries(run_id="r")
        await ledger.append(charged("1", run_id="r", deployment="d", flow_tags=("nightly",)))
        [totals] = await ledger.totals(run_id="r")
        [new] = await ledger.entries(tag="nightly")
    assert (paid.id, paid.state, paid.cost_usd) == (
        "paid",
        EntryState.CHARGED,
        Decimal("0.000123456789"),
    )
    assert (paid.attribution.tags, paid.attribution.flow_tags, paid.tokens.input_tokens) == (
        {"team": "search"},
        (),
        7,
    )
    assert (lost.id, lost.state) == ("lost", EntryState.UNSETTLED)
    assert (totals.requests, totals.cost_usd) == (3, Decimal("1.000123456789"))
    assert new.attribution.deployment == "d"
    assert await asyncio.to_thread(read, url, version_of) == CURRENT


BEFORE = Path(__file__).parents[1] / "support" / "ledger_before"
"""A ledger of version 3, written before rooms moved: entries of all states, and a lease; then what
that code read from it.
"""


async def test_a_ledger_of_the_version_before_gives_the_same_entries_and_totals(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((BEFORE / "ledger.sql").read_text())
    expected = json.loads((BEFORE / "expected.json").read_text())
    async with Ledger.open(f"sqlite:///{path}", create=False) as ledger:
        assert {entry.state for entry in await ledger.entries()} == set(EntryState)
        assert as_far_as(expected["entries"], await ledger.entries()) == expected["entries"]
        for by, totals in expected["totals"].items():
            found = await ledger.totals(None if by == "None" else by)
            if by == "deployment":  # named with its flow by now
                totals = [
                    total | {"key": "p/prod" if total["key"] == "prod" else None}
                    for total in totals
                ]
            assert as_far_as(totals, found) == totals
    table = LeaseTable(open_database(database_url(f"sqlite:///{path}"), writes=True))
    [holding] = table.holdings("run_key")
    assert (holding.claim.run_key, holding.claim.pid, holding.is_alive) == ("march", 7, False)
    table.close()


def as_far_as(before: Sequence[dict[str, Any]], found: Sequence[Any]) -> Any:
    """Entries or totals as the fixture has them; fields that came later are left out."""

    def same_fields(old: Any, new: Any) -> Any:
        if not isinstance(old, dict):
            return new
        return {name: same_fields(value, new.get(name)) for name, value in old.items()}

    new = json.loads(json.dumps([asdict(one) for one in found], default=str))
    return [same_fields(*pair) for pair in zip(before, new, strict=True)]


async def test_the_tables_are_what_the_code_says_they_are(url: str) -> None:
    await (await open_store(url)).close()

    def columns(connection: Any) -> dict[str, set[tuple[str, bool]]]:
        tables = inspect(connection)
        return {
            name: {(c["name"], c["nullable"]) for c in tables.get_columns(name)}
            for name in metadata.tables
        }

    assert await asyncio.to_thread(read, url, columns) == {
        name: {(column.name, bool(column.nullable)) for column in table.columns}
        for name, table in metadata.tables.items()
    }


async def test_many_may_open_a_new_ledger_at_once(url: str) -> None:
    stores = await asyncio.gather(*(open_store(url) for _ in range(6)))
    for number, store in enumerate(stores):
        store.settle(charged("1", id=str(number)))
        await store.close()
    async with Ledger.open(url) as ledger:
        assert len(await ledger.entries()) == 6


async def test_a_writer_of_the_version_before_may_go_on(url: str) -> None:
    await (await open_store(url)).close()
    await asyncio.to_thread(execute, url, *VERSION_1[-3:])
    async with Ledger.open(url) as ledger:
        assert len(await ledger.entries()) == 2


async def test_a_ledger_of_a_later_version_is_left_alone(url: str) -> None:
    await (await open_store(url)).close()
    await asyncio.to_thread(
        execute, url, f"INSERT INTO fastroai_schema (version) VALUES ({CURRENT + 1})"
    )
    with pytest.raises(
        LedgerUnavailableError, match=f"version {CURRENT + 1}.*knows up to {CURRENT}"
    ):
        await open_store(url)


async def test_an_interrupted_migration_leaves_the_version_before(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(execute, url, *VERSION_1)
    monkeypatch.setitem(MIGRATIONS, CURRENT, (*MIGRATIONS[CURRENT], "this is no SQL"))
    with pytest.raises(LedgerUnavailableError):
        await open_store(url)
    assert await asyncio.to_thread(read, url, version_of) == 1
    monkeypatch.undo()
    async with Ledger.open(url) as ledger:
        assert len(await ledger.entries()) == 2
