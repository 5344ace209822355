"""Old entries are moved to files: what they add up to stays, and none is lost or double."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Insert
from fastroai.database.values import microseconds
from fastroai.errors import LedgerUnavailableError
from fastroai.ledger.aggregation import Totals
from fastroai.ledger.archive_files import ArchiveFormat, write_archive
from fastroai.ledger.store import archiving, open_store, schema
from fastroai.ledger.store.mapping import digest_of_id, intent_row, outcome_row
from fastroai.ledger.store.statements import insert_rows
from fastroai.ledger.store.summing import sum_up
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.ledger_entries import START, charged

HORIZON = START + timedelta(days=2, minutes=20)


ON_SQLITE = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True
)
"""For what no statement is about that PostgreSQL has otherwise."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_ledger"))


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "ENTRIES_IN_A_FILE", 25)


def booked() -> list[LedgerEntry]:
    """Entries of four days, with amounts no column holds among them, and lost ones."""
    found = [
        charged(
            f"0.{n}00000000000000{n}" if n % 9 == 0 else f"0.00{n}",
            id=f"e{n}",
            run_id=f"run-{n % 4}",
            pipeline=f"p{n % 2}",
            step_id="s",
            tags={"team": 'a,"b"\n'} if n % 3 else {},
            sent_at=START + timedelta(hours=n),
            error=None,
        )
        for n in range(90)
    ]
    lost = LedgerEntry(id="lost", sent_at=START, upper_bound_usd=Decimal("0.25"))
    return [*found, lost]


async def fill(url: str) -> list[LedgerEntry]:
    store = await open_store(url)
    entries = booked()
    for entry in entries:
        if entry.settled_at is None:
            await store.intend(entry)
        else:
            store.settle(entry)
    await store.close()
    return entries


@pytest.fixture
async def reader(url: str) -> AsyncIterator[Ledger]:
    """One ledger for all that a test reads, as each that is opened would compile all queries."""
    async with Ledger.open(url) as ledger:
        yield ledger


async def all_totals(reader: Ledger) -> list[tuple[Totals, ...]]:
    """Sums by everything, and of parts that cut days and hours."""
    found = [await reader.totals(by) for by in (None, "step", "day", "run", "tag:team")]
    for fields in (
        {"since": START + timedelta(hours=5, minutes=7)},
        {"until": START + timedelta(hours=31, minutes=7)},
        {"run_id": "run-1", "since": START + timedelta(hours=5, minutes=7)},
        {"pipeline": "p0", "state": EntryState.CHARGED},
        {"tag": "team"},
    ):
        found += [await reader.totals(by, **fields) for by in ("step", "run")]
    return found


async def archive(url: str, folder: Path) -> list[archiving.Archive]:
    async with Ledger.open(url) as ledger:
        return await ledger.archive(HORIZON, folder, form="csv")


