"""Queries of a ledger's tables: entries, and their sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    text,
)

from ...database.values import microseconds, moment
from ...pricing.money import EXACT
from ..aggregation import TOKEN_NAMES, Grouping, Sums, Totals, grouping
from ..entries import DIMENSIONS, EntryState, LedgerEntry
from ..filters import LedgerFilter
from .mapping import digest_of_id, entry_from, flow_tag_fragments, from_units, tag_fragments
from .schema import (
    AMOUNTS,
    COUNTS,
    GROUP_TEXTS,
    HALF,
    HALVES,
    RUN_DIMENSIONS,
    archives,
    groups,
    intents,
    outcomes,
    runs,
    summed,
    sums,
)

DAY = timedelta(days=1) // timedelta(microseconds=1)

_i, _o = intents.c, outcomes.c
_other = outcomes.alias("other")
_known = _o.entry_id.is_not(None)

upper_bound = case((_known, _o.upper_bound), else_=_i.upper_bound)
exact_text = case((_known, _o.exact), else_=_i.exact)


def whole(value: int) -> ColumnElement[int]:
    """A number within an expression.

    As a parameter it would be another expression for PostgreSQL each time.
    """
    return literal_column(str(value), BigInteger)


Columns = dict[str, ColumnElement[Any]]

ENTRY_COLUMNS: Columns = {
    **{name: _i[name] for name in ("id", *DIMENSIONS, "agent", "tags", "flow_tags", "simulated")},
    "model_asked": _i.model_asked,
    "model_answered": _o.model_answered,
    "provider": _o.provider,
    "state": func.coalesce(_o.state, EntryState.UNSETTLED.value).label("state"),
    "day": (_i.sent_at // whole(DAY)).label("day"),
}
"""What entries are selected and grouped by, as it is with the entries themselves."""

_DECODE: dict[str, Callable[[Any], Any]] = {
    "tags": lambda text: json.loads(text or "{}"),
    "flow_tags": lambda text: tuple(json.loads(text or "[]")),
    "day": lambda number: moment(number * DAY).date(),
}
"""How parts that are not texts are made of their columns."""


# Of each entry by the index: with EXISTS, PostgreSQL reads all outcomes there are.
_last = select(func.max(_other.c.final)).where(_other.c.entry_id == _i.id).scalar_subquery()


def current() -> FromClause:
    """Each intent with the outcome that counts: the final one if there is one."""
    return intents.outerjoin(outcomes, and_(_o.entry_id == _i.id, _o.final == _last))


def changed_ids(connection: Connection) -> list[tuple[str, int]]:
    """The entries in the sums that have another outcome by now, with when they were sent."""
    statement = select(_i.id, _i.sent_at).where(_i.summed < 1, _last > _i.summed)
    return [(row.id, row.sent_at) for row in connection.execute(statement)]


def join_by_index(connection: Connection) -> None:
    """Have PostgreSQL look up the outcomes of few entries one by one, until the transaction ends.

    It expects many while the statistics are older than the entries, and then reads all outcomes.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL enable_hashjoin = off"))
        connection.execute(text("SET LOCAL enable_mergejoin = off"))


def ids_archived(connection: Connection) -> list[str]:
    """The entries that were archived before, and booked again by a record or an outbox."""
    horizon = connection.scalar(select(func.max(archives.c.last_sent_at)))
    if horizon is None:
        return []
    late = select(_i.id, _i.sent_at).where(_i.summed.is_(None), _i.sent_at <= horizon)
    return [
        row.id
        for row in connection.execute(late)
        if connection.scalar(select(summed.c.run).where(*is_summed(row.id, row.sent_at)))
    ]


def is_summed(entry_id: str, sent_at: int) -> tuple[ColumnElement[bool], ...]:
    """What the row of one entry in the sums has."""
    return summed.c.sent_at == sent_at, summed.c.digest == digest_of_id(entry_id)


def is_one_of(
    connection: Connection, texts: Sequence[str], column: ColumnElement[str] = _i.id
) -> ColumnElement[bool]:
    """Whether a column, by default an entry's id, has one of some texts, however many."""
    if connection.dialect.name == "postgresql":
        return column == func.any(bindparam(None, texts, type_=ARRAY(Text), unique=True))
    each = func.json_each(json.dumps(texts)).table_valued("value")
    return column.in_(select(each.c.value))


def read_entries(connection: Connection, selection: LedgerFilter) -> list[LedgerEntry]:
    """The selected entries in the order in which they were sent."""
    conditions = _conditions(connection, selection, ENTRY_COLUMNS)
    return select_entries(connection, *conditions, *_times(selection, _i.sent_at))


