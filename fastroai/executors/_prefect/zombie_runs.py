"""Flow runs whose process died: found by their missing heartbeat, and put back to be run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import AwaitingRetry, Crashed

from ...errors import RunLeaseError
from ...leases.heartbeat import Heartbeat, Lease
from ...leases.shared import configured_heartbeat
from ...leases.table import LeaseRecord, LeaseRequest
from ...settings import load_settings

_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A flow run that gives signs of life, or gave them until its process died.

    Attributes:
        deployment: None where `execute` started it.
        state: As the server names it.
        holding: Who runs it, since when, and when it was last heard of.
    """

    flow_run: FlowRun
    deployment: str | None
    state: str
    holding: LeaseRecord

    @property
    def is_dead(self) -> bool:
        """Whether nobody runs it any more, although it did not come to an end."""
        return not self.holding.is_alive


async def tracked_runs() -> tuple[list[TrackedRun], int]:
    """The runs under way, and those that died; then the number of those this Prefect server knows
    nothing of.

    A run is only known here when it wrote to the same ledger. What ended after all, for example
    because somebody ended it in the UI, is forgotten.

    Raises:
        LedgerUnavailableError: The ledger can't be read.
    """
    heartbeat = configured_heartbeat()
    holdings = {
        holding.claim.name: holding
        for holding in await asyncio.wrap_future(heartbeat.holdings("flow_run"))
    }
    runs: list[TrackedRun] = []
    async with get_client() as client:
        flow_runs = await _flow_runs(client, [UUID(name) for name in holdings])
        names = await _deployment_names(client, flow_runs)
    for flow_run in flow_runs:
        holding = holdings[str(flow_run.id)]
        if not holding.is_alive and _has_ended(flow_run):
            await asyncio.wrap_future(heartbeat.release(holding.claim.token))
            continue
        deployment = None if flow_run.deployment_id is None else names[flow_run.deployment_id]
        state = flow_run.state_name or "no state"
        runs.append(
            TrackedRun(flow_run=flow_run, deployment=deployment, state=state, holding=holding)
        )
    runs.sort(key=lambda run: run.holding.since)
    return runs, len(holdings) - len(flow_runs)


async def resume(run: TrackedRun) -> str:
    """Take up a dead run, and say what was done.

    A deployed one is put back, so that a worker runs the same flow run again and finds the results
    of its finished steps. One that `execute` started is marked as crashed: only its program can
    start it again.

    Raises:
        RunLeaseError: It is alive, or Prefect's server does not take its new state.
        LedgerUnavailableError: The ledger can't be written; nothing was done.
    """
    heartbeat = configured_heartbeat()
    claim = LeaseRequest(
        kind="flow_run", name=str(run.flow_run.id), seconds=load_settings().lease_seconds
    )
    await _take_over(heartbeat, claim, run)
    try:
        async with get_client() as client:
            return await _put_back(client, run)
    finally:
        # Its process, should it only have slept, finds its lease gone and stops.
        await asyncio.shield(asyncio.wrap_future(heartbeat.release(claim.token)))


async def _take_over(heartbeat: Heartbeat, claim: LeaseRequest, run: TrackedRun) -> None:
    """One at a time, and only from the dead."""
    taken = await asyncio.wrap_future(heartbeat.take(claim, lambda: None))
    if isinstance(taken, Lease):
        return
    raise RunLeaseError(
        f"Flow run {run.flow_run.name!r} ({run.flow_run.id}) is alive: process {taken.claim.pid} "
        f"on {taken.claim.host} gave a sign of life {taken.silent:.1f} s ago. It counts as dead "
        f"after {taken.claim.seconds:g} s without one."
    )


async def _put_back(client: PrefectClient, run: TrackedRun) -> str:
    flow_run, holding = run.flow_run, run.holding
    who = f"Process {holding.claim.pid} on {holding.claim.host} ended without a word."
    advice = _advice(run)
    if flow_run.state_type is not StateType.CRASHED:
        await _set_state(client, flow_run, Crashed(message=f"{who} {advice}"))
    await _end_task_runs(client, flow_run.id)
    if run.deployment is not None:
        await _set_state(
            client, flow_run, AwaitingRetry(message=f"{who} Resumed by `fastroai runs`.")
        )
    return f"{flow_run.name} ({flow_run.id}): {advice}"


async def _set_state(client: PrefectClient, flow_run: FlowRun, state: State[Any]) -> None:
    answer = await client.set_flow_run_state(flow_run.id, state)
    if answer.status is not SetStateStatus.ACCEPT:
        reason = getattr(answer.details, "reason", None) or answer.status.value
        raise RunLeaseError(
            f"Prefect's server did not take {state.name!r} for flow run {flow_run.id}: {reason}."
        )


def _advice(run: TrackedRun) -> str:
    if run.deployment is not None:
        return f"Put back for a worker of {run.deployment!r}, which goes on where it stopped."
    key = run.holding.claim.run_key
    if run.flow_run.parent_task_run_id is not None and key is None:
        return (
            "Marked as crashed. It is part of another flow run: retry that one, and it goes on "
            "where it stopped."
        )
    if key is None:
        return (
            "Marked as crashed. It had no run_key, so another execution starts from the beginning."
        )
    return (
        f"Marked as crashed. Execute {run.holding.claim.pipeline!r} again with run_key={key!r}: it "
        "goes on from here."
    )


async def _end_task_runs(client: PrefectClient, flow_run_id: UUID) -> None:
    """Task runs that were under way would stay so in the UI."""
    running = TaskRunFilterState(
        type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    )
    found = await client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        task_run_filter=TaskRunFilter(state=running),
        limit=_PAGE,
    )
    for task_run in found:
        await client.set_task_run_state(
            task_run.id, Crashed(message="Its process ended without a word."), force=True
        )


def _has_ended(flow_run: FlowRun) -> bool:
    """Whether there is nothing left to resume.

    A worker that saw the process die has marked the run as crashed.
    """
    return (
        flow_run.state is not None and flow_run.state.is_final() and not flow_run.state.is_crashed()
    )


async def _flow_runs(client: PrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    found: list[FlowRun] = []
    for start in range(0, len(ids), _PAGE):
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[start : start + _PAGE])))
        found += await client.read_flow_runs(flow_run_filter=chosen, limit=_PAGE)
    return found


async def _deployment_names(client: PrefectClient, flow_runs: Sequence[FlowRun]) -> dict[UUID, str]:
    ids = {flow_run.deployment_id for flow_run in flow_runs if flow_run.deployment_id is not None}
    return {id_: (await client.read_deployment(id_)).name for id_ in ids}
