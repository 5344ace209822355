"""Statements for the driver of a database, past SQLAlchemy, which takes longer than they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Table

from .values import Row


class Insert:
    """An insert that leaves out what is there already, with `?` for parameters."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._names = [c.name for c in table.columns if not c.info.get("written_later")]
        self._values_of: Callable[[Row], tuple[Any, ...]] = itemgetter(*self._names)
        # Quoted: a dimension may have a name that is a word of SQL.
        columns = ", ".join(f'"{name}"' for name in self._names)
        self._into = f"INSERT INTO {table.name} ({columns})"
        marks = ", ".join("?" for _ in self._names)
        self.of_one = f"{self._into} VALUES ({marks}) ON CONFLICT DO NOTHING"
        """The statement of one row."""
        self._of_arrays = ""

    def values(self, rows: list[Row]) -> list[tuple[Any, ...]]:
        """The parameters of each row."""
        return [self._values_of(row) for row in rows]

    def at_once(self, rows: list[Row], dialect: Dialect) -> tuple[str, Sequence[Any]]:
        """The statement for PostgreSQL that takes all rows in one message, and its parameters:
        those of the only row, or an array for each column.
        """
        if len(rows) == 1:
            return self.of_one, self._values_of(rows[0])
        if not self._of_arrays:
            types = [self._table.c[name].type.compile(dialect) for name in self._names]
            arrays = ", ".join(f"CAST(? AS {type_}[])" for type_ in types)
            select = f"SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
            self._of_arrays = f"{self._into} {select}"
        return self._of_arrays, [[row[name] for row in rows] for name in self._names]


class Outdated(Exception):
    """What a transaction was to be done on does not hold any more; nothing of it is done."""


_DIVISION_BY_ZERO = "22012"
READ_COMMITTED = "read_committed"
"""How PostgreSQL isolates what writes: it sees what others committed while it waited for them."""


class Statements:
    """Statements for SQLite's driver on a connection, written with `?` for their parameters."""

    is_postgres = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.driver: Any = connection.connection.driver_connection

    @property
    def connection(self) -> Connection:
        """The connection, for what SQLAlchemy says better."""
        return self._connection

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

    def insert(self, insert: Insert, rows: list[Row]) -> None:
        """Insert rows but for those that are there already."""
        if len(rows) == 1:
            self.driver.execute(insert.of_one, *insert.values(rows))
        elif rows:
            self.driver.executemany(insert.of_one, insert.values(rows))

    def _many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        count: int = self.driver.executemany(sql, parameters).rowcount
        return count


class PostgresStatements(Statements):
    """The same for PostgreSQL, whose driver numbers parameters.

    Each way to a server and back takes as long as a commit. So rows to be inserted are sent with
    each other, not before something else is asked; and if nothing else is, in one statement that
    needs no transaction around it.
    """

    is_postgres = True

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._run_async: Any = connection.connection.dbapi_connection.run_async  # type: ignore[union-attr]
        self._transaction: Any = None
        self._to_insert: list[tuple[Insert, list[Row]]] = []
        self._at_end: Sequence[Any] = ()

    @property
    def connection(self) -> Connection:
        self._send()
        self._begin()
        return self._connection

    def rows(self, sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
        self._send()
        return self._fetch(_numbered(sql), *parameters)

    def run(self, sql: str, *parameters: Any) -> None:
        self.rows(sql, *parameters)

    def insert(self, insert: Insert, rows: list[Row]) -> None:
        if rows:
            self._to_insert.append((insert, rows))

    def insert_with(
        self,
        inserts: Sequence[tuple[Insert, list[Row]]],
        parts: Sequence[str],
        parameters: Sequence[Any],
        give: str,
    ) -> Sequence[tuple[Any, ...]]:
        """Insert rows as of `insert` within one statement.

        Args:
            parts: What else is to be done in it: named parts of a WITH.
            parameters: Of those.
            give: What selects that which it gives.
        """
        return self.rows(*self._at_once(inserts, parts, parameters, give))

    def end_with(
        self,
        inserts: Sequence[tuple[Insert, list[Row]]],
        parts: Sequence[str],
        parameters: Sequence[Any],
        condition: str,
    ) -> None:
        """Do the same as the last thing in the transaction, if a condition holds.

        If nothing else is asked, it needs no transaction around it.

        Args:
            condition: Of the parts and of the database as it is then; has the last of the
                parameters. `commit` raises `Outdated` unless it holds.
        """
        given, own = parameters[: -condition.count("?")], parameters[-condition.count("?") :]
        inserts, self._to_insert = [*self._to_insert, *inserts], []
        # Only an error undoes all of a statement.
        give = f"SELECT 1 / CASE WHEN {condition} THEN 1 ELSE 0 END"
        sql, *values = self._at_once(inserts, parts, given, give)
        self._at_end = _numbered(sql), *values, *own

    def _send(self) -> None:
        """Insert what is still to be inserted, in the transaction."""
        if left := self._left():
            self._fetch(*left)

    def commit(self) -> None:
        """Have done all that was asked.

        Raises:
            Outdated: The condition of `end_with` does not hold.
        """
        try:
            self._commit()
        except Exception as error:
            if getattr(error, "sqlstate", None) != _DIVISION_BY_ZERO or not self._at_end:
                raise
            self._roll_back()
            raise Outdated from error

    def _commit(self) -> None:
        if self._transaction is None:
            if left := self._at_end or self._left():
                self._run_async(lambda driver: driver.fetch(*left))
            return
        self._send()
        if self._at_end:
            self._fetch(*self._at_end)
        if self._connection.in_transaction():  # within this one
            self._connection.commit()
        self._run_async(lambda _: self._transaction.commit())

    def _roll_back(self) -> None:
        if self._transaction is not None:
            if self._connection.in_transaction():
                self._connection.rollback()
            self._run_async(lambda _: self._transaction.rollback())

    def _fetch(self, sql: str, *parameters: Any) -> Sequence[tuple[Any, ...]]:
        self._begin()
        found: Sequence[tuple[Any, ...]] = self._run_async(
            lambda driver: driver.fetch(sql, *parameters)
        )
        return found

    def _begin(self) -> None:
        if self._transaction is None:
            # As SQLAlchemy begins its own, which is then a part of this one.
            self._transaction = self.driver.transaction(isolation=READ_COMMITTED)
            self._run_async(lambda _: self._transaction.start())

    def _left(self) -> Sequence[Any]:
        """A statement that inserts all that is still to be inserted, if there is any."""
        inserts, self._to_insert = self._to_insert, []
        if not inserts:
            return ()
        sql, *parameters = self._at_once(inserts, (), (), "SELECT 1")
        return _numbered(sql), *parameters

    def _at_once(
        self,
        inserts: Sequence[tuple[Insert, list[Row]]],
        parts: Sequence[str],
        parameters: Sequence[Any],
        give: str,
    ) -> Sequence[Any]:
        parts, parameters = list(parts), list(parameters)
        for number, (insert, rows) in enumerate(inserts):
            if rows:
                sql, values = insert.at_once(rows, self._connection.dialect)
                parts.append(f"inserted_{number} AS ({sql})")
                parameters += values
        return f"WITH {', '.join(parts)} {give}", *parameters

    def _many(self, sql: str, parameters: Sequence[tuple[Any, ...]]) -> int:
        counted = f"WITH changed AS ({sql} RETURNING 1) SELECT COUNT(*) FROM changed"
        return sum(int(self.rows(counted, *row)[0][0]) for row in parameters)


@cache
def _numbered(sql: str) -> str:
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
