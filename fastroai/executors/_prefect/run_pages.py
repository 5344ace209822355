"""What Prefect says of runs and their steps, for people who look at what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.utilities.urls import url_for

from .zombie_runs import read_flow_runs

_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A flow run, or a task run of one, as Prefect's server knows it.

    Attributes:
        state: Its state's name.
        started_at: None: it has not.
        seconds: How long it ran, up to now if it does still.
        url: Its page in Prefect's UI.
    """

    name: str
    state: str
    started_at: datetime | None
    seconds: float
    url: str | None = None


async def read_run_pages(run_ids: Iterable[str]) -> dict[str, RunPage]:
    """By their ids, the runs that the server knows."""
    ids = [id_ for id_ in map(_as_uuid, run_ids) if id_ is not None]
    if not ids:
        return {}
    async with get_client() as client:
        found = await read_flow_runs(client, ids)
    return {str(run.id): _page(run, url_for("flow-run", obj_id=run.id)) for run in found}


async def read_step_pages(run_id: str) -> list[RunPage]:
    """The task runs of a flow run, in the order in which they started."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id)]))
    found: list[TaskRun] = []
    async with get_client() as client:
        while True:
            page = await client.read_task_runs(
                flow_run_filter=of_run,
                sort=TaskRunSort.EXPECTED_START_TIME_ASC,
                limit=_PAGE,
                offset=len(found),
            )
            found += page
            if len(page) < _PAGE:
                return list(map(_page, found))


def _page(run: FlowRun | TaskRun, url: str | None = None) -> RunPage:
    return RunPage(
        name=run.name,
        state=run.state_name or "no state",
        started_at=run.start_time,
        seconds=run.estimated_run_time.total_seconds(),
        url=url,
    )


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:  # a run's in memory, or of another program that books
        return None
