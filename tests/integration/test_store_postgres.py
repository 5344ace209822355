"""A ledger in PostgreSQL."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fastroai.usage import LedgerEntry
from fastroai.usage.selection import Selection
from fastroai.usage.store.database import Database, database_url
from fastroai.usage.store.reading import read_entries, read_totals
from fastroai.usage.store.rows import as_stored
from fastroai.usage.totals import GROUPINGS, totals_of
from tests.support.ledger_entries import entries, fill, selections


def test_on_postgresql_totals_are_the_same(postgres_url: str) -> None:
    database = Database(database_url(postgres_url), writes=True)
    database.prepare()

    @given(st.lists(entries(), max_size=6), selections)
    @settings(max_examples=15, deadline=None)
    def check(booked: list[LedgerEntry], selection: Selection) -> None:
        fill(database, booked)
        found = database.run(lambda connection: read_entries(connection, selection))
        stored = sorted(map(as_stored, booked), key=lambda entry: (entry.sent_at, entry.id))
        assert found == [entry for entry in stored if selection.matches(entry)]
        for by in (None, *GROUPINGS, "tag:team"):
            assert database.run(lambda c, by=by: read_totals(c, selection, by)) == totals_of(found, by)

    try:
        check()
    finally:
        database.close()
