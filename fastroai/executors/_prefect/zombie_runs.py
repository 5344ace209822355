"""Flow runs that Prefect's server wrongly shows as running: dead ones are resumed, ended ones
reported. Paused ones are resumed, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
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
from prefect.states import AwaitingRetry, Completed, Crashed, Failed, Suspended

from ...errors import FastroAIError, RunLeaseError
from ...leases.heartbeat import Lease
from ...leases.shared import configured_heartbeat
from ...leases.table import LeaseRecord, LeaseRequest, Outcome
from ...redaction import redact
from ...settings import FastroAISettings
from .budget_ends import BUDGET_EXCEEDED
from .deployments import read_deployment_name
from .flow_run_lease import NOT_STORED
from .paused_runs import reason_of, resume_paused

logger = logging.getLogger("fastroai.executors")

_PAGE = 200
_LATE = "Ended while Prefect's server was unreachable"

_FINAL_STATES: dict[Outcome, Callable[[str], State[object]]] = {
    "completed": lambda message: Completed(message=message),
    "partial": lambda message: Completed(message=f"{message} Some steps failed."),
    "not_stored": lambda message: Completed(name=NOT_STORED, message=message),
    "failed": lambda message: Failed(message=message),
    "over_budget": lambda message: Failed(name=BUDGET_EXCEEDED, message=message),
    "paused": lambda message: Suspended(message=f"{message} It waits at a budget."),
    "crashed": lambda message: Crashed(message=message),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A flow run with a heartbeat, one whose process died, or one that is paused.

    Attributes:
        deployment: As `flow/deployment`; None if `execute` started it.
        state: Its state's name on the server.
        holding: The process that runs it, or ran it, since when, and its last heartbeat.
    """

    flow_run: FlowRun
    deployment: str | None
    state: str
    holding: LeaseRecord

    @property
    def is_dead(self) -> bool:
        """Whether its process died before it ended."""
        return not (self.holding.is_alive or self.is_paused)

    @property
    def is_paused(self) -> bool:
        """Whether it waits for somebody to resume it, without a process."""
        return self.holding.claim.kind == "suspended_run"

    @property
    def advice(self) -> str:
        """How it goes on once it is resumed."""
        key = self.holding.claim.run_key
        if self.deployment is not None:
            return f"Scheduled again for a worker of {self.deployment!r}, which resumes it."
        if key is not None:
            return (
                f"Marked as crashed. Execute {self.holding.claim.pipeline!r} again with "
                f"run_key={key!r} to resume it."
            )
        if self.flow_run.parent_task_run_id is not None:
            return "Marked as crashed. It is part of another flow run: retry that one to resume it."
        return (
            "Marked as crashed. It has no run_key, so another execution starts from the beginning."
        )


async def tracked_runs(settings: FastroAISettings) -> tuple[list[TrackedRun], int]:
    """The active, dead and paused runs that use this ledger; then how many of them this Prefect
    server does not know.

    Dead and paused runs that have a final state by now, for example set in the UI, are forgotten.

    Raises:
        LedgerUnavailableError: The ledger can't be read.
    """
    heartbeat = configured_heartbeat(settings)
    paused = await asyncio.wrap_future(heartbeat.holdings("suspended_run"))
    taken = await asyncio.wrap_future(heartbeat.holdings("flow_run"))
    holdings = {record.claim.name: record for record in [*paused, *taken]}
    runs: list[TrackedRun] = []
    async with get_client() as client:
        flow_runs = await read_flow_runs(client, list(map(UUID, holdings)))
        deployments = await read_deployments(client, flow_runs)
    for flow_run in flow_runs:
        holding = holdings[str(flow_run.id)]
        if not holding.is_alive and has_ended(flow_run):
            await asyncio.wrap_future(heartbeat.release(holding.claim.token))
            continue
        if holding.claim.kind == "suspended_run" and not is_paused(flow_run):
            continue  # about to run again
        deployment = deployments.get(flow_run.deployment_id)
        state = flow_run.state_name or "no state"
        runs.append(
            TrackedRun(flow_run=flow_run, deployment=deployment, state=state, holding=holding)
        )
    runs.sort(key=lambda run: run.holding.since)
    return runs, len(holdings) - len(flow_runs)


async def read_deployments(
    client: PrefectClient, flow_runs: Sequence[FlowRun]
) -> dict[UUID | None, str | None]:
    """The names of the deployments of flow runs, each read once."""
    names: dict[UUID | None, str | None] = {}
    for flow_run in flow_runs:
        deployment = flow_run.deployment_id
        if deployment is not None and deployment not in names:
            names[deployment] = await read_deployment_name(client, deployment)
    return names


async def resume_run(
    run: TrackedRun, settings: FastroAISettings, usd: Decimal | None = None
) -> str:
    """Resume a dead or paused run, and describe what was done.

    A deployed one is scheduled again: a worker runs the same flow run, which finds the results of
    its finished steps. One that `execute` started is marked as crashed: only its program can start
    it again.

    Args:
        usd: The new limit of the budget of its own at which it paused.

    Raises:
        FastroAIError: There is no such budget to raise; nothing was done.
        RunLeaseError: It is alive, or Prefect's server refuses its new state.
        LedgerUnavailableError: The ledger can't be written; nothing was done.
    """
    if run.is_paused:
        return await resume_paused(run.flow_run, usd)
    if usd is not None:
        raise FastroAIError(f"Flow run {run.flow_run.id} did not pause at a budget: omit --budget.")
    heartbeat = configured_heartbeat(settings)
    claim = LeaseRequest(kind="flow_run", name=str(run.flow_run.id), seconds=settings.lease_seconds)
    while True:
        taken = await asyncio.wrap_future(heartbeat.take(claim, lambda: None))
        if isinstance(taken, Lease):
            break
        if taken.is_alive:
            raise RunLeaseError(
                f"Flow run {run.flow_run.name!r} ({run.flow_run.id}) is alive: process "
                f"{taken.claim.pid} on {taken.claim.host}, last heartbeat {taken.silent:.1f} s "
                f"ago. It counts as dead after {taken.claim.seconds:g} s without one."
            )
        # It seems dead by the wall clock, which may have been set: until its lease has been watched
        # for as long as it lasts, it can't be taken.
        await asyncio.sleep(min(1.0, claim.seconds / 10))
    try:
        async with get_client() as client:
            return await put_back(client, run)
    finally:
        # Its process, should it only have slept, finds its lease gone and stops.
        await asyncio.shield(asyncio.wrap_future(heartbeat.release(claim.token)))


