"""Flow runs that work on the items of another one: started, watched, begun again, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry, Cancelling, Pending

from ...errors import RunLeaseError
from ...leases.shared import configured_heartbeat
from ...leases.table import LeaseRecord
from ...settings import FastroAISettings
from .chunk_runs import CHUNK_LABEL, STEP_LABEL
from .deployments import read_deployment_name
from .step_task import literal_name
from .zombie_runs import TrackedRun, read_flow_runs, resume_run, set_state

_OPEN = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CRASHED,
]
_PAGE = 200

Verdict = Literal["works", "unheard", "lost", "over"]


def verdict(run: FlowRun | None, holding: LeaseRecord | None) -> Verdict:
    """What can be said of a run by its state and its heartbeat.

    `unheard`: it was begun, and has no heartbeat yet. `lost`: it died or failed, and may be begun
    again. `over`: it ended, or is gone.
    """
    if run is None or run.state is None or run.state.is_completed() or run.state.is_cancelled():
        return "over"
    if run.state.is_failed() or run.state.is_crashed():
        # Who seems to live may only have been unable to report.
        return "works" if holding is not None and holding.is_alive else "lost"
    if run.state.is_cancelling():
        return "works" if holding is not None and holding.is_alive else "over"
    if run.state.is_pending() or run.state.is_running():
        if holding is None:
            return "unheard"
        return "works" if holding.is_alive else "lost"
    return "works"  # as it is scheduled


@dataclass(eq=False)
class ChunkRuns:
    """Runs of one deployment that work for one step of a run.

    Attributes:
        parent: The flow run that waits for them.
        deployment: What they are runs of; an id, or its name.
        parameters: Of the flow: the run's input.
        tag: What all of them have, in each execution of the run.
    """

    parent: UUID
    deployment: UUID | str
    parameters: dict[str, Any]
    step_id: str
    tag: str
    settings: FastroAISettings
    name: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _client: PrefectClient | None = None
    _id: UUID | None = None
    _started: int = 0

    async def client(self) -> PrefectClient:
        """A connection to the server, open until `close`."""
        if self._client is None:
            self._client = await self._stack.enter_async_context(get_client())
        return self._client

    async def close(self) -> None:
        """Close the connection."""
        await self._stack.aclose()
        self._client = None

    async def deployment_id(self) -> UUID:
        """
        Raises:
            ObjectNotFound: There is no such deployment.
        """
        if self._id is None:
            client = await self.client()
            if isinstance(self.deployment, str):
                self._id = (await client.read_deployment_by_name(self.deployment)).id
            else:
                self._id = self.deployment
            self.name = await read_deployment_name(client, self._id)
        return self._id

    async def start(self, chunk: str, items: int) -> FlowRun:
        """Have a worker work on a chunk.

        Args:
            chunk: Name of its record.
            items: How many they are.
        """
        deployment, client = await self.deployment_id(), await self.client()
        self._started += 1
        shown = literal_name(f"{self.step_id}: {items} items, {self._started}")
        # It stands for the other run in this one, as Prefect's run_deployment has it.
        stand_in = await client.create_task_run(
            Task(_nothing, name=f"{self.step_id} elsewhere"),
            flow_run_id=self.parent,
            dynamic_key=chunk,
            name=shown,
            state=Pending(),
        )
        return await client.create_flow_run_from_deployment(
            deployment,
            parameters=self.parameters,
            name=shown,
            tags=[self.tag],
            idempotency_key=chunk,
            parent_task_run_id=stand_in.id,
            labels={CHUNK_LABEL: chunk, STEP_LABEL: self.step_id},
        )

    async def earlier(self) -> list[FlowRun]:
        """Those that an earlier execution has started, and that may go on."""
        states = FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN))
        client = await self.client()
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[self.tag]), state=states),
            limit=_PAGE,
        )

    async def look_at(
        self, ids: Iterable[UUID]
    ) -> tuple[Mapping[UUID, FlowRun], Mapping[str, LeaseRecord]]:
        """Runs as the server has them, and who holds which runs."""
        found = await read_flow_runs(await self.client(), list(ids))
        heartbeat = configured_heartbeat(self.settings)
        holdings = await asyncio.wrap_future(heartbeat.holdings("flow_run"))
        held = {holding.claim.name: holding for holding in holdings}
        return {run.id: run for run in found}, held

    async def begin_again(self, run: FlowRun, holding: LeaseRecord | None) -> bool:
        """Have a worker take up a run that died or failed; whether it will.

        A process that only slept finds its lease taken, and sends nothing more.
        """
        if holding is not None:
            dead = TrackedRun(
                flow_run=run,
                deployment=self.name or str(self.deployment),
                state=run.state_name or "",
                holding=holding,
            )
            try:
                await resume_run(dead, self.settings)
            except RunLeaseError:
                return False  # it lives
            return True
        again: Any = AwaitingRetry(message="Begun again for the items that are left.")
        await set_state(await self.client(), run, again, force=True)
        return True

    async def cancel(self, ids: Iterable[UUID]) -> None:
        """Have runs end that nobody waits for any more."""
        client = await self.client()
        for id_ in ids:
            await client.set_flow_run_state(id_, Cancelling())


def _nothing() -> None:
    pass
