"""Sums of a ledger's entries: of those kept beside them, and of the entries that these lack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import add
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Table,
    and_,
    cast,
    func,
    select,
)

from ...database.values import microseconds, moment
from ...pricing.money import EXACT, plain
from ..aggregation import (
    AMOUNTS_AT,
    MEASURES,
    TOKEN_NAMES,
    Grouping,
    GroupKey,
    Measure,
    Totals,
    grouping,
    in_order,
    measures_with,
    totals_from,
)
from ..entries import ZERO_USD, EntryState
from ..filters import LedgerFilter
from .mapping import from_units
from .queries import (
    ENTRY_COLUMNS,
    Columns,
    archived_ids,
    cache_priced,
    changed_entries,
    conditions_of,
    current,
    exact_text,
    is_summed,
    times_of,
    upper_bound,
)
from .rollups import lacks_sums_of_runs
from .schema import (
    AMOUNTS,
    COUNTS,
    DAY,
    GROUP_TEXTS,
    HALF,
    ITEM,
    RUN_DIMENSIONS,
    TEXTS_OF_STEPS,
    groups,
    intents,
    outcomes,
    run_sums,
    runs,
    summed,
    sums,
)
from .statements import halves, is_one_of, join_by_index, whole

_i, _o = intents.c, outcomes.c


Further = Callable[[Columns], ColumnElement[bool]]
"""What else is asked for, of the columns that there are."""


def read_totals(
    connection: Connection,
    selection: LedgerFilter,
    by: str | Grouping | None,
    further: Further | None = None,
) -> tuple[Totals, ...]:
    """The sums of the selected entries, as `totals_of` makes them.

    Whole days are summed up already. Added are what the selection has of other days, and the
    entries that the sums lack; one that has another outcome since is taken out and added anew.
    """
    query = _Query(connection, selection, by, further)
    inside = list(times_of(selection, _i.sent_at))
    archived = archived_ids(connection)
    if selection.id is not None or ITEM in query.group.parts:
        query.add(_ENTRIES, *inside)
    else:
        _add_summed(query)
        join_by_index(connection)
        query.add(_ENTRIES, _i.summed.is_(None), *inside)
        _add_changed(query, inside)
    if archived:
        query.add(_ENTRIES, is_one_of(connection, archived, _i.id), *inside, sign=-1)
    return query.totals()


def _add_changed(query: _Query, inside: Sequence[ColumnElement[bool]]) -> None:
    """Add what became of entries since they were summed up, and take away what they were."""
    connection = query.connection
    changed = changed_entries(connection)
    if changed:
        ids = [name for name, _ in changed]
        query.add(_ENTRIES, is_one_of(connection, ids, _i.id), *inside)
        times = times_of(query.selection, summed.c.sent_at)
        query.add(_SUMMED_BY_RUN, *is_summed(connection, changed), *times, sign=-1)


def _add_summed(query: _Query) -> None:
    days, entries = _sources(query)
    asked, sent_at, day = query.selection, summed.c.sent_at, days.columns["day"]
    since = None if asked.since is None else microseconds(asked.since)
    until = None if asked.until is None else microseconds(asked.until)
    is_within_days = since is not None and until is not None and since // DAY >= until // DAY
    if days is entries or is_within_days:
        query.add(entries, *times_of(asked, sent_at))
        return
    whole_days = []
    if since is not None:
        first = -(-since // DAY)
        whole_days.append(day >= first)
        query.add(entries, sent_at >= since, sent_at < first * DAY)
    if until is not None:
        end = until // DAY
        whole_days.append(day < end)
        query.add(entries, sent_at >= end * DAY, sent_at < until)
    query.add(days, *whole_days)


def _sources(query: _Query) -> tuple[_Source, _Source]:
    """Sums of days, and those of single entries, that have all that is asked for."""
    asked, parts = query.selection, set(query.group.parts)
    if not (asked.run_id or asked.run_key or parts & set(RUN_DIMENSIONS)):
        return _DAYS, _SUMMED
    of_steps = asked.step_id or asked.model or parts & {"model", *TEXTS_OF_STEPS}
    if of_steps or lacks_sums_of_runs(query.connection):
        return _SUMMED_BY_RUN, _SUMMED_BY_RUN
    return _DAYS_BY_RUN, _SUMMED_BY_RUN


Parts = tuple[ColumnElement[Any], ...]
"""A number, or its two halves."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows to add up: entries, or sums of some.

    Attributes:
        columns: What they are selected and grouped by.
        numbers: By the names that measures have for them.
        exact: JSON of amounts to be added to those.
        where: Which rows are any.
    """

    rows: FromClause
    columns: Columns
    numbers: Mapping[str, Parts]
    exact: ColumnElement[Any]
    where: tuple[ColumnElement[bool], ...] = ()


def _halved(numbers: Iterable[ColumnElement[Any]]) -> Iterator[Parts]:
    parts = halves(numbers)
    return zip(parts, parts, strict=True)


def _numbers(counts: Iterable[Parts], amounts: Iterable[Parts]) -> dict[str, Parts]:
    return dict(zip((*COUNTS, *AMOUNTS), (*counts, *amounts), strict=True))


def _of_groups(day: ColumnElement[Any]) -> Columns:
    texts = {name: groups.c[name] for name in (*GROUP_TEXTS, "state", "simulated")}
    return {**texts, "day": day.label("day")}


def _of_runs(source: _Source, run: ColumnElement[Any]) -> _Source:
    """The same with what runs are selected and grouped by."""
    of_run = {"run": runs.c.id, **{name: runs.c[name] for name in RUN_DIMENSIONS}}
    columns = {**source.columns, **of_run}
    return replace(source, rows=source.rows.join(runs, runs.c.id == run), columns=columns)


def _of_days(table: Table) -> _Source:
    pairs = ((table.c[f"{name}_high"], table.c[f"{name}_low"]) for name in AMOUNTS)
    return _Source(
        table.join(groups, groups.c.id == table.c.group_id),
        _of_groups(table.c.day),
        _numbers(((table.c[name],) for name in COUNTS), pairs),
        table.c.exact,
        # An entry that was settled late may have left an empty day of the group it was in before.
        (table.c.entries != 0,),
    )


_COUNTED = (_i.request_count, *(_o[name] for name in TOKEN_NAMES), cache_priced)
_ENTRIES = _Source(
    current(),
    ENTRY_COLUMNS,
    # Among those that are not in the sums, there may be any number.
    _numbers(_halved(_COUNTED), _halved((_o.cost, upper_bound, _o.cache_saved))),
    exact_text,
)
_SUMMED = _Source(
    summed.join(groups, groups.c.id == summed.c.group_id),
    _of_groups(summed.c.sent_at // whole(DAY)),
    _numbers(((summed.c[name],) for name in COUNTS), _halved(summed.c[name] for name in AMOUNTS)),
    summed.c.exact,
)
_SUMMED_BY_RUN = _of_runs(_SUMMED, summed.c.run)
_DAYS = _of_days(sums)
_DAYS_BY_RUN = _of_runs(_of_days(run_sums), run_sums.c.run)


class _Query:
    """Adds up the rows of several sources that a selection has."""

    def __init__(
        self,
        connection: Connection,
        selection: LedgerFilter,
        by: str | Grouping | None,
        further: Further | None = None,
    ) -> None:
        self.connection = connection
        self.selection = selection
        self._further = further
        self.group = grouping(by)
        self._is_grouped = by is not None
        self._groups: dict[GroupKey, list[int]] = {}
        self._exact: dict[GroupKey, list[Decimal]] = {}
        self._took_away = False

    def add(self, source: _Source, *where: ColumnElement[bool], sign: int = 1) -> None:
        """Add what some rows amount to, or take it away."""
        keys = _keys(self.group, source.columns)
        asked = conditions_of(self.connection, self.selection, source.columns)
        conditions = [*asked, *where, *source.where]
        if self._further is not None:
            conditions.append(self._further(source.columns))
        sums = [part for measure in MEASURES.values() for part in _sums_of(source, measure)]
        # Amounts that are not whole numbers of 1e-12 USD are rare, and no database adds them up
        # exactly: they are added here.
        statement = select(*keys, *sums, func.count(source.exact)).select_from(source.rows)
        has_exact = False
        # All at once: one by one, the driver takes longer than the database.
        for row in self.connection.execute(statement.where(*conditions).group_by(*keys)).all():
            has_exact |= row[-1] > 0
            found = _whole_numbers(source, row[len(keys) : -1])
            if sign < 0:
                found = [-number for number in found]
            for key in self._group_keys(row):
                self._add_to(key, found)
        if has_exact:
            self._add_exact(source, keys, conditions, sign)
        self._took_away |= sign < 0

    def _add_to(self, key: GroupKey, found: list[int]) -> None:
        before = self._groups.get(key)
        self._groups[key] = found if before is None else list(map(add, before, found))

    def _add_exact(
        self,
        source: _Source,
        keys: Sequence[ColumnElement[Any]],
        conditions: Sequence[ColumnElement[bool]],
        sign: int,
    ) -> None:
        state, simulated = source.columns["state"], source.columns["simulated"]
        texts = select(*keys, state, simulated, source.exact).select_from(source.rows)
        for row in self.connection.execute(texts.where(*conditions, source.exact.is_not(None))):
            exact = json.loads(row[-1])
            for key in self._group_keys(row):
                amounts = self._exact.setdefault(key, [ZERO_USD] * len(MEASURES))
                for place, number in measures_with(EntryState(row[-3]), bool(row[-2])):
                    usd = EXACT.multiply(Decimal(exact.get(number, 0)), sign)
                    amounts[place] = EXACT.add(amounts[place], usd)

    def _group_keys(self, row: Sequence[Any]) -> tuple[GroupKey, ...]:
        return self.group.keys(*map(_decoded, self.group.parts, row))

    def totals(self) -> tuple[Totals, ...]:
        """In groups, or one of all."""
        found = tuple(self._totals(key) for key in in_order(self._groups))
        if self._took_away:
            found = tuple(total for total in found if total.requests or total.replayed)
        return found or (() if self._is_grouped else (Totals(),))

    def _totals(self, key: GroupKey) -> Totals:
        sums: list[Any] = self._groups[key]
        amounts = list(map(from_units, sums[AMOUNTS_AT:]))
        if exact := self._exact.get(key):
            amounts = [plain(u) for u in map(EXACT.add, amounts, exact[AMOUNTS_AT:])]
        return totals_from(key, [*sums[:AMOUNTS_AT], *amounts])


def _sums_of(source: _Source, measure: Measure) -> Iterator[ColumnElement[Any]]:
    """What the database adds up for a measure: a number, or its two halves."""
    state = source.columns["state"]
    # SQLite compares faster than it looks up what is IN a list, and does so for each row.
    counts = and_(*(state != other for other in sorted(frozenset(EntryState) - measure.states)))
    if len(measure.states) == 1:
        counts = state == next(iter(measure.states))
    if measure.of_simulated:
        counts = and_(counts, source.columns["simulated"])
    for part in source.numbers[measure.number]:
        # No sum outgrows that; PostgreSQL would give a decimal, which takes longer to read.
        yield cast(func.sum(part).filter(counts), BigInteger)


def _whole_numbers(source: _Source, parts: Sequence[Any]) -> list[int]:
    """Sums of measures out of those of their parts."""
    numbers = [part or 0 for part in parts]
    rest = iter(numbers if len(source.numbers["requests"]) == 2 else numbers[AMOUNTS_AT:])
    joined = [high * HALF + low for high, low in zip(rest, rest, strict=True)]
    return [*numbers[: len(MEASURES) - len(joined)], *joined]


def _keys(group: Grouping, columns: Columns) -> list[ColumnElement[Any]]:
    """The columns by which rows are added up."""
    model = func.coalesce(columns["model_asked"], columns["model_answered"]).label("model")
    return [model if name == "model" else columns[name] for name in group.parts]


_DECODE: dict[str, Callable[[Any], Any]] = {
    "tags": lambda text: json.loads(text or "{}"),
    "flow_tags": lambda text: tuple(json.loads(text or "[]")),
    "day": lambda number: moment(number * DAY).date(),
}
"""How parts that are not texts are made of their columns."""


def _decoded(part: str, value: Any) -> Any:
    return _DECODE[part](value) if part in _DECODE else value
