"""Sums kept beside the entries: whenever they are brought up to date, they are exactly theirs."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from sqlalchemy import text

from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Insert
from fastroai.ledger.aggregation import GROUPINGS, totals_of
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.store import open_store, summing
from fastroai.ledger.store.mapping import intent_row, outcome_row
from fastroai.ledger.store.numbers import Numbers
from fastroai.ledger.store.queries import read_entries
from fastroai.ledger.store.schema import (
    archives,
    groups,
    intents,
    outcomes,
    run_sums,
    runs,
    summed,
    sums,
)
from fastroai.ledger.store.totals import read_totals
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.examples import examples
from tests.support.ledger_entries import START, charged, entries, selections

SUMS = (groups, runs, summed, sums, run_sums, archives)

by_any = st.sampled_from([None, *GROUPINGS, "tag:team"])
# Half an hour off, to cut hours.
cuts = st.none() | st.integers(0, 240).map(lambda half: START + timedelta(minutes=30 * half))


def empty(database: Database) -> None:
    def work(connection: Any) -> None:
        for table in (intents, outcomes, *SUMS):
            connection.execute(table.delete())

    database.run(work)


def book(database: Database, entry: LedgerEntry) -> None:
    settled = [outcome_row(entry)] if entry.settled_at is not None else []
    database.insert((Insert(intents), [intent_row(entry)]), (Insert(outcomes), settled))


def add_to_sums(database: Database, chunk: int = 120) -> int:
    return database.run(lambda connection: summing.add_to_sums(connection, chunk, Numbers()))


def later_outcomes(entry: LedgerEntry) -> st.SearchStrategy[list[LedgerEntry]]:
    """What is booked of an entry one after the other: it is sent, perhaps given up, perhaps
    settled.
    """
    sent = replace(entry, state=EntryState.UNSETTLED, settled_at=None)
    given_up = replace(sent, settled_at=entry.sent_at, error="gone", cost_usd=Decimal("0.5"))
    return st.sampled_from([[entry], [sent, entry], [sent, given_up, entry], [sent, given_up]])


@st.composite
def histories(draw: st.DrawFn) -> list[list[LedgerEntry]]:
    """Bookings in their order, in batches after each of which the sums are brought up to date."""
    booked = draw(st.lists(entries(), min_size=1, max_size=5, unique_by=lambda entry: entry.id))
    stages = [draw(later_outcomes(entry)) for entry in booked]
    return [[of[number] for of in stages if number < len(of)] for number in range(3)]


@given(histories(), selections, by_any, cuts, cuts, st.integers(1, 3))
@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sums_are_those_of_the_entries_after_each_booking_and_each_time_they_are_updated(
    database: Database,
    history: list[list[LedgerEntry]],
    selection: LedgerFilter,
    by: str | None,
    since: datetime | None,
    until: datetime | None,
    chunk: int,
) -> None:
    empty(database)
    selection = replace(selection, since=since, until=until)
    for batch in history:
        for entry in batch:
            book(database, entry)
        agree(database, selection, by)
        add_to_sums(database, chunk)
        agree(database, selection, by)
        while add_to_sums(database, chunk):
            pass
        agree(database, selection, by)
        agree(database, LedgerFilter(), by)


def agree(database: Database, selection: LedgerFilter, by: str | None) -> None:
    found = database.run(lambda connection: read_entries(connection, selection))
    totals = database.run(lambda connection: read_totals(connection, selection, by))
    assert totals == totals_of(found, by)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_ledger"))


def not_summed(url: str) -> int:
    database = Database(database_url(url), writes=False)
    try:
        return database.run(lambda connection: summing.count_not_summed(connection, 10**6))
    finally:
        database.close()


def many(number: int) -> list[LedgerEntry]:
    return [
        charged(
            f"0.{number % 7}00000000{n % 10}01",
            id=f"{number}-{n}",
            run_id=f"run-{n % 9}",
            pipeline="digest",
            step_id=f"step-{n % 3}",
            sent_at=START + timedelta(minutes=n),
        )
        for n in range(300)
    ]


async def test_sums_are_exact_while_several_sum_up_write_and_read(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch is written whole, so a total is one of so many batches, whenever it is read."""
    monkeypatch.setattr("fastroai.ledger.store.summing.MANY", 50)
    expected = {Decimal(0)}
    whole = Decimal(0)
    for number in range(4):
        whole += totals_of(many(number))[0].cost_usd
        expected.add(whole)
    async with Ledger.open(url) as first, Ledger.open(url) as second:
        seen = []

        async def read(ledger: Ledger) -> None:
            for _ in range(6):
                [total] = await ledger.totals()
                seen.append(total.cost_usd)

        def write() -> None:
            database = Database(database_url(url), writes=True)
            for booked in map(many, range(4)):
                database.insert(
                    (Insert(intents), list(map(intent_row, booked))),
                    (Insert(outcomes), list(map(outcome_row, booked))),
                )
            database.close()

        await asyncio.gather(asyncio.to_thread(write), read(first), read(second))
        assert set(seen) <= expected
        assert [total.cost_usd for total in await first.totals()] == [whole]
        booked = await second.entries()
        for by in ("run", "step", "day"):
            assert await second.totals(by) == totals_of(booked, by)
    assert await asyncio.to_thread(not_summed, url) == 0


