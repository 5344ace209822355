"""What the last runs of a pipeline cost, by step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select

from ...database.values import Row, microseconds, moment
from ..aggregation import Grouping, Totals, whole_of
from ..filters import LedgerFilter
from ..history import RecordedRun, StepCost, WholeRun
from .queries import Columns
from .schema import runs, whole_runs
from .statements import is_one_of
from .totals import read_totals

Work = tuple[str | None, str | None]
"""A piece of work: its run key, or without one the id of its only run."""


def whole_run_row(run: WholeRun) -> Row:
    """A run as it is stored."""
    return {
        "run_id": run.run_id,
        "run_key": run.run_key,
        "pipeline": run.pipeline,
        "shape": run.shape,
        "ended_at": microseconds(run.ended_at),
    }


def read_history(connection: Connection, pipeline: str, most: int) -> tuple[RecordedRun, ...]:
    """The last runs of a pipeline that ended well, the oldest first; several executions under one
    key are one run.
    """
    table = whole_runs
    last = (
        select(table)
        .where(table.c.pipeline == pipeline)
        .order_by(table.c.ended_at.desc(), table.c.run_id)
        .limit(most)
    )
    ended: dict[Work, WholeRun] = {}
    for row in connection.execute(last):
        run = WholeRun(**{**row._mapping, "ended_at": moment(row.ended_at)})
        ended.setdefault(_work_of(run.run_id, run.run_key), run)
    if not ended:
        return ()
    works = Works(connection, ended)
    found: dict[Work, dict[str | None, list[tuple[str | None, Totals]]]] = {}
    for totals in read_totals(connection, LedgerFilter(pipeline=pipeline), _BY_STEP, works):
        key, run_id, step_id, model = json.loads(totals.key or "")
        steps = found.setdefault((key, run_id), {})
        steps.setdefault(step_id, []).append((model, totals))
    return tuple(
        RecordedRun(run=run, steps=dict(_step_costs(found.get(work, {}))))
        for work, run in reversed(ended.items())
    )


def _step_costs(
    steps: Mapping[str | None, Sequence[tuple[str | None, Totals]]],
) -> Iterator[tuple[str | None, StepCost]]:
    for step_id, by_model in steps.items():
        total = whole_of([totals for _, totals in by_model])
        yield (
            step_id,
            StepCost(
                models=frozenset(model for model, _ in by_model),
                sent=total.sent,
                unknown=total.unknown,
                simulated=total.simulated,
                replayed=total.replayed,
                usd=total.cost_usd,
            ),
        )


def _work_of(run_id: str | None, run_key: str | None) -> Work:
    return run_key, run_id if run_key is None else None


def _keys(
    run_id: str | None, run_key: str | None, step_id: str | None, model: str | None
) -> tuple[str]:
    return (json.dumps([*_work_of(run_id, run_key), step_id, model]),)


_BY_STEP = Grouping(("run_id", "run_key", "step_id", "model"), _keys)


class Works:
    """Selects what some pieces of work have sent."""

    def __init__(self, connection: Connection, works: Iterable[Work]) -> None:
        self._connection = connection
        works = tuple(works)
        self._keys = [key for key, _ in works if key is not None]
        self._ids = [run_id for _, run_id in works if run_id is not None]
        known = select(runs.c.id).where(self._have(runs.c))
        # By number, so that the sums are found by their index.
        self._numbers = [row.id for row in connection.execute(known)]

    def __call__(self, columns: Columns) -> ColumnElement[bool]:
        if "run" in columns:
            return is_one_of(self._connection, self._numbers, columns["run"])
        return self._have(columns)

    def _have(self, columns: Any) -> ColumnElement[bool]:
        return or_(
            is_one_of(self._connection, self._ids, columns["run_id"]),
            is_one_of(self._connection, self._keys, columns["run_key"]),
        )
