"""Queries of a ledger's entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, and_, case, exists, func, or_, select

from ...database.values import microseconds
from ..entries import DIMENSIONS, EntryState, LedgerEntry
from ..filters import LedgerFilter
from .mapping import Known, digest_of_id, entry_from, flow_tag_fragments, tag_fragments
from .schema import DAY, archives, intents, outcomes, summed
from .statements import contains, is_one_of, position, whole

_i, _o = intents.c, outcomes.c
_other = outcomes.alias("other")
_known = _o.entry_id.is_not(None)

upper_bound = case((_known, _o.upper_bound), else_=_i.upper_bound)
# How many tokens there are of which it is known what the cache saved by them.
cache_priced = case(
    (
        or_(_o.cache_saved.is_not(None), _o.exact.like('%"cache_saved"%')),
        _o.cache_read_tokens + _o.cache_write_tokens,
    ),
    else_=0,
)
exact_text = case((_known, _o.exact), else_=_i.exact)

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


# Of each entry by the index: with EXISTS, PostgreSQL reads all outcomes there are.
_last = select(func.max(_other.c.final)).where(_other.c.entry_id == _i.id).scalar_subquery()


def current() -> FromClause:
    """Each intent with the outcome that counts: the final one if there is one."""
    return intents.outerjoin(outcomes, and_(_o.entry_id == _i.id, _o.final == _last))


EntryKey = tuple[str, int]
"""An entry's id, and when it was sent."""


def changed_entries(connection: Connection, most: int | None = None) -> list[EntryKey]:
    """The entries in the sums that have another outcome by now; at most so many."""
    statement = select(_i.id, _i.sent_at).where(_i.summed < 1, _last > _i.summed).limit(most)
    return [(row.id, row.sent_at) for row in connection.execute(statement)]


def archived_ids(connection: Connection) -> list[str]:
    """The entries that were archived before, and booked again by a record or an outbox."""
    at = _i.sent_at
    is_in_one = exists().where(archives.c.first_sent_at <= at, archives.c.last_sent_at >= at)
    late = select(_i.id, at).where(_i.summed.is_(None), is_in_one)
    found = [(row.id, row.sent_at) for row in connection.execute(late)]
    if not found:
        return []
    rows = select(summed.c.sent_at, summed.c.digest).where(*is_summed(connection, found))
    known = {tuple(row) for row in connection.execute(rows)}
    return [name for name, sent_at in found if (sent_at, digest_of_id(name)) in known]


def is_summed(
    connection: Connection, entries: Sequence[EntryKey]
) -> tuple[ColumnElement[bool], ...]:
    """What the rows of some entries in the sums have."""
    # By the index on both. No other row has the digest of one of these and the time of another.
    times = list({sent_at for _, sent_at in entries})
    digests = [digest_of_id(name) for name, _ in entries]
    return (
        is_one_of(connection, times, summed.c.sent_at),
        is_one_of(connection, digests, summed.c.digest),
    )


def read_entries(
    connection: Connection, selection: LedgerFilter, keep: Keep | None = None
) -> list[LedgerEntry]:
    """The selected entries that are to be kept, in the order in which they were sent."""
    conditions = conditions_of(connection, selection, ENTRY_COLUMNS)
    archived = frozenset(archived_ids(connection))

    def is_kept(entry: LedgerEntry) -> bool:
        return entry.id not in archived and (keep is None or keep(entry))

    where = (*conditions, *times_of(selection, _i.sent_at))
    return select_entries(connection, *where, keep=is_kept if keep or archived else None)


Keep = Callable[[LedgerEntry], bool]
"""Whether an entry that was read is wanted; told of each, in their order."""


def select_entries(
    connection: Connection,
    *where: ColumnElement[bool],
    limit: int | None = None,
    keep: Keep | None = None,
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
    known: Known = {}
    found = []
    for row in connection.execute(statement):
        values = dict(zip(_ROW, row, strict=True))
        for name in _REPEATED:
            value = values[name]
            values[name] = texts.setdefault(value, value)
        entry = entry_from(values, known)
        if keep is None or keep(entry):
            found.append(entry)
        if len(known) > _KNOWN:
            known.clear()
    return found


_ROWS_AT_ONCE = 1000
_KNOWN = 2000
_ROW = (*intents.columns.keys(), *(f"o_{column.name}" for column in outcomes.columns))
_REPEATED = (
    *DIMENSIONS, "tags", "agent", "model_asked", "provider_host", "service_tier", "o_provider",
    "o_model_answered", "o_service_tier", "o_price_source", "o_price_version", "o_error",
)  # fmt: skip


def times_of(selection: LedgerFilter, sent_at: ColumnElement[int]) -> Iterator[ColumnElement[bool]]:
    """The times that a selection asks for."""
    if selection.since is not None:
        yield sent_at >= microseconds(selection.since)
    if selection.until is not None:
        yield sent_at < microseconds(selection.until)


def conditions_of(
    connection: Connection, selection: LedgerFilter, columns: Columns
) -> Iterator[ColumnElement[bool]]:
    """What a selection asks for, but for its times."""
    for field in fields(selection):
        value = getattr(selection, field.name)
        if value is None or isinstance(value, datetime):
            continue
        if field.name in _CONDITIONS:
            yield _CONDITIONS[field.name](connection, selection, columns)
        else:
            yield columns[field.name] == value


def _has_model(
    connection: Connection, selection: LedgerFilter, columns: Columns
) -> ColumnElement[bool]:
    asked, answered = columns["model_asked"], columns["model_answered"]
    colon = func.coalesce(position(connection, asked, ":"), 0)
    bare = and_(colon > 0, func.substr(asked, colon + 1) == selection.model)
    return or_(asked == selection.model, answered == selection.model, bare)


def _is_of_deployment(
    connection: Connection, selection: LedgerFilter, columns: Columns
) -> ColumnElement[bool]:
    flow, _, name = (selection.deployment or "").partition("/")
    # Of earlier entries, as `deployment_key` reads them.
    earlier = and_(columns["deployment"] == name, columns["pipeline"] == flow)
    return or_(columns["deployment"] == selection.deployment, earlier)


def _has_tag(
    connection: Connection, selection: LedgerFilter, columns: Columns
) -> ColumnElement[bool]:
    name, value = selection.tag_parts
    found = contains(connection, columns["tags"], tag_fragments(name, value))
    if value is None:
        found += contains(connection, columns["flow_tags"], flow_tag_fragments(name))
    return or_(*found)


_CONDITIONS: dict[str, Callable[[Connection, LedgerFilter, Columns], ColumnElement[bool]]] = {
    "deployment": _is_of_deployment,
    "model": _has_model,
    "tag": _has_tag,
}
"""How entries are selected by what no column of its name has alone."""