async def test_a_writer_brings_the_sums_up_to_date_where_it_has_nothing_to_write(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroai.ledger.store.writer._IDLE", 0.01)
    monkeypatch.setattr("fastroai.ledger.store.writer._WORTH_SUMMING", 100)
    store = await open_store(url)
    for entry in many(1):
        store.settle(entry)
    await store.flush()

    def wait() -> None:
        while not_summed(url):
            time.sleep(0.02)

    async with asyncio.timeout(20):
        await asyncio.to_thread(wait)
    assert (await store.totals(LedgerFilter(), None)) == totals_of(many(1))
    await store.close()


async def test_a_process_that_dies_while_it_sums_up_leaves_sums_that_are_right(url: str) -> None:
    store = await open_store(url)
    for entry in many(2):
        store.settle(entry)
    await store.close()

    class Killed(BaseException):
        pass

    def half_way(connection: Any) -> None:
        summing.add_to_sums(connection, 100, Numbers())
        raise Killed

    def die() -> None:
        database = Database(database_url(url), writes=True)
        database.run(lambda connection: summing.add_to_sums(connection, 120, Numbers()))
        with pytest.raises(Killed):
            database.run(half_way)

    await asyncio.to_thread(die)
    assert await asyncio.to_thread(not_summed, url) == 180
    async with Ledger.open(url) as ledger:
        assert await ledger.totals("run") == totals_of(many(2), "run")


async def test_counts_that_outgrow_the_databases_integers_are_added_up(url: str) -> None:
    huge = [
        replace(entry, tokens=TokenCounts(input_tokens=2**62), request_count=1)
        for entry in many(1)[:5]
    ]
    store = await open_store(url)
    for entry in [*huge, *many(2)]:
        store.settle(entry)
    await store.flush()
    await asyncio.to_thread(sum_all, url)
    for by in (None, "run", "day"):
        assert await store.totals(LedgerFilter(), by) == totals_of([*huge, *many(2)], by)
    await store.close()
    assert await asyncio.to_thread(not_summed, url) == len(huge)


async def test_who_loses_a_race_to_sum_up_tries_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(postgres_url)
    for entry in many(1):
        store.settle(entry)
    await store.close()
    locked = summing._lock
    raced = []

    def lose(connection: Any) -> bool:
        found = locked(connection)
        if not raced:
            raced.append(True)
            # What another one adds once this transaction sees the moment before.
            connection.execute(text("SELECT pg_advisory_unlock_all()"))
            with ThreadPoolExecutor(1) as other:
                other.submit(sum_all_but_locked).result()
        return found

    def sum_all_but_locked() -> None:
        database = Database(database_url(postgres_url), writes=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(summing, "_lock", lambda connection: True)
            database.run(lambda connection: summing.add_to_sums(connection, 120, Numbers()))
        database.close()

    monkeypatch.setattr(summing, "_lock", lose)
    await asyncio.to_thread(sum_all, postgres_url)
    assert raced
    async with Ledger.open(postgres_url) as ledger:
        assert await ledger.totals("step") == totals_of(many(1), "step")


def sum_all(url: str) -> None:
    database = Database(database_url(url), writes=True)
    summing.sum_up(database)
    database.close()


def test_a_transaction_takes_as_many_entries_as_fit_its_time() -> None:
    pace = summing.Pace(0.1)
    first = pace.entries
    pace.took(first, 0.2)
    assert pace.entries == first // 2
    pace.took(pace.entries - 1, 0.001)  # there were no more: it says nothing
    assert pace.entries == first // 2
    for _ in range(20):
        pace.took(pace.entries, pace.entries / 50_000)
    assert 4_000 < pace.entries <= 5_000


async def test_runs_that_were_summed_up_before_there_were_sums_of_runs_get_them(url: str) -> None:
    """As after a migration: the sums of an earlier version know no parts."""
    store = await open_store(url)
    half = [replace(e, cost_usd=Decimal(1).scaleb(-20)) for e in many(2)[:40]] + many(1)
    for entry in half:
        store.settle(entry)
    await store.flush()
    await asyncio.to_thread(sum_all, url)

    def forget(connection: Any) -> None:
        connection.execute(run_sums.delete())
        connection.execute(groups.update().values(part=None))

    def as_before() -> None:
        database = Database(database_url(url), writes=True)
        database.run(forget)
        # A ledger that can't be changed.
        agree(database, LedgerFilter(), "run")
        database.close()

    await asyncio.to_thread(as_before)
    for by in ("run", "run", "pipeline"):
        assert await store.totals(LedgerFilter(), by) == totals_of(half, by)
    for entry in many(3):
        store.settle(entry)
    await store.flush()
    await asyncio.to_thread(sum_all, url)
    assert await store.totals(LedgerFilter(), "run") == totals_of([*half, *many(3)], "run")
    await store.close()


async def test_a_ledger_that_can_not_be_changed_is_read_without_the_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastroai.ledger.store.summing.MANY", 50)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    store = await open_store(url)
    for entry in many(3):
        store.settle(entry)
    await store.flush()
    monkeypatch.setattr("fastroai.database.sqlite.PATIENCE", 0.05)
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await store.totals(LedgerFilter(), "step") == totals_of(many(3), "step")
    await store.close()
    assert not_summed(url) == 300
