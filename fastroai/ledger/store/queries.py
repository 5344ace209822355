"""Queries of a ledger's tables: entries, and their sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    RowMapping,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
)

from ...database.values import microseconds, moment
from ...pricing.token_counts import TokenCounts
from ..aggregation import (
    TOKEN_NAMES,
    Grouping,
    Totals,
    grouping,
    merged,
    totals_of,
    totals_of_state,
)
from ..entries import DIMENSIONS, EntryState, LedgerEntry
from ..filters import LedgerFilter
from .mapping import entry_from, flow_tag_fragments, from_units, tag_fragments
from .schema import intents, outcomes

_DAY = timedelta(days=1) // timedelta(microseconds=1)
_HALF = 1_000_000
"""Sums are made of the two halves of each amount, so that none outgrows the database's integers."""

_i, _o = intents.c, outcomes.c
_later = outcomes.alias("later")
_known = _o.entry_id.is_not(None)
_state = func.coalesce(_o.state, EntryState.UNSETTLED.value).label("state")
_exact = case((_known, _o.exact), else_=_i.exact)
_upper_bound = case((_known, _o.upper_bound), else_=_i.upper_bound)

_PARTS: dict[str, ColumnElement[Any]] = {
    **{name: _i[name] for name in (*DIMENSIONS, "agent", "tags", "flow_tags")},
    "provider": _o.provider,
    "model": func.coalesce(_i.model_asked, _o.model_answered).label("model"),
    # As a parameter it would be another expression for PostgreSQL each time.
    "day": (_i.sent_at // literal_column(str(_DAY), BigInteger)).label("day"),
}
"""What the keys of groups are made of."""

_DECODE: dict[str, Callable[[Any], Any]] = {
    "tags": lambda text: json.loads(text or "{}"),
    "flow_tags": lambda text: tuple(json.loads(text or "[]")),
    "day": lambda number: moment(number * _DAY).date(),
}
"""How parts that are not texts are made of their columns."""


def read_entries(connection: Connection, selection: LedgerFilter) -> list[LedgerEntry]:
    """The selected entries in the order in which they were sent."""
    return _read(connection, _conditions(connection, selection))


def _read(connection: Connection, where: Iterable[ColumnElement[bool]]) -> list[LedgerEntry]:
    statement = (
        select(*intents.columns, *(column.label(f"o_{column.name}") for column in outcomes.columns))
        .select_from(_entries())
        .where(*where)
        .order_by(_i.sent_at, _i.id)
    )
    return [entry_from(row) for row in connection.execute(statement).mappings()]


def read_totals(
    connection: Connection, selection: LedgerFilter, by: str | None
) -> tuple[Totals, ...]:
    """The sums of the selected entries, as `totals_of` makes them, worked out by the database."""
    group = grouping(by)
    columns = [*(_PARTS[name] for name in group.parts), _state, _i.simulated]
    where = _conditions(connection, selection)
    statement = (
        select(*columns, *_sums())
        .select_from(_entries())
        .where(*where, _exact.is_(None))
        .group_by(*columns)
    )
    parts = [part for row in connection.execute(statement) for part in _parts(row, group)]
    # Amounts that are not whole numbers of 1e-12 USD are rare, and no database adds them up
    # exactly.
    return merged([*parts, *totals_of(_read(connection, [*where, _exact.is_not(None)]), by)])


def _entries() -> FromClause:
    """Each intent with the outcome that counts: the final one if there is one."""
    superseded = exists().where(_later.c.entry_id == _o.entry_id, _later.c.final == 1)
    counts = or_(_o.final == 1, ~superseded)
    return intents.outerjoin(outcomes, and_(_o.entry_id == _i.id, counts))


def _conditions(connection: Connection, selection: LedgerFilter) -> list[ColumnElement[bool]]:
    columns: dict[str, ColumnElement[Any]] = {
        **{name: _i[name] for name in DIMENSIONS},
        "id": _i.id,
        "state": _state,
        "simulated": _i.simulated,
    }
    found: list[ColumnElement[bool]] = []
    for field in fields(selection):
        value = getattr(selection, field.name)
        if value is None:
            continue
        if field.name in columns:
            found.append(columns[field.name] == value)
        elif field.name == "since":
            found.append(_i.sent_at >= microseconds(value))
        elif field.name == "until":
            found.append(_i.sent_at < microseconds(value))
        elif field.name == "model":
            found.append(_has_model(connection, value))
        elif field.name == "tag":
            found.append(_has_tag(connection, *selection.tag_parts))
        else:
            raise NotImplementedError(f"Entries can't be selected by {field.name!r}.")
    return found


def _has_model(connection: Connection, model: str) -> ColumnElement[bool]:
    bare = and_(_contains(connection, _i.model_asked, [":"]), _after_colon(connection) == model)
    return or_(_i.model_asked == model, _o.model_answered == model, bare)


def _has_tag(connection: Connection, name: str, value: str | None) -> ColumnElement[bool]:
    has_tag = _contains(connection, _i.tags, tag_fragments(name, value))
    if value is not None:
        return has_tag
    return or_(has_tag, _contains(connection, _i.flow_tags, flow_tag_fragments(name)))


def _contains(connection: Connection, column: Any, fragments: Iterable[str]) -> ColumnElement[bool]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return or_(*(func.coalesce(position(column, fragment), 0) > 0 for fragment in fragments))


def _after_colon(connection: Connection) -> ColumnElement[str]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return func.substr(_i.model_asked, position(_i.model_asked, ":") + 1)


def _sums() -> Iterator[ColumnElement[Any]]:
    yield _sum(_i.request_count).label("count")
    for name in TOKEN_NAMES:
        yield _sum(_o[name]).label(name)
    for name, amount in (("cost", _o.cost), ("upper_bound", _upper_bound)):
        yield _sum(amount // literal(_HALF)).label(f"{name}_high")
        yield _sum(amount % literal(_HALF)).label(f"{name}_low")


def _sum(value: Any) -> ColumnElement[Any]:
    return func.coalesce(func.sum(value), 0)


def _parts(row: Row[Any], group: Grouping) -> Iterator[Totals]:
    found = row._mapping
    values = (_DECODE.get(name, _as_it_is)(found[name]) for name in group.parts)
    tokens = TokenCounts(**{name: int(found[name]) for name in TOKEN_NAMES})
    for key in group.keys(*values):
        yield totals_of_state(
            key,
            EntryState(found["state"]),
            simulated=bool(found["simulated"]),
            count=int(found["count"]),
            tokens=tokens,
            cost_usd=_usd(found, "cost"),
            upper_bound_usd=_usd(found, "upper_bound"),
        )


def _usd(sums: RowMapping, name: str) -> Decimal:
    return from_units(int(sums[f"{name}_high"]) * _HALF + int(sums[f"{name}_low"]))


def _as_it_is(text: Any) -> Any:
    return text