async def put_back(client: PrefectClient, run: TrackedRun) -> str:
    flow_run, holding = run.flow_run, run.holding
    cause = (
        f"Process {holding.claim.pid} on {holding.claim.host} died without reporting a final state."
    )
    if flow_run.state_type is not StateType.CRASHED:
        await set_state(client, flow_run, Crashed(message=f"{cause} {run.advice}"))
    died: State[object] = Crashed(message="Its process died without reporting a final state.")
    await end_task_runs(client, flow_run.id, died)
    if run.deployment is not None:
        retry: State[object] = AwaitingRetry(message=f"{cause} Resumed by `fastroai runs`.")
        await set_state(client, flow_run, retry)
    return f"{flow_run.name} ({flow_run.id}): {run.advice}"


async def report_own_ended_runs(settings: FastroAISettings) -> None:
    """Report the runs of this process that ended while Prefect's server was unreachable; never
    raises.
    """
    try:
        if configured_heartbeat(settings).unreported:
            for line in await report_ended_runs(settings):
                logger.warning("%s", line)
    except Exception as error:  # the next run, or `fastroai runs`, tries again
        logger.warning(
            "Runs that ended earlier could not be reported to Prefect: %s", redact(str(error))
        )


async def report_ended_runs(settings: FastroAISettings) -> list[str]:
    """Tell Prefect's server how runs ended while it was unreachable; gives a line for each.

    Raises:
        LedgerUnavailableError: The ledger can't be read.
    """
    heartbeat = configured_heartbeat(settings)
    # What is alive is still being reported by its own process.
    ended = {
        record.claim.name: record
        for record in await asyncio.wrap_future(heartbeat.ended())
        if not record.is_alive
    }
    lines: list[str] = []
    if not ended:
        return lines
    async with get_client() as client:
        for flow_run in await read_flow_runs(client, list(map(UUID, ended))):
            record = ended[str(flow_run.id)]
            if lacks_its_end(flow_run):
                try:
                    state = await report_end(client, flow_run, record)
                except FastroAIError as error:
                    lines.append(str(error))
                    continue
                lines.append(f"{flow_run.name} ({flow_run.id}): {_LATE}; it is {state} now.")
            # A paused one stays known, for whoever resumes it.
            forget = heartbeat.suspend if record.outcome == "paused" else heartbeat.release
            await asyncio.wrap_future(forget(record.claim.token))
    return lines


def lacks_its_end(flow_run: FlowRun) -> bool:
    """Whether the server lacks the end of a run.

    A worker whose run could not report its end has marked it as crashed; a scheduled one is going
    to be run again.
    """
    if flow_run.state is None or flow_run.state.is_scheduled() or is_paused(flow_run):
        return False
    return flow_run.state.is_crashed() or not flow_run.state.is_final()


async def report_end(client: PrefectClient, flow_run: FlowRun, record: LeaseRecord) -> str:
    """Give a flow run its final state; returns the name of the state it has then."""
    assert record.outcome is not None
    ended_at = datetime.now(UTC) - timedelta(seconds=record.silent)
    message = f"{_LATE}, at {ended_at:%Y-%m-%d %H:%M:%S} UTC."
    state = _FINAL_STATES[record.outcome](message)
    if record.outcome == "completed":
        task_state: State[object] = Completed(message=message)
    else:
        task_state = Crashed(message=f"{_LATE}; how is not known.")
    await end_task_runs(client, flow_run.id, task_state)
    # The server may decide to retry a failed run of a deployment; for others there is no worker.
    retries = record.outcome == "failed" and flow_run.deployment_id is not None
    return await set_state(client, flow_run, state, force=not retries)


async def set_state(
    client: PrefectClient, flow_run: FlowRun, state: State[object], *, force: bool = False
) -> str:
    answer = await client.set_flow_run_state(flow_run.id, state, force=force)
    retried = answer.state is not None and answer.state.is_scheduled()
    if answer.status is not SetStateStatus.ACCEPT and not retried:
        reason = reason_of(answer)
        raise RunLeaseError(
            f"Prefect's server refused {state.name!r} for flow run {flow_run.id}: {reason}."
        )
    accepted = answer.state or state
    return accepted.name or accepted.type.value


async def end_task_runs(client: PrefectClient, flow_run_id: UUID, state: State[object]) -> None:
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
        await client.set_task_run_state(task_run.id, state, force=True)


def is_paused(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.is_paused()


def has_ended(flow_run: FlowRun) -> bool:
    """Whether there is nothing left to resume: a worker marks dead runs as crashed."""
    return (
        flow_run.state is not None and flow_run.state.is_final() and not flow_run.state.is_crashed()
    )


async def read_flow_runs(client: PrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    found: list[FlowRun] = []
    for start in range(0, len(ids), _PAGE):
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[start : start + _PAGE])))
        found += await client.read_flow_runs(flow_run_filter=chosen, limit=_PAGE)
    return found
