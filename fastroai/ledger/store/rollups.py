"""Sums kept beside the entries: of a group's days, and of the days of a run's parts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Table, and_, func, select, update

from ...pricing.money import EXACT
from .numbers import GROUP_PARTS, Key, numbers_of_parts, part_of
from .schema import AMOUNTS, COUNTS, DAY, HALF, HALVES, groups, run_sums, summed, sums
from .statements import halves, insert_rows, is_one_of, whole

_NUMBERS = (*COUNTS, *HALVES, "entries")


class Rollups:
    """What is to be added to the sums, written in one go."""

    def __init__(self) -> None:
        self._rows: dict[Table, dict[Key, list[Sequence[int]]]] = {sums: {}, run_sums: {}}
        self._exact: dict[Table, dict[Key, dict[str, Decimal]]] = {sums: {}, run_sums: {}}

    def add(
        self,
        run: int,
        group: int,
        part: int,
        day: int,
        numbers: Sequence[int],
        exact: str | None = None,
        sign: int = 1,
    ) -> None:
        """Add an entry, or take it out.

        Args:
            part: The group without what its run's steps did.
            numbers: Of `COUNTS` and `AMOUNTS`.
            exact: JSON of amounts to be added to those.
        """
        added = (*numbers, 1) if sign > 0 else [-number for number in (*numbers, 1)]
        for table, key in ((sums, (group, day)), (run_sums, (run, part, day))):
            self._rows[table].setdefault(key, []).append(added)
            if exact is not None:
                self.add_exact(table, key, exact, sign)

    def add_exact(self, table: Table, key: Key, exact: str, sign: int = 1) -> None:
        """Add amounts of one entry that no column of a table holds."""
        amounts = self._exact[table].setdefault(key, {})
        for name, usd in json.loads(exact).items():
            if name in AMOUNTS:
                change = EXACT.multiply(Decimal(usd), sign)
                amounts[name] = EXACT.add(amounts.get(name, Decimal(0)), change)

    def write(self, connection: Connection) -> None:
        """Add all of it to the tables."""
        for table, of_key in self._rows.items():
            add_numbers(connection, table, of_key)
        for table, exact in self._exact.items():
            for key, amounts in exact.items():
                _add_exact(connection, table, key, amounts)


def add_numbers(
    connection: Connection, table: Table, of_key: Mapping[Key, Sequence[Sequence[int]]]
) -> None:
    keys = [column.name for column in table.primary_key]
    more = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in _NUMBERS)
    also = f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {more}"
    rows = [(*key, *sum_of(found)) for key, found in of_key.items()]
    insert_rows(connection, table, [*keys, *_NUMBERS], rows, also)


def sum_of(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The numbers of one row of a table."""
    *found, entries = map(sum, zip(*rows, strict=True))
    counts, amounts = found[: len(COUNTS)], found[len(COUNTS) :]
    return (*counts, *(half for amount in amounts for half in divmod(amount, HALF)), entries)


def _add_exact(
    connection: Connection, table: Table, key: Key, amounts: Mapping[str, Decimal]
) -> None:
    is_it = and_(*(column == value for column, value in zip(table.primary_key, key, strict=True)))
    before: dict[str, Any] = json.loads(
        connection.scalar(select(table.c.exact).where(is_it)) or "{}"
    )
    found = {name: Decimal(usd) for name, usd in before.items()}
    for name, usd in amounts.items():
        found[name] = EXACT.add(found.get(name, Decimal(0)), usd)
    exact = json.dumps({name: str(usd) for name, usd in found.items()})
    connection.execute(update(table).where(is_it).values(exact=exact))


_lacks_part = groups.c.part.is_(None)


def lacks_sums_of_runs(connection: Connection) -> bool:
    """Whether there are groups of a version that did not sum up runs."""
    return connection.scalar(select(groups.c.id).where(_lacks_part).limit(1)) is not None


def number_parts(connection: Connection, lacking: Sequence[Key]) -> None:
    """Write to groups, each with its id and the values of `GROUP_PARTS`, which part they are of."""
    parts = numbers_of_parts(connection, {row[1:] for row in lacking})
    ids: dict[int, list[int]] = {}
    for row in lacking:
        ids.setdefault(parts[part_of(row[1:])], []).append(row[0])
    for part, those in ids.items():
        is_of_part = is_one_of(connection, those, groups.c.id)
        connection.execute(update(groups).where(is_of_part).values(part=part))


def add_sums_of_runs(connection: Connection) -> None:
    """Sum up the runs of such groups, if there are any.

    In one transaction, for which others wait once: seconds, if there are a million entries.
    """
    texts = [groups.c[name] for name in GROUP_PARTS]
    statement = select(groups.c.id, *texts).where(_lacks_part)
    lacking: list[Key] = list(map(tuple, connection.execute(statement)))
    if not lacking:
        return
    number_parts(connection, lacking)
    key = summed.c.run, groups.c.part, summed.c.sent_at // whole(DAY)
    entries = select(*key).join(groups, groups.c.id == summed.c.group_id)
    entries = entries.where(is_one_of(connection, [row[0] for row in lacking], groups.c.id))
    measures = [*(summed.c[name] for name in COUNTS), *halves(summed.c[name] for name in AMOUNTS)]
    rows = entries.add_columns(*map(func.sum, measures), func.count()).group_by(*key)
    names = [*(column.name for column in run_sums.primary_key), *_NUMBERS]
    connection.execute(run_sums.insert().from_select(names, rows))
    rollups = Rollups()
    exact = entries.add_columns(summed.c.exact).where(summed.c.exact.is_not(None))
    for *of_run, text in connection.execute(exact):
        rollups.add_exact(run_sums, tuple(of_run), text)
    rollups.write(connection)
