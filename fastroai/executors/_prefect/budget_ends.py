"""How a run ends in Prefect that a budget stopped."""

from __future__ import annotations

from typing import Any, Final

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Failed

from ...errors import CostBudgetExceededError, StepExecutionError

BUDGET_EXCEEDED: Final = "BudgetExceeded"
"""Name of the state of a run that failed because a request did not fit a budget."""


def state_at_budget(error: BaseException) -> State[Any] | None:
    """The final state of a run that ends with an error, where a budget was the cause; None: leave
    it to Prefect, which makes one of what is raised.

    The state holds the error, so that whoever calls the flow has it raised all the same.
    """
    cause = error
    while isinstance(cause, StepExecutionError):
        cause = cause.original_error
    context = FlowRunContext.get()
    if not isinstance(cause, CostBudgetExceededError) or context is None:
        return None
    # The engine runs a flow again for an exception only, not for a state that it is given.
    if context.flow_run is None or _is_tried_again(context.flow_run):
        return None
    return Failed(name=BUDGET_EXCEEDED, message=str(cause), data=error)


def _is_tried_again(flow_run: FlowRun) -> bool:
    return flow_run.run_count <= (flow_run.empirical_policy.retries or 0)
