"""The last runs in a ledger, and what was spent lately."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from itertools import chain

from sqlalchemy import Connection, select

from ...database.values import Row, microseconds, moment
from ..aggregation import GROUPINGS, Grouping, Totals, deployment_key, whole_of
from ..filters import EVERYTHING, LedgerFilter
from ..recent import EndedRun, RecentCosts, Spending
from .histories import Works
from .schema import run_ends
from .totals import read_totals


def run_end_row(run: EndedRun) -> Row:
    """How a run ended, as it is stored."""
    return {**asdict(run), "ended_at": microseconds(run.ended_at)}


def read_recent(
    connection: Connection, pipelines: Sequence[str | None], since: datetime, most: int
) -> tuple[RecentCosts, ...]:
    """The last runs, and what was spent since some time: of each of some pipelines.

    Args:
        pipelines: Their names; None: of all.
        most: Of how many runs.
    """
    ended = [_last_ended(connection, pipeline, most) for pipeline in pipelines]
    of_runs: Sequence[Totals] = ()
    if run_ids := set(chain.from_iterable(ended)):
        works = Works(connection, ((None, run_id) for run_id in run_ids))
        of_runs = read_totals(connection, EVERYTHING, _BY_PIPELINE_AND_RUN, works)
    asked = LedgerFilter(pipeline=pipelines[0] if len(pipelines) == 1 else None, since=since)
    spending = tuple(map(_spending, read_totals(connection, asked, _BY_ALL)))

    def costs_of(pipeline: str | None, runs: Mapping[str, EndedRun]) -> RecentCosts:
        costs: dict[str | None, list[Totals]] = {}
        for total in of_runs:
            name, run_id = total.keys
            if pipeline in (None, name):
                costs.setdefault(run_id, []).append(total)
        return RecentCosts(
            runs=tuple((run, whole_of(costs.get(run_id, ()))) for run_id, run in runs.items()),
            spending=tuple(spent for spent in spending if pipeline in (None, spent.pipeline)),
        )

    return tuple(map(costs_of, pipelines, ended))


def _last_ended(connection: Connection, pipeline: str | None, most: int) -> dict[str, EndedRun]:
    """By id, the newest first. One that went on later counts as of its last end."""
    ended: dict[str, EndedRun] = {}
    last = select(run_ends).order_by(run_ends.c.ended_at.desc(), run_ends.c.run_id)
    if pipeline is not None:
        last = last.where(run_ends.c.pipeline == pipeline)
    with connection.execute(last.execution_options(yield_per=2 * most)) as rows:
        for row in rows:
            found = {**row._mapping, "ended_at": moment(row.ended_at)}
            ended.setdefault(row.run_id, EndedRun(**found))
            if len(ended) == most:
                break
    return ended


def _keys(
    pipeline: str | None,
    day: date,
    deployment: str | None,
    model: str | None,
    tags: Mapping[str, str],
    flow_tags: tuple[str, ...],
) -> tuple[str]:
    of_tags = [tag for tag in GROUPINGS["tag"].keys(tags, flow_tags) if tag is not None]
    named = deployment_key(pipeline, deployment)
    return (json.dumps([pipeline, day.isoformat(), named, model, of_tags]),)


_BY_PIPELINE_AND_RUN = Grouping(("pipeline", "run_id"), lambda *values: (values,))
_BY_ALL = Grouping(("pipeline", "day", "deployment", "model", "tags", "flow_tags"), _keys)


def _spending(totals: Totals) -> Spending:
    pipeline, day, deployment, model, tags = json.loads(totals.key or "")
    return Spending(
        pipeline=pipeline,
        day=date.fromisoformat(day),
        deployment=deployment,
        model=model,
        tags=tuple(tags),
        totals=totals,
    )
