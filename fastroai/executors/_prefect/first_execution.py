"""Whether a run was executed before, for when its storage can't say."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun

from ...ledger.ledger import Ledger
from .run_scope import RunScope, active_flow_run, is_first_try, was_run_before


async def is_first_execution(run: RunScope, pipeline: str, ledger_url: str) -> bool:
    """Whether it is certain that nobody executed the run before that is active here.

    Of a run with a key, two must agree that they know no other execution: the ledger, where each
    request is booked before it is sent, and Prefect, where the key is the name of the flow run.
    Either of them may be another than that of an earlier execution. Others that are under way are
    kept out by the lease on the key.
    """
    if not run.is_keyed:
        return is_first_try()
    # A flow run that is tried again keeps its name, so its tries have to be told apart by number.
    flow_run = active_flow_run()
    if flow_run is None or was_run_before(flow_run):
        return False
    key = run.text.partition(":")[2]
    try:
        booked = await is_booked_alone(flow_run, pipeline, key, ledger_url)
        return booked and await is_named_alone(flow_run, key)
    except Exception:  # whoever can't be asked knows of one
        return False


async def is_booked_alone(flow_run: FlowRun, pipeline: str, key: str, url: str) -> bool:
    if url.startswith("memory:"):  # what other processes booked is not there
        return False
    async with Ledger.open(url, create=False) as ledger:
        entries = await ledger.entries(pipeline=pipeline, run_key=key)
    return {entry.attribution.run_id for entry in entries} <= {str(flow_run.id)}


async def is_named_alone(flow_run: FlowRun, key: str) -> bool:
    named = FlowRunFilter(name=FlowRunFilterName(any_=[key]))
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=named, limit=2)
    return [other.id for other in found] == [flow_run.id]
