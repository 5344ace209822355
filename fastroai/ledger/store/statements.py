"""Parts of statements that SQLite and PostgreSQL say differently, or that SQLAlchemy is slow at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    bindparam,
    func,
    literal_column,
    select,
    text,
)

from .schema import HALF


def whole(value: int) -> ColumnElement[int]:
    """A number within an expression.

    As a parameter it would be another expression for PostgreSQL each time.
    """
    return literal_column(str(value), BigInteger)


def halves(numbers: Iterable[ColumnElement[Any]]) -> Iterator[ColumnElement[Any]]:
    """The two parts of each number whose sums no integer of a database outgrows."""
    for number in numbers:
        yield number // whole(HALF)
        yield number % whole(HALF)


def is_one_of(
    connection: Connection, values: Sequence[str | int], column: ColumnElement[Any]
) -> ColumnElement[bool]:
    """Whether a column has one of some values, however many. Not to be negated."""
    if connection.dialect.name == "postgresql":
        # A parameter each would be too many from 32,768 on.
        return column == func.any(bindparam(None, values, type_=ARRAY(column.type), unique=True))
    each = func.json_each(json.dumps(values)).table_valued("value")
    return column.in_(select(each.c.value))


def row_key(connection: Connection, table: Table) -> ColumnElement[Any]:
    """What finds a table's rows again soonest, until the transaction ends."""
    if connection.dialect.name == "postgresql":
        [key] = table.primary_key
        return key
    # In the order in which they were written: by ids that are random, each row is another page.
    return literal_column(f"{table.name}.rowid", BigInteger)


def contains(
    connection: Connection, column: ColumnElement[Any], fragments: Sequence[str]
) -> list[ColumnElement[bool]]:
    """For each fragment, whether a text has it."""
    return [func.coalesce(position(connection, column, one), 0) > 0 for one in fragments]


def position(
    connection: Connection, column: ColumnElement[Any], fragment: str
) -> ColumnElement[int]:
    """Where a text has a fragment, from 1; 0: nowhere."""
    if connection.dialect.name == "postgresql":
        return func.strpos(column, fragment)
    return func.instr(column, fragment)


def join_by_index(connection: Connection) -> None:
    """Have PostgreSQL look up the outcomes of few entries one by one, until the transaction ends.

    It expects many while the statistics are older than the entries, and then reads all outcomes.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL enable_hashjoin = off"))
        connection.execute(text("SET LOCAL enable_mergejoin = off"))


def insert_rows(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    also: str = "",
) -> None:
    """Insert rows past SQLAlchemy, which takes longer for each than the database does.

    Args:
        also: What follows in the statement, such as what is done where there is such a row.
    """
    if not rows:
        return
    columns = ", ".join(f'"{name}"' for name in names)
    into = f"INSERT INTO {table.name} ({columns})"
    if connection.dialect.name == "postgresql":
        # All rows in one message, by columns: one by one, PostgreSQL takes ten times as long.
        types = (table.c[name].type.compile(connection.dialect) for name in names)
        arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(types, 1))
        values = tuple(map(list, zip(*rows, strict=True)))
        connection.exec_driver_sql(f"{into} SELECT * FROM unnest({arrays}) {also}", values)
        return
    marks = ", ".join("?" * len(names))
    connection.exec_driver_sql(f"{into} VALUES ({marks}) {also}", list(rows))