def select_entries(
    connection: Connection, *where: ColumnElement[bool], limit: int | None = None
) -> list[LedgerEntry]:
    """The entries that fit, in the order in which they were sent; the first of them."""
    statement = (
        select(*intents.columns, *(column.label(f"o_{column.name}") for column in outcomes.columns))
        .select_from(current())
        .where(*where)
        .order_by(_i.sent_at, _i.id)
        .limit(limit)
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    # Most texts stand in many rows, and a driver makes new ones for each.
    texts: dict[Any, Any] = {}
    found = []
    for row in connection.execute(statement):
        values = dict(zip(_ROW, row, strict=True))
        for name in _REPEATED:
            value = values[name]
            values[name] = texts.setdefault(value, value)
        found.append(entry_from(values))
    return found


_ROWS_AT_ONCE = 1000
_ROW = (*intents.columns.keys(), *(f"o_{column.name}" for column in outcomes.columns))
_REPEATED = (
    *DIMENSIONS, "tags", "agent", "model_asked", "provider_host", "service_tier", "o_provider",
    "o_model_answered", "o_service_tier", "o_price_source", "o_price_version", "o_error",
)  # fmt: skip


def read_totals(
    connection: Connection, selection: LedgerFilter, by: str | None
) -> tuple[Totals, ...]:
    """The sums of the selected entries, as `totals_of` makes them.

    Whole days are summed up already. Added are what the selection has of other days, and the
    entries that the sums lack; one that has another outcome since is taken out and added anew.
    """
    query = _Query(connection, selection, by)
    inside = _times(selection, _i.sent_at)
    if selection.id is not None:
        query.add(_ENTRIES, *inside)
        return query.totals()
    _add_summed(query)
    join_by_index(connection)
    not_summed = [_i.summed.is_(None), *inside]
    if again := ids_archived(connection):
        not_summed.append(_i.id.not_in(again))
    query.add(_ENTRIES, *not_summed)
    if changed := changed_ids(connection):
        query.add(_ENTRIES, is_one_of(connection, [name for name, _ in changed]), *inside)
        times = _times(selection, summed.c.sent_at)
        for name, sent_at in changed:
            query.add(_SUMMED_BY_RUN, *is_summed(name, sent_at), *times, sign=-1)
    return query.totals()


def _add_summed(query: _Query) -> None:
    asked, sent_at = query.selection, summed.c.sent_at
    if asked.run_id or asked.run_key or set(RUN_DIMENSIONS) & set(query.group.parts):
        query.add(_SUMMED_BY_RUN, *_times(asked, sent_at))
        return
    since = None if asked.since is None else microseconds(asked.since)
    until = None if asked.until is None else microseconds(asked.until)
    if since is not None and until is not None and since // DAY >= until // DAY:
        query.add(_SUMMED, sent_at >= since, sent_at < until)
        return
    # An entry that was settled late may have left an empty day of the group it was in before.
    days = [sums.c.entries != 0]
    if since is not None:
        first = -(-since // DAY)
        days.append(sums.c.day >= first)
        query.add(_SUMMED, sent_at >= since, sent_at < first * DAY)
    if until is not None:
        end = until // DAY
        days.append(sums.c.day < end)
        query.add(_SUMMED, sent_at >= end * DAY, sent_at < until)
    query.add(_DAYS, *days)


def _of_groups(day: ColumnElement[Any], **columns: ColumnElement[Any]) -> Columns:
    texts = {name: groups.c[name] for name in (*GROUP_TEXTS, "state", "simulated")}
    return {**texts, "day": day.label("day"), **columns}


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows to add up: entries, or sums of some.

    Attributes:
        columns: What they are selected and grouped by.
        measures: What is added up: counts, and amounts in two halves.
        exact: JSON of amounts to be added to those.
    """

    rows: FromClause
    columns: Columns
    measures: Sequence[ColumnElement[Any]]
    exact: ColumnElement[Any]


def _halves(*amounts: ColumnElement[Any]) -> Iterator[ColumnElement[Any]]:
    for amount in amounts:
        yield amount // whole(HALF)
        yield amount % whole(HALF)


_ENTRIES = _Source(
    current(),
    ENTRY_COLUMNS,
    (_i.request_count, *(_o[name] for name in TOKEN_NAMES), *_halves(_o.cost, upper_bound)),
    exact_text,
)
_summed = summed.join(groups, groups.c.id == summed.c.group_id)
_SUMMED = _Source(
    _summed,
    _of_groups(summed.c.sent_at // whole(DAY)),
    (*(summed.c[name] for name in COUNTS), *_halves(*(summed.c[name] for name in AMOUNTS))),
    summed.c.exact,
)
_SUMMED_BY_RUN = replace(
    _SUMMED,
    rows=_summed.join(runs, runs.c.id == summed.c.run),
    columns={**_SUMMED.columns, **{name: runs.c[name] for name in RUN_DIMENSIONS}},
)
_DAYS = _Source(
    sums.join(groups, groups.c.id == sums.c.group_id),
    _of_groups(sums.c.day),
    [sums.c[name] for name in (*COUNTS, *HALVES)],
    sums.c.exact,
)


class _Query:
    """Adds up the rows of several sources that a selection has."""

    def __init__(self, connection: Connection, selection: LedgerFilter, by: str | None) -> None:
        self.connection = connection
        self.selection = selection
        self.group = grouping(by)
        self._is_grouped = by is not None
        self._sums = Sums()
        self._took_away = False

    def add(self, source: _Source, *where: ColumnElement[bool], sign: int = 1) -> None:
        """Add what some rows amount to, or take it away."""
        keys = _keys(self.group, source.columns)
        conditions = [*_conditions(self.connection, self.selection, source.columns), *where]
        # Amounts that are not whole numbers of 1e-12 USD are rare, and no database adds them up
        # exactly: they are added here.
        measures = (*(func.sum(measure) for measure in source.measures), func.count(source.exact))
        rows = select(*keys, *measures).select_from(source.rows).where(*conditions).group_by(*keys)
        has_exact = False
        for row in self.connection.execute(rows):
            key, found = row[: len(keys)], row[len(keys) :]
            has_exact = has_exact or found[-1] > 0
            counts = [sign * int(number or 0) for number in found[: len(COUNTS)]]
            halves = [sign * int(number or 0) for number in found[len(COUNTS) : -1]]
            amounts = (
                high * HALF + low for high, low in zip(halves[::2], halves[1::2], strict=True)
            )
            self._add(key, counts, *map(from_units, amounts))
        if has_exact:
            texts = select(*keys, source.exact).select_from(source.rows)
            for row in self.connection.execute(texts.where(*conditions, source.exact.is_not(None))):
                exact = json.loads(row[-1])
                usd = (EXACT.multiply(Decimal(exact.get(name, 0)), sign) for name in AMOUNTS)
                self._add(row[: len(keys)], [0] * len(COUNTS), *usd)
        self._took_away |= sign < 0

    def _add(
        self, key: Sequence[Any], counts: Sequence[int], cost_usd: Decimal, upper_bound_usd: Decimal
    ) -> None:
        *values, state, simulated = key
        parts = map(_decoded, self.group.parts, values)
        for group_key in self.group.keys(*parts):
            self._sums.add(
                group_key,
                EntryState(state),
                simulated=bool(simulated),
                count=counts[0],
                tokens=counts[1:],
                cost_usd=cost_usd,
                upper_bound_usd=upper_bound_usd,
            )

    def totals(self) -> tuple[Totals, ...]:
        """In groups, or one of all."""
        found = self._sums.totals()
        if self._took_away:
            found = tuple(total for total in found if total.requests or total.replayed)
        return found or (() if self._is_grouped else (Totals(),))


def _times(selection: LedgerFilter, sent_at: ColumnElement[int]) -> list[ColumnElement[bool]]:
    found = []
    if selection.since is not None:
        found.append(sent_at >= microseconds(selection.since))
    if selection.until is not None:
        found.append(sent_at < microseconds(selection.until))
    return found


def _conditions(
    connection: Connection, selection: LedgerFilter, columns: Columns
) -> list[ColumnElement[bool]]:
    """What a selection asks for, but for its times."""
    found: list[ColumnElement[bool]] = []
    for field in fields(selection):
        value = getattr(selection, field.name)
        if value is None or isinstance(value, datetime):
            continue
        if field.name in columns:
            found.append(columns[field.name] == value)
        elif field.name == "model":
            found.append(_has_model(connection, value, columns))
        elif field.name == "tag":
            found.append(_has_tag(connection, *selection.tag_parts, columns))
        else:
            raise NotImplementedError(f"Entries can't be selected by {field.name!r}.")
    return found


def _has_model(connection: Connection, model: str, columns: Columns) -> ColumnElement[bool]:
    asked, answered = columns["model_asked"], columns["model_answered"]
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    after_colon = func.substr(asked, position(asked, ":") + 1)
    bare = and_(_contains(connection, asked, [":"]), after_colon == model)
    return or_(asked == model, answered == model, bare)


def _has_tag(
    connection: Connection,
    name: str,
    value: str | None,
    columns: Columns,
) -> ColumnElement[bool]:
    has_tag = _contains(connection, columns["tags"], tag_fragments(name, value))
    if value is not None:
        return has_tag
    return or_(has_tag, _contains(connection, columns["flow_tags"], flow_tag_fragments(name)))


def _contains(connection: Connection, column: Any, fragments: Iterable[str]) -> ColumnElement[bool]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return or_(*(func.coalesce(position(column, fragment), 0) > 0 for fragment in fragments))


def _keys(group: Grouping, columns: Columns) -> list[ColumnElement[Any]]:
    """The columns by which rows are added up."""
    model = func.coalesce(columns["model_asked"], columns["model_answered"]).label("model")
    parts = [model if name == "model" else columns[name] for name in group.parts]
    return [*parts, columns["state"], columns["simulated"]]


def _decoded(part: str, value: Any) -> Any:
    return _DECODE[part](value) if part in _DECODE else value
