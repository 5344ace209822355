"""The heartbeat of a flow run while its steps run, which tells a living one from a dead one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort

from ...errors import RunLeaseError
from ...leases.run_lease import hold
from ...leases.table import LeaseRequest
from ...ledger.entries import Attribution
from ...settings import load_settings


@asynccontextmanager
async def sign_of_life(flow_run: FlowRun, attribution: Attribution) -> AsyncIterator[None]:
    """Hold a flow run's lease while the block runs.

    Raises:
        Abort: Somebody found the flow run dead and took it up; the block was cancelled. The cause
            is a `RunLeaseError`.
        LedgerUnavailableError: The ledger can't be reached, and must be.
    """
    claim = LeaseRequest(
        kind="flow_run",
        name=str(flow_run.id),
        seconds=load_settings().lease_seconds,
        pipeline=attribution.pipeline,
        run_key=attribution.run_key,
    )
    try:
        async with hold(claim, f"the flow run {flow_run.name!r} of {attribution.pipeline!r}"):
            yield
    except RunLeaseError as error:
        # The state of the flow run is another's to report now; this is how Prefect ends without
        # one.
        raise Abort(str(error)) from error