def archived(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted(folder.glob("*.csv.gz")):
        with gzip.open(path, "rt", newline="") as file:
            rows += csv.DictReader(file)
    return rows


async def each_is_once(url: str, folder: Path, entries: list[LedgerEntry]) -> None:
    async with Ledger.open(url) as ledger:
        left = [entry.id for entry in await ledger.entries()]
    found = Counter([*left, *(row["id"] for row in archived(folder))])
    assert found == Counter(entry.id for entry in entries)


async def test_totals_before_are_totals_after(url: str, reader: Ledger, tmp_path: Path) -> None:
    entries = await fill(url)
    before = await all_totals(reader)
    folder = tmp_path / "archive"
    found = await archive(url, folder)
    old = [e for e in entries if e.sent_at < HORIZON and e.state is EntryState.CHARGED]
    assert [one.entries for one in found] == [25, len(old) - 25]
    assert await all_totals(reader) == before
    await each_is_once(url, folder, entries)
    rows = {row["id"]: row for row in archived(folder)}
    assert {e.id: (e.cost_usd, e.attribution.tags) for e in old} == {
        name: (Decimal(row["cost_usd"]), json.loads(row["tags"])) for name, row in rows.items()
    }
    async with Ledger.open(url) as ledger:
        await ledger.append(charged("1", id="new", sent_at=START + timedelta(days=3)))
        [whole] = await ledger.totals()
    assert whole.cost_usd == before[0][0].cost_usd + 1
    assert await archive(url, folder) == []


@ON_SQLITE
async def test_an_archived_entry_that_is_booked_again_counts_once(
    url: str, reader: Ledger, tmp_path: Path
) -> None:
    entries = await fill(url)
    before = await all_totals(reader)
    folder = tmp_path / "archive"
    await archive(url, folder)
    store = await open_store(url)
    for entry in entries[:5]:  # as a replayed record does, or an outbox
        store.settle(entry)
    await store.close()
    assert await all_totals(reader) == before
    await archive(url, folder)
    assert await all_totals(reader) == before
    await each_is_once(url, folder, entries)


@ON_SQLITE
async def test_an_archived_entry_that_is_booked_again_is_not_listed(
    url: str, tmp_path: Path
) -> None:
    entries = await fill(url)
    await archive(url, tmp_path / "archive")
    store = await open_store(url)
    store.settle(entries[0])
    await store.close()
    async with Ledger.open(url) as ledger:
        assert entries[0].id not in [entry.id for entry in await ledger.entries()]
        [total] = await ledger.totals(id=entries[0].id)
        with pytest.raises(ValueError, match="in an archive"):
            await ledger.append(entries[0])
    assert total.requests == 0


@ON_SQLITE
async def test_more_archived_entries_may_be_booked_again_than_a_statement_has_parameters(
    url: str, tmp_path: Path
) -> None:
    entries = await fill(url)
    await archive(url, tmp_path / "archive")
    number = 33_000

    def book_again() -> None:
        database = Database(database_url(url), writes=True)
        again = [charged("9", id=f"again-{n}", sent_at=START) for n in range(number)]
        database.insert(
            (Insert(schema.intents), list(map(intent_row, again))),
            (Insert(schema.outcomes), list(map(outcome_row, again))),
        )
        # As they were archived.
        names = [column.name for column in schema.summed.columns]
        zeros = [0] * (len(names) - 5)
        rows = [(microseconds(START), digest_of_id(e.id), 1, 1, *zeros, None) for e in again]
        database.run(lambda connection: insert_rows(connection, schema.summed, names, rows))
        database.close()

    await asyncio.to_thread(book_again)
    async with Ledger.open(url) as ledger:
        before = await ledger.totals()
        assert sum(total.requests for total in before) == len(entries)
        assert f"again-{number - 1}" not in [entry.id for entry in await ledger.entries()]
        await asyncio.to_thread(ledger_sums, url)
        assert await ledger.totals() == before


async def test_entries_are_read_for_an_archive_while_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await fill(url)
    select_entries = archiving.select_entries

    def write_meanwhile(*arguments: Any, **options: Any) -> list[LedgerEntry]:
        with closing(sqlite3.connect(tmp_path / "ledger.db", timeout=0.1)) as other:
            other.execute("CREATE TABLE IF NOT EXISTS others (number INTEGER)")
        return select_entries(*arguments, **options)

    monkeypatch.setattr(archiving, "select_entries", write_meanwhile)
    assert await archive(url, tmp_path / "archive")


@pytest.mark.parametrize(
    ("url", "moment"),
    [
        ("sqlite", "written"),
        ("sqlite", "removed"),
        ("postgresql", "removing"),
        *(
            pytest.param(database, moment, marks=pytest.mark.long)
            for database, moment in (
                ("sqlite", "removing"),
                ("postgresql", "written"),
                ("postgresql", "removed"),
            )
        ),
    ],
    indirect=["url"],
)
async def test_an_archive_that_is_interrupted_loses_nothing_and_is_finished_later(
    url: str, reader: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    entries = await fill(url)
    before = await all_totals(reader)
    folder = tmp_path / "archive"

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "written":
            patch.setattr(archiving, "_remove", killed)
        elif moment == "removing":
            patch.setattr(schema.archives, "insert", killed)
        else:
            patch.setattr(archiving, "finish_archive", killed)
        with pytest.raises((KeyboardInterrupt, LedgerUnavailableError)):
            await archive(url, folder)
    assert archived(folder) == []
    assert await all_totals(reader) == before
    finished = await archive(url, folder)
    assert sum(one.entries for one in finished) == len(archived(folder)) > 25
    assert await all_totals(reader) == before
    await each_is_once(url, folder, entries)


async def test_two_that_archive_at_once_move_each_entry_once(
    url: str, reader: Ledger, tmp_path: Path
) -> None:
    entries = await fill(url)
    before = await all_totals(reader)
    folder = tmp_path / "archive"
    both = await asyncio.gather(archive(url, folder), archive(url, folder), return_exceptions=True)
    assert all(isinstance(one, list | LedgerUnavailableError) for one in both)
    await archive(url, folder)
    await each_is_once(url, folder, entries)
    assert await all_totals(reader) == before


@ON_SQLITE
async def test_a_file_that_another_call_has_named_meanwhile_is_archived(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = await fill(url)
    remove = archiving._remove

    def remove_and_be_finished(database: Database, path: Path, these: Any) -> None:
        remove(database, path, these)
        assert list(archiving._finish(database, path.parent))

    monkeypatch.setattr(archiving, "_remove", remove_and_be_finished)
    folder = tmp_path / "archive"
    moved = await archive(url, folder)
    assert sum(one.entries for one in moved) == len(archived(folder)) > 25
    await each_is_once(url, folder, entries)


PROGRAM = """
import asyncio, sys
from datetime import datetime
from pathlib import Path
from fastroai.ledger.store import archiving
from fastroai.usage import Ledger
archiving.ENTRIES_IN_A_FILE = 2

async def main(url, before, folder):
    async with Ledger.open(url) as ledger:
        print("ready", flush=True)
        await ledger.archive(datetime.fromisoformat(before), Path(folder), form="csv")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.long
async def test_killed_at_any_moment_an_archive_loses_nothing(
    url: str, reader: Ledger, tmp_path: Path
) -> None:
    entries = await fill(url)
    before = await all_totals(reader)
    folder = tmp_path / "archive"

    def kill_one() -> None:
        command = [sys.executable, "-c", PROGRAM, url, HORIZON.isoformat(), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.08))
            process.send_signal(signal.SIGKILL)

    for _ in range(12):
        await asyncio.to_thread(kill_one)
        assert await all_totals(reader) == before
    await archive(url, folder)
    await each_is_once(url, folder, entries)
    assert await all_totals(reader) == before


async def test_parquet_has_the_same_where_pyarrow_is_installed(tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    entries = {entry.id: entry for entry in await fill(url)}
    async with Ledger.open(url) as ledger:
        files = await ledger.archive(HORIZON, tmp_path / "archive")
    rows = [row for one in files for row in parquet.read_table(one.path).to_pylist()]
    assert len(rows) == sum(one.entries for one in files) > 25
    assert all(Decimal(row["cost_usd"]) == entries[row["id"]].cost_usd for row in rows)


async def test_without_pyarrow_there_is_no_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr("fastroai.ledger.archive_files.find_spec", missing)
    async with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        with pytest.raises(ValueError, match="pyarrow"):
            await ledger.archive(HORIZON, tmp_path, form="parquet")
        with pytest.raises(ValueError, match="'xml'"):
            await ledger.archive(HORIZON, tmp_path, form="xml")
        with pytest.raises(ValueError, match="timezone"):
            await ledger.archive(HORIZON.replace(tzinfo=None), tmp_path)


def test_a_file_that_takes_only_a_part_is_no_archive(tmp_path: Path) -> None:
    large = ArchiveFormat(".csv.gz", lambda rows: b"x" * 20_000)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a disk that is nearly full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        with pytest.raises(OSError, match="took only a part"):
            write_archive(tmp_path / "archive", booked()[:3], large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@ON_SQLITE
async def test_times_the_wrong_way_round_select_nothing(url: str) -> None:
    await fill(url)
    async with Ledger.open(url) as ledger:
        await asyncio.to_thread(ledger_sums, url)
        turned = {"since": START + timedelta(days=3), "until": START + timedelta(days=1, hours=5)}
        assert await ledger.entries(**turned) == []
        [total] = await ledger.totals(**turned)
    assert total.requests == 0


def ledger_sums(url: str) -> None:
    database = Database(database_url(url), writes=True)
    sum_up(database)
    database.close()
