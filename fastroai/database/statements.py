"""Statements for the driver of a database, past SQLAlchemy, which takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    It is compiled once for each kind of database, which is most of what it costs.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._names = [c.name for c in table.columns if not c.info.get("written_later")]
        self._compiled: dict[str, tuple[str, Callable[[Row], tuple[Any, ...]]]] = {}
        self._of_arrays = ""

    def values(self, rows: list[Row], dialect: Dialect) -> tuple[str, list[tuple[Any, ...]]]:
        """The statement, and the parameters of each row."""
        if dialect.name not in self._compiled:
            insert = insert_of(dialect)
            compiled = (
                insert(self._table)
                .on_conflict_do_nothing()
                .compile(dialect=dialect, column_keys=self._names)
            )
            names = compiled.positiontup or ()
            self._compiled[dialect.name] = compiled.string, itemgetter(*names)
        sql, values_of = self._compiled[dialect.name]
        return sql, [values_of(row) for row in rows]

    def arrays(self, rows: list[Row], dialect: Dialect) -> tuple[str, list[list[Any]]]:
        """The statement for PostgreSQL that takes all rows at once, and its arrays: one for each
        column.
        """
        names = self._names
        if not self._of_arrays:
            types = [self._table.c[name].type.compile(dialect) for name in names]
            arrays = ", ".join(f"CAST(? AS {type_}[])" for type_ in types)
            into = f"INSERT INTO {self._table.name} ({', '.join(names)})"
            select = f"SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
            self._of_arrays = f"{into} {select}"
        return self._of_arrays, [[row[name] for row in rows] for name in names]


class Statements:
    """Statements for SQLite's driver on a connection, written with `?` for their parameters."""

    is_postgres = False

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.driver: Any = connection.connection.driver_connection

    def rows(self, sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
        """What a statement gives."""
        found: list[tuple[Any, ...]] = self.driver.execute(sql, parameters).fetchall()
        return found

    def run(self, sql: str, *parameters: Any) -> None:
        """Execute a statement that gives nothing."""
        self.driver.execute(sql, parameters)

    def many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        """Execute a statement once for each row of parameters; how many rows that changed."""
        return self._many(sql, parameters) if parameters else 0

    def insert_at_once(
        self,
        inserts: Sequence[tuple[Insert, list[Row]]],
        parts: Sequence[str],
        parameters: Sequence[Any],
        give: str,
    ) -> Sequence[tuple[Any, ...]]:
        """Insert rows as of `insert` within one statement for PostgreSQL: each way to a server and
        back takes as long as a commit.

        Args:
            parts: What else is to be done in it: named parts of a WITH.
            parameters: Of those.
            give: What selects that which it gives.
        """
        parts, parameters = list(parts), list(parameters)
        for number, (insert, rows) in enumerate(inserts):
            if rows:
                sql, arrays = insert.arrays(rows, self.connection.dialect)
                parts.append(f"inserted_{number} AS ({sql})")
                parameters += arrays
        return self.rows(f"WITH {', '.join(parts)} {give}", *parameters)

    def insert(self, insert: Insert, rows: list[Row]) -> None:
        """Insert rows but for those that are there already."""
        if not rows:
            return
        sql, values = insert.values(rows, self.connection.dialect)
        if len(values) == 1:
            self.run(sql, *values[0])
        else:
            self._many(sql, values)

    def _many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        count: int = self.driver.executemany(sql, parameters).rowcount
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
