"""The last runs of a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, func, select

from ...database.values import moment
from ..aggregation import GROUPINGS, Grouping, Totals, deployment_key
from ..filters import EVERYTHING, LedgerFilter
from ..history import BookedRun
from ..recent import EndedRun
from .queries import ENTRY_COLUMNS, Columns, conditions_of, current, times_of
from .schema import (
    GROUP_TEXTS,
    RUN_DIMENSIONS,
    groups,
    intents,
    run_ends,
    runs,
    summed,
    whole_runs,
)
from .statements import is_one_of
from .totals import read_totals

_TEXTS = ("run_key", "pipeline", "deployment", "created_by")
_ROWS_PER_RUN = 50
_MORE = 8


@dataclass(frozen=True, slots=True)
class _Rows:
    """Entries, those in the sums or those that these lack.

    Attributes:
        run: What their runs are found by, by an index.
    """

    rows: FromClause
    columns: Columns
    sent_at: ColumnElement[int]
    where: tuple[ColumnElement[bool], ...] = ()


_SUMMED = _Rows(
    summed.join(groups, groups.c.id == summed.c.group_id).join(runs, runs.c.id == summed.c.run),
    {
        **{name: groups.c[name] for name in (*GROUP_TEXTS, "state", "simulated")},
        **{name: runs.c[name] for name in RUN_DIMENSIONS},
        "run": runs.c.id,
    },
    summed.c.sent_at,
)
_NOT_SUMMED = _Rows(current(), ENTRY_COLUMNS, intents.c.sent_at, (intents.c.summed.is_(None),))


def read_runs(connection: Connection, selection: LedgerFilter, most: int) -> tuple[BookedRun, ...]:
    """The runs of which the selection has requests, those with the last ones first; at most so
    many. What they cost is of all of their requests.
    """
    found = _last_run_ids(connection, selection, most)
    return tuple(sorted(_described(connection, found), key=_recency, reverse=True))


def find_run_ids(connection: Connection, beginning: str, most: int) -> list[str]:
    """The ids of runs that begin so; at most so many."""
    found: set[str] = set()
    for run_id, *where in ((runs.c.run_id,), (intents.c.run_id, intents.c.summed.is_(None))):
        begins = run_id >= beginning, run_id < f"{beginning}\U0010ffff"
        statement = select(run_id).where(*begins, *where).distinct().limit(most)
        found.update(connection.scalars(statement))
    return sorted(found)[:most]


def read_run(connection: Connection, run_id: str) -> BookedRun | None:
    """One run, with its steps; None if nothing of it is booked."""
    run = next(_described(connection, [run_id]), None)
    if run is None:
        return None
    steps = read_totals(connection, LedgerFilter(run_id=run_id), _BY_STEP_AND_MODEL)
    began: dict[str | None, int] = {}
    for source in (_SUMMED, _NOT_SUMMED):
        step_id = source.columns["step_id"]
        first = select(step_id, func.min(source.sent_at)).select_from(source.rows)
        of_run = source.columns["run_id"] == run_id
        for name, at in connection.execute(first.where(of_run, *source.where).group_by(step_id)):
            began[name] = min(at, began.get(name, at))
    in_order = sorted(steps, key=lambda totals: began.get(totals.keys[0], 0))
    return replace(run, steps=tuple(in_order))


_BY_STEP_AND_MODEL = Grouping(("step_id", "model"), lambda *values: (values,))


def _recency(run: BookedRun) -> tuple[datetime, str]:
    return run.last_sent_at, run.run_id


def _last_run_ids(connection: Connection, selection: LedgerFilter, most: int) -> list[str]:
    last: dict[str, int] = {}
    for source in (_SUMMED, _NOT_SUMMED):
        for run_id, sent_at in _last_of(connection, source, selection, most):
            last[run_id] = max(sent_at, last.get(run_id, sent_at))
    return sorted(last, key=lambda run_id: (last[run_id], run_id), reverse=True)[:most]


def _last_of(
    connection: Connection, source: _Rows, selection: LedgerFilter, most: int
) -> Sequence[tuple[str, int]]:
    """The last runs, each with when it sent its last request.

    Entries are looked through from the last one on, until there are enough runs among them.
    """
    run_id = source.columns["run_id"]
    rows = (
        select(run_id.label("run_id"), source.sent_at.label("sent_at"))
        .select_from(source.rows)
        .where(run_id.is_not(None), *source.where, *times_of(selection, source.sent_at))
        .where(*conditions_of(connection, selection, source.columns))
        .order_by(source.sent_at.desc())
    )
    size = most * _ROWS_PER_RUN
    while True:
        some = rows.limit(size).subquery()
        last = select(some.c.run_id, func.max(some.c.sent_at), func.count())
        found = connection.execute(last.group_by(some.c.run_id)).all()
        if len(found) >= most or sum(row[2] for row in found) < size:
            return [(row[0], row[1]) for row in found]
        size *= _MORE


def _described(connection: Connection, run_ids: Sequence[str]) -> Iterator[BookedRun]:
    are_these = is_one_of(connection, run_ids, runs.c.run_id)
    numbers = list(connection.scalars(select(runs.c.id).where(are_these)))

    def of_these(columns: Columns) -> ColumnElement[bool]:
        if "run" in columns:
            # By number, so that they are found by an index.
            return is_one_of(connection, numbers, columns["run"])
        return is_one_of(connection, run_ids, columns["run_id"])

    totals = read_totals(connection, EVERYTHING, GROUPINGS["run"], of_these)
    of_run = {total.key: replace(total, key=None) for total in totals}
    ends = _ends(connection, run_ids)
    for run_id, texts, first, last in _merged(
        row
        for source in (_SUMMED, _NOT_SUMMED)
        for row in connection.execute(_facts(source).where(of_these(source.columns)))
    ):
        run = BookedRun(
            run_id=run_id,
            run_key=texts["run_key"],
            pipeline=texts["pipeline"],
            deployment=deployment_key(texts["pipeline"], texts["deployment"]),
            created_by=texts["created_by"],
            first_sent_at=moment(first),
            last_sent_at=moment(last),
            totals=of_run.get(run_id, Totals()),
        )
        end = ends.get(run_id)
        if end is not None:
            run = replace(run, name=end.name, outcome=end.outcome, ended_at=end.ended_at)
        yield run


def _ends(connection: Connection, run_ids: Sequence[str]) -> dict[str, EndedRun]:
    """How runs ended the last time: those under Prefect, and in memory those that ended well."""
    found = {}
    whole = select(whole_runs).where(is_one_of(connection, run_ids, whole_runs.c.run_id))
    for row in connection.execute(whole):
        found[row.run_id] = EndedRun(
            run_id=row.run_id,
            pipeline=row.pipeline,
            outcome="completed",
            ended_at=moment(row.ended_at),
        )
    ends = select(run_ends).where(is_one_of(connection, run_ids, run_ends.c.run_id))
    for row in connection.execute(ends.order_by(run_ends.c.ended_at)):
        found[row.run_id] = EndedRun(**{**row._mapping, "ended_at": moment(row.ended_at)})
    return found


def _facts(source: _Rows) -> Any:
    run_id = source.columns["run_id"]
    texts = [func.max(source.columns[name]) for name in _TEXTS]
    facts = select(run_id, func.min(source.sent_at), func.max(source.sent_at), *texts)
    return facts.select_from(source.rows).where(*source.where).group_by(run_id)


def _merged(
    rows: Iterable[Any],
) -> Iterator[tuple[str, dict[str, str | None], int, int]]:
    """Of runs that have entries in the sums and others, one each."""
    merged: dict[str, list[Any]] = {}
    for run_id, first, last, *texts in rows:
        known = merged.setdefault(run_id, [first, last, *texts])
        known[0], known[1] = min(known[0], first), max(known[1], last)
        known[2:] = [one or other for one, other in zip(known[2:], texts, strict=True)]
    for run_id, (first, last, *texts) in merged.items():
        yield run_id, dict(zip(_TEXTS, texts, strict=True)), first, last
