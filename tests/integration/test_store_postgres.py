"""A ledger in PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, Text, select

from fastroai.cli import main
from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Insert, Outdated, PostgresStatements, Statements
from fastroai.database.values import Row
from fastroai.errors import LedgerNotFoundError
from fastroai.ledger.aggregation import GROUPINGS, totals_of
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.store.mapping import as_stored, intent_row
from fastroai.ledger.store.queries import read_entries
from fastroai.ledger.store.statements import insert_rows
from fastroai.ledger.store.totals import read_totals
from fastroai.ledger.store.writer import INTENTS
from fastroai.usage import Ledger, LedgerEntry
from tests.support.examples import examples
from tests.support.ledger_entries import charged, entries, fill, fits, selections


@pytest.mark.hypothesis
def test_on_postgresql_totals_are_the_same(postgres_url: str) -> None:
    database = Database(database_url(postgres_url), writes=True)
    database.prepare()

    @given(st.lists(entries(), max_size=6), selections)
    @examples(15)
    def check(booked: list[LedgerEntry], selection: LedgerFilter) -> None:
        fill(database, booked)
        found = database.run(lambda connection: read_entries(connection, selection))
        stored = sorted(map(as_stored, booked), key=lambda entry: (entry.sent_at, entry.id))
        assert found == [entry for entry in stored if fits(selection, entry)]
        for by in (None, *GROUPINGS, "tag:team"):
            assert database.run(lambda c, by=by: read_totals(c, selection, by)) == totals_of(
                found, by
            )

    try:
        check()
    finally:
        database.close()


async def test_a_database_without_a_ledger_is_left_as_it_is_by_who_only_reads(
    postgres_url: str,
) -> None:
    for _ in range(2):
        with pytest.raises(LedgerNotFoundError):
            async with Ledger.open(postgres_url, create=False):
                pass
    async with Ledger.open(postgres_url) as ledger:
        await ledger.append(charged())
    async with Ledger.open(postgres_url, create=False) as ledger:
        assert len(await ledger.entries()) == 1


def test_the_command_reads_a_ledger_in_postgresql(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["costs", "--ledger", postgres_url]) == 1
    assert "There is no ledger in postgresql://" in capsys.readouterr().err

    async def book() -> None:
        async with Ledger.open(postgres_url) as ledger:
            for cost in ("0.5", "0.000000000001"):
                await ledger.append(charged(cost, pipeline="größe/a"))

    asyncio.run(book())
    assert main(["costs", "--ledger", postgres_url, "--by", "day", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["key"] for group in found["groups"]] == ["2026-03-01"]
    assert found["total"]["cost_usd"] == "0.500000000001"


@pytest.mark.parametrize("is_asked_before", [False, True])
def test_a_transaction_that_ends_on_a_condition_is_done_as_a_whole_or_not_at_all(
    postgres_ledger: str, is_asked_before: bool
) -> None:
    database = Database(database_url(postgres_ledger), writes=True)

    def book(statements: Statements, expected: int) -> None:
        if is_asked_before:
            statements.rows("SELECT 1")
        assert isinstance(statements, PostgresStatements)
        statements.insert(INTENTS, [intent_row(charged())])
        rows = [intent_row(charged()), intent_row(charged())]
        parts, condition = ["one AS (SELECT 1 AS n)"], "(SELECT n FROM one) = CAST(? AS BIGINT)"
        statements.end_with([(INTENTS, rows)], parts, [expected], condition)

    def count() -> int:
        [(found,)] = database.transact(lambda s: s.rows("SELECT count(*) FROM fastroai_intents"))
        return int(found)

    try:
        with pytest.raises(Outdated):
            database.transact(partial(book, expected=2))
        assert count() == 0
        database.transact(partial(book, expected=1))
        assert count() == 3
    finally:
        database.close()


def test_a_column_may_be_named_by_a_word_of_sql(postgres_url: str) -> None:
    table = Table("people", MetaData(), Column("user", Text), Column("order", BigInteger))
    database = Database(database_url(postgres_url), writes=True)
    rows: list[Row] = [{"user": "ann", "order": 1}, {"user": "bob", "order": 2}]

    def fill(connection: Connection) -> None:
        table.create(connection)
        insert_rows(connection, table, ("user", "order"), [("eve", 3)])

    try:
        database.run(fill)
        for batch in (rows[:1], rows):
            database.transact(lambda s, batch=batch: s.insert(Insert(table), batch))
        found = database.run(lambda connection: connection.execute(select(table)).all())
    finally:
        database.close()
    assert sorted(found) == [("ann", 1), ("ann", 1), ("bob", 2), ("eve", 3)]
