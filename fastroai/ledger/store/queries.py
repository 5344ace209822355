"""What is read from a ledger's tables: entries, and their sums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
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
    AMOUNTS,
    COUNTS,
    TOKEN_NAMES,
    Totals,
    grouping,
    labels,
    merged,
    step_key,
    totals_of,
)
from ..entries import SPEND, Attribution, EntryState, LedgerEntry
from ..filters import LedgerFilter
from .mapping import entry_from, flow_tag_fragments, from_units, tag_fragments
from .schema import intents, outcomes

_DAY = timedelta(days=1) // timedelta(microseconds=1)
_HALF = 1_000_000
"""Sums are made of the two halves of each amount, so that none outgrows the database's integers."""

_i, _o = intents.c, outcomes.c
_later = outcomes.alias("later")
_known = _o.entry_id.is_not(None)
_state = func.coalesce(_o.state, EntryState.UNSETTLED.value)
_exact = case((_known, _o.exact), else_=_i.exact)
_upper_bound = case((_known, _o.upper_bound), else_=_i.upper_bound)
_model = func.coalesce(_i.model_asked, _o.model_answered)
_is_spend = _state.in_([state.value for state in SPEND])
_is_replay = _state == EntryState.REPLAYED.value


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
    grouping(by)  # refuses what entries can't be grouped by
    columns = _columns(by)
    where = _conditions(connection, selection)
    statement = (
        select(*columns, *_sums())
        .select_from(_entries())
        .where(*where, _exact.is_(None))
        .group_by(*columns)
    )
    parts = [part for row in connection.execute(statement) for part in _parts(row, by)]
    # Amounts that are not whole numbers of 1e-12 USD are rare, and no database adds them up
    # exactly.
    return merged([*parts, *totals_of(_read(connection, [*where, _exact.is_not(None)]), by)])


def _entries() -> FromClause:
    """Each intent with the outcome that counts: the final one if there is one."""
    superseded = exists().where(_later.c.entry_id == _o.entry_id, _later.c.final == 1)
    counts = or_(_o.final == 1, ~superseded)
    return intents.outerjoin(outcomes, and_(_o.entry_id == _i.id, counts))


def _conditions(connection: Connection, selection: LedgerFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (_i.id, selection.id),
            (_i.run_id, selection.run_id),
            (_i.run_key, selection.run_key),
            (_i.pipeline, selection.pipeline),
            (_i.step_id, selection.step_id),
            (_state, selection.state and selection.state.value),
            (_i.simulated, selection.simulated),
        )
        if value is not None
    ]
    if selection.since is not None:
        found.append(_i.sent_at >= microseconds(selection.since))
    if selection.until is not None:
        found.append(_i.sent_at < microseconds(selection.until))
    if (model := selection.model) is not None:
        bare = and_(_contains(connection, _i.model_asked, [":"]), _after_colon(connection) == model)
        found.append(or_(_i.model_asked == model, _o.model_answered == model, bare))
    if selection.tag is not None:
        name, value = selection.tag_parts
        has_tag = _contains(connection, _i.tags, tag_fragments(name, value))
        if value is None:
            has_tag = or_(has_tag, _contains(connection, _i.flow_tags, flow_tag_fragments(name)))
        found.append(has_tag)
    return found


def _contains(connection: Connection, column: Any, fragments: Iterable[str]) -> ColumnElement[bool]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return or_(*(func.coalesce(position(column, fragment), 0) > 0 for fragment in fragments))


def _after_colon(connection: Connection) -> ColumnElement[str]:
    position = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return func.substr(_i.model_asked, position(_i.model_asked, ":") + 1)


def _columns(by: str | None) -> list[ColumnElement[Any]]:
    """What the rows of the sums are grouped by: from each group's values its key is made."""
    if by is None:
        return []
    if by.startswith("tag"):
        return [_i.tags, _i.flow_tags]
    columns: dict[str, list[Any]] = {
        "run": [_i.run_id],
        "run_key": [_i.run_key],
        "pipeline": [_i.pipeline],
        "step": [_i.pipeline, _i.step_id],
        "agent": [_i.agent],
        "model": [_model.label("model")],
        "provider": [_o.provider],
        "deployment": [_i.deployment],
        # As a parameter it would be another expression for PostgreSQL each time.
        "day": [(_i.sent_at // literal_column(str(_DAY), BigInteger)).label("day")],
    }
    return columns[by]


def _keys(values: tuple[Any, ...], by: str | None) -> Iterable[str | None]:
    if by is None:
        return (None,)
    if by == "step":
        return (step_key(*values),)
    if by == "day":
        return (moment(values[0] * _DAY).date().isoformat(),)
    if by.startswith("tag"):
        tags, flow_tags = json.loads(values[0] or "{}"), tuple(json.loads(values[1] or "[]"))
        if by == "tag":
            return labels(Attribution(tags=tags, flow_tags=flow_tags))
        return (tags.get(by.removeprefix("tag:")),)
    return (values[0],)


def _sums() -> Iterator[ColumnElement[Any]]:
    counted = _i.request_count
    yield _sum(counted, ~_is_replay).label("requests")
    for state in EntryState:
        yield _sum(counted, _state == state.value).label(state.value)
    yield _sum(counted, and_(_i.simulated, ~_is_replay)).label("simulated")
    for name in TOKEN_NAMES:
        yield _sum(outcomes.c[name], _is_spend).label(name)
    amounts: dict[str, tuple[Any, ColumnElement[bool]]] = {
        "cost_usd": (_o.cost, _is_spend),
        "simulated_usd": (_o.cost, and_(_is_spend, _i.simulated)),
        "upper_bound_usd": (_upper_bound, _state == EntryState.UNSETTLED.value),
        "replayed_usd": (_o.cost, _is_replay),
    }
    for name, (amount, condition) in amounts.items():
        yield _sum(amount // literal(_HALF), condition).label(f"{name}_high")
        yield _sum(amount % literal(_HALF), condition).label(f"{name}_low")


def _sum(value: Any, condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((condition, value), else_=0)), 0)


def _parts(row: Row[Any], by: str | None) -> Iterator[Totals]:
    found = row._mapping
    sums: dict[str, Any] = {name: int(found[name]) for name in COUNTS}
    tokens = TokenCounts(**{name: int(found[name]) for name in TOKEN_NAMES})
    sums |= {
        name: from_units(int(found[f"{name}_high"]) * _HALF + int(found[f"{name}_low"]))
        for name in AMOUNTS
    }
    for key in _keys(tuple(row)[: len(_columns(by))], by):
        yield Totals(key=key, tokens=tokens, **sums)
