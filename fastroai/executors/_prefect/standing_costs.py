"""Standing cost artifacts: what was spent lately, in all and by pipeline, renewed by each run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.urls import url_for

from ...leases.latest import show_latest
from ...leases.shared import configured_heartbeat
from ...leases.table import LeaseRequest
from ...ledger.entries import Attribution
from ...ledger.recent import EndedRun, RecentCosts
from ...ledger.store import LedgerStore
from ...redaction import redact
from ...settings import FastroAISettings
from .artifacts import ArtifactWriter, artifact_key
from .standing_tables import DAYS, Overview

logger = logging.getLogger("fastroai.executors")

OF_ALL: Final = "costs"
LAST_RUNS: Final = 10
_LEASE_SECONDS: Final = 5.0
"""After which another run takes the turn of one whose process has died at it."""


def standing_key(pipeline: str | None) -> str:
    """`pipeline-costs-<pipeline>`; of all, `costs`. No table of a run or step has such a key."""
    return OF_ALL if pipeline is None else artifact_key(pipeline, kind="pipeline-costs")


@dataclass(frozen=True)
class StandingCosts:
    """Renews the two standing artifacts that a run counts in.

    Attributes:
        store: Which ledger is shown.
        artifacts: What writes to Prefect's server.
    """

    store: LedgerStore
    settings: FastroAISettings
    artifacts: ArtifactWriter

    async def renew(self, run: EndedRun, flow_run_id: UUID) -> None:
        """Note how a run ended, and show it with all others. Never raises.

        Of two runs that end at once, each has booked all it spent before it asks for its turn, and
        whoever writes has read the ledger within its turn: the artifact that is written last shows
        both.
        """
        try:
            self.store.note_end(replace(run, name=run.name and redact(run.name)))
            await self.store.flush()
            await self._in_turn(run.pipeline, partial(self._renew, run.pipeline, flow_run_id))
        except Exception as error:
            message = redact(repr(error))
            logger.warning("The standing costs could not be shown in Prefect: %s", message)

    async def _renew(self, pipeline: str, flow_run_id: UUID) -> None:
        """Within the turn of the pipeline, take that of all: the ledger is read once for both."""
        if not await self._in_turn(None, partial(self._show, (pipeline, None), flow_run_id)):
            await self._show((pipeline,), flow_run_id)

    async def _in_turn(self, pipeline: str | None, show: Callable[[], Awaitable[None]]) -> bool:
        claim = LeaseRequest(
            kind="artifact",
            name=standing_key(pipeline),
            seconds=_LEASE_SECONDS,
            pipeline=pipeline,
        )
        return await show_latest(configured_heartbeat(self.settings), claim, show)

    async def _show(self, pipelines: Sequence[str | None], flow_run_id: UUID) -> None:
        now = datetime.now(UTC)
        since = datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=2 * DAYS - 1)
        found = await self.store.recent(pipelines, since, LAST_RUNS)
        artifacts = [
            _artifact(pipeline, costs, now, flow_run_id)
            for pipeline, costs in zip(pipelines, found, strict=True)
        ]
        await asyncio.gather(*map(self.artifacts.create, artifacts))


def _artifact(
    pipeline: str | None, costs: RecentCosts, now: datetime, flow_run_id: UUID
) -> ArtifactCreate:
    overview = Overview(pipeline, costs, now, link_to_run)
    # The page of a key shows the description of its last version above its history; the page of a
    # version shows the data below that.
    return ArtifactCreate(
        key=standing_key(pipeline),
        type="markdown",
        description=overview.first_look,
        data=overview.second_look,
        flow_run_id=flow_run_id,
    )


def link_to_run(run_id: str) -> str:
    """The page of a run in Prefect's UI; without its host where that is not known."""
    return url_for("flow-run", obj_id=run_id) or f"/runs/flow-run/{run_id}"


def ended(flow_run: FlowRun, identity: Attribution, outcome: str) -> EndedRun:
    """A flow run that ends now."""
    return EndedRun(
        run_id=str(flow_run.id),
        name=flow_run.name,
        pipeline=identity.pipeline or "pipeline",
        deployment=identity.deployment,
        outcome=outcome,
        ended_at=datetime.now(UTC),
    )
