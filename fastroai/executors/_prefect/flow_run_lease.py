"""The lease of a flow run: heartbeat while its steps run, then its outcome until it is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, Pause

from ...errors import RunLeaseError
from ...leases.run_lease import HeldLease, hold
from ...leases.table import LeaseRequest, Outcome
from ...ledger.entries import Attribution
from ...settings import FastroAISettings
from ..protocol import ExecutionResult
from .budget_ends import outcome_at
from .error_texts import mask_secrets

NOT_STORED = "ResultsNotStored"
"""Name of the state of a run whose steps are done while some of their results are not stored."""


def outcome_of(result: ExecutionResult) -> Outcome:
    """How a run ended whose steps are done."""
    if result.not_stored:
        return "not_stored"
    return "partial" if result.errors else "completed"


@asynccontextmanager
async def flow_run_lease(
    flow_run: FlowRun, attribution: Attribution, settings: FastroAISettings
) -> AsyncIterator[HeldLease | None]:
    """Hold a flow run's lease while the block runs, which notes its outcome on the lease.

    The outcome stays in the ledger's database until Prefect's server has accepted the final state,
    which the flow engine reports after the block.

    Raises:
        Abort: Another process took over the flow run, and the block was cancelled. The cause is a
            `RunLeaseError`.
        LedgerUnavailableError: The ledger can't be reached, and is required.
    """
    request = LeaseRequest(
        kind="flow_run",
        name=str(flow_run.id),
        seconds=settings.lease_seconds,
        pipeline=attribution.pipeline,
        run_key=attribution.run_key,
    )
    what = f"the flow run {flow_run.name!r} of {attribution.pipeline!r}"
    try:
        async with hold(request, what, settings) as held:
            if held is None:
                yield None
                return
            held.lease.outcome = "crashed"
            task = asyncio.current_task()
            assert task is not None
            # The engine reports how the run ended in this asyncio task, behind the block.
            task.add_done_callback(partial(_release_if_reported, flow_run, held))
            try:
                yield held
            except Exception as error:
                held.lease.outcome = outcome_at(error, flow_run)
                raise
            except Pause:  # somebody suspended it
                held.lease.outcome = "paused"
                raise
    except RunLeaseError as error:
        # The state of the flow run is another's to report now; this is how Prefect ends without
        # one.
        raise Abort(str(error)) from error
    except Exception as error:
        mask_secrets(error)  # before Prefect makes a state and logs of it
        raise


def _release_if_reported(flow_run: FlowRun, held: HeldLease, _: object) -> None:
    """Forget the outcome, or leave it to whoever can report it."""
    # The engine notes a state on its flow run when the server has accepted it.
    state = flow_run.state
    if state is not None and state.is_paused():
        held.heartbeat.suspend(held.lease.claim.token)
    elif state is not None and state.is_final():
        held.heartbeat.release(held.lease.claim.token)
    else:
        held.heartbeat.expire(held.lease.claim.token)
