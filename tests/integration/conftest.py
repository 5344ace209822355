"""What tests of the ledger's tables share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastroai.database.engine import Database, database_url


@pytest.fixture(scope="module", params=["memory", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The ledger's tables, empty, in SQLite's memory and in PostgreSQL."""
    url = "memory://"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_server").new_database()
    found = Database(database_url(url), writes=True)
    found.prepare()
    yield found
    found.close()
