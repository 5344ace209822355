"""How a run ends in Prefect that a budget stopped: in a state of its own, or suspended."""

from __future__ import annotations

import logging
from typing import Any, Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Failed, Suspended

from ...errors import CostBudgetExceededError, is_pause, refusal_in
from ...leases.table import Outcome
from ...ledger.entries import Attribution
from ...redaction import redact
from .deployments import identity_of
from .events import RunEvents
from .paused_runs import how_to_go_on, pause_key, reason_of
from .run_scope import active_flow_run

logger = logging.getLogger("fastroai.executors")

BUDGET_EXCEEDED: Final = "BudgetExceeded"
"""Name of the state of a run that failed because a request did not fit a budget."""


def may_be_suspended(flow_run: FlowRun) -> bool:
    """Whether Prefect suspends such a run: a deployment can run it again, and it is no part of
    another one.
    """
    return flow_run.deployment_id is not None and flow_run.parent_task_run_id is None


def outcome_at(error: BaseException, flow_run: FlowRun) -> Outcome:
    """How a run ends with an error."""
    if refusal_in(error) is None:
        return "failed"
    return "paused" if is_pause(error) and may_be_suspended(flow_run) else "over_budget"


async def end_at_budget(error: BaseException, at: Attribution) -> State[Any] | None:
    """The final state of a run that ends with an error, where a budget was the cause; None: leave
    it to Prefect, which makes one of what is raised.

    The state holds the error, so that whoever calls the flow has it raised all the same.

    Args:
        at: What the run's caller says of it.

    Raises:
        Pause: The run is suspended, or will be once the server answers. So its process ends.
    """
    refusal, flow_run = refusal_in(error), active_flow_run()
    if refusal is None or flow_run is None:
        return None
    advice = ""
    if refusal.at_limit == "pause":
        if may_be_suspended(flow_run):
            await _suspend(flow_run, refusal, at)
        advice = _advice(at)
    # The engine runs a flow again for an exception only, not for a state that it is given.
    if is_tried_again(flow_run):
        return None
    return Failed(name=BUDGET_EXCEEDED, message=f"{refusal}{advice}", data=error)


async def _suspend(flow_run: FlowRun, refusal: CostBudgetExceededError, at: Attribution) -> None:
    """Suspend a run for as long as it takes; returns where Prefect does not allow that.

    Raises:
        Pause: It is, or will be.
    """
    # Without a time limit: after one, Prefect would have it fail.
    state: State[Any] = Suspended(
        message=f"Paused at the {how_to_go_on(refusal, str(flow_run.id))}",
        pause_key=pause_key(refusal),
    )
    try:
        async with get_client() as client:
            answer = await client.set_flow_run_state(flow_run.id, state)
    except Exception as failure:
        # Its outcome is kept with the leases, and reported later.
        logger.warning("Prefect could not be told that a run pauses: %s", redact(repr(failure)))
        raise Pause("The run pauses at a budget.") from failure
    if answer.status is SetStateStatus.ACCEPT:
        RunEvents(flow_run, await identity_of(flow_run, at)).paused(refusal)
        raise Pause(state=answer.state)
    logger.warning("Prefect refused to suspend flow run %s: %s", flow_run.id, reason_of(answer))


def _advice(at: Attribution) -> str:
    again = "Run it again"
    if at.run_key is not None:
        again = f"Execute it again with run_key={at.run_key!r} to go on"
    return (
        f". It can't wait for that, as only a run of a deployment can. {again} once it is raised."
    )


def is_tried_again(flow_run: FlowRun) -> bool:
    """Whether Prefect runs the flow that is active here again when it fails."""
    retries, context = flow_run.empirical_policy.retries, FlowRunContext.get()
    if retries is None and context is not None and context.flow is not None:
        retries = context.flow.retries
    return flow_run.run_count <= (retries or 0)
