"""Statements for the driver of a database, past SQLAlchemy, which takes longer than they do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import sqlite

from .values import Row


def insert_of(dialect: Dialect) -> Any:
    """The `insert` of a kind of database, which knows what to do about a conflict."""
    if dialect.name != "postgresql":
        return sqlite.insert
    # Only here: to import it takes as long as all else that a small ledger needs of SQLAlchemy.
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


class Insert:
    """An insert that leaves out what is there already.

    It is compiled once, which is most of what it costs.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._compiled: tuple[str, list[str]] | None = None

    def compiled(self, dialect: Dialect) -> tuple[str, list[str]]:
        """The statement for a driver, and the names of its parameters in their order."""
        if self._compiled is None:
            insert = insert_of(dialect)
            columns = self._table.columns
            names = [column.name for column in columns if not column.info.get("written_later")]
            compiled = (
                insert(self._table)
                .on_conflict_do_nothing()
                .compile(dialect=dialect, column_keys=names)
            )
            self._compiled = compiled.string, list(compiled.positiontup or ())
        return self._compiled

    def values(self, rows: list[Row], dialect: Dialect) -> tuple[str, list[tuple[Any, ...]]]:
        """The statement, and the parameters of each row."""
        sql, names = self.compiled(dialect)
        values = itemgetter(*names)
        return sql, [values(row) for row in rows]


class Statements:
    """Statements for SQLite's driver on a connection, written with `?` for their parameters."""

    is_postgres = False

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._driver: Any = connection.connection.driver_connection

    def rows(self, sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
        """What a statement gives."""
        found: list[tuple[Any, ...]] = self._driver.execute(sql, parameters).fetchall()
        return found

    def run(self, sql: str, *parameters: Any) -> None:
        """Execute a statement that gives nothing."""
        self._driver.execute(sql, parameters)

    def many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        """Execute a statement once for each row of parameters; how many rows that changed."""
        return self._many(sql, parameters) if parameters else 0

    def insert(self, insert: Insert, rows: list[Row]) -> None:
        """Insert rows but for those that are there already."""
        if rows:
            self._many(*insert.values(rows, self.connection.dialect))

    def _many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        count: int = self._driver.executemany(sql, parameters).rowcount
        return count


class PostgresStatements(Statements):
    """The same for PostgreSQL, whose driver numbers parameters."""

    is_postgres = True

    def rows(self, sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
        result = self.connection.exec_driver_sql(_numbered(sql), parameters)
        return cast("Sequence[tuple[Any, ...]]", result.all())

    def run(self, sql: str, *parameters: Any) -> None:
        self.connection.exec_driver_sql(_numbered(sql), parameters)

    def _many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        return self.connection.exec_driver_sql(_numbered(sql), list(parameters)).rowcount


@cache
def _numbered(sql: str) -> str:
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
