"""Runs that wait at a budget without a process: what they wait for, and how they go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus

from ...budgets import Limit
from ...budgets.budget import amount
from ...errors import CostBudgetExceededError, FastroAIError, RunLeaseError
from ...pricing.money import plain

PREFIX: Final = "fastroai.budget"
"""How the keys begin under which a run is suspended, and the labels with limits that a person gave
it: both stay with the flow run on Prefect's server.
"""


def pause_key(refusal: CostBudgetExceededError) -> str:
    """Under what a run is suspended at a budget; another one each time, as Prefect wants it."""
    return f"{PREFIX}/{uuid4()}/{refusal.scope}/{refusal.name}"


def how_to_go_on(refusal: CostBudgetExceededError, run_id: str) -> str:
    """The budget that stopped a run, what there is of it, and what resumes the run."""
    usd = {"spent": refusal.spent, "held": refusal.held, "unknown": refusal.unknown}
    told = ", ".join(f"{plain(value):f} {what}" for what, value in usd.items() if value is not None)
    limit = plain(refusal.limit) if refusal.limit is not None else Decimal(0)
    resume = f"fastroai runs resume {run_id}"
    if refusal.scope == "standing":
        go_on = f"`{refusal.raise_with}`, then `{resume}` or Resume in Prefect's UI."
    else:
        go_on = (
            f"`{resume} --budget {plain(2 * limit or Decimal(1)):f}` raises it and resumes the run."
        )
    reason = f" {refusal.reason}" if refusal.reason else ""
    return (
        f"{refusal.scope} budget {refusal.name!r} of {limit:f} USD ({told}), in step "
        f"{refusal.step_id!r}.{reason} To go on: {go_on}"
    )


def raise_budgets(limits: Iterable[Limit], flow_run: FlowRun) -> None:
    """Have a run's budgets be as high as a person has raised them for this run."""
    for limit in limits:
        raised = flow_run.labels.get(_label(limit.scope, limit.name))
        if raised is not None:
            usd = max(limit.budget.usd, amount("usd", str(raised)))
            limit.budget = replace(limit.budget, usd=usd)


async def resume_paused(flow_run: FlowRun, usd: Decimal | None) -> str:
    """Schedule a paused run again for a worker of its deployment, and describe what was done.

    Args:
        usd: The new limit of the budget at which it paused, if that is the run's or a step's.

    Raises:
        FastroAIError: It did not pause at such a budget, and nothing was done.
        RunLeaseError: Prefect's server refuses to resume it.
    """
    done = "Resumed"
    async with get_client() as client:
        if usd is not None:
            scope, name = _budget_of(flow_run)
            await client.update_flow_run_labels(
                flow_run.id, {_label(scope, name): f"{plain(usd):f}"}
            )
            done = f"The {scope} budget {name!r} is {plain(usd):f} USD for it. Resumed"
        answer = await client.resume_flow_run(flow_run.id)
    if answer.status is not SetStateStatus.ACCEPT:
        raise RunLeaseError(
            f"Prefect's server refused to resume {flow_run.id}: {reason_of(answer)}"
        )
    return f"{flow_run.name} ({flow_run.id}): {done}: scheduled for a worker of its deployment."


def reason_of(answer: OrchestrationResult[Any]) -> str:
    """Why Prefect's server did not set a state that it was asked to."""
    reason: str | None = getattr(answer.details, "reason", None)
    return reason or answer.status.value


def _budget_of(flow_run: FlowRun) -> tuple[str, str]:
    """Scope and name of the budget at which a run paused, which must be its own."""
    state: State[object] | None = flow_run.state
    key = state.state_details.pause_key if state is not None else None
    parts = (key or "").split("/", 3)
    if parts[0] != PREFIX:
        raise FastroAIError(f"Flow run {flow_run.id} did not pause at a budget: omit --budget.")
    _, _, scope, name = parts
    if scope == "standing":
        raise FastroAIError(
            f"Flow run {flow_run.id} paused at the standing budget {name!r}, which is not its own: "
            f"raise that with `fastroai budgets raise {shlex.quote(name)} USD`, and omit --budget."
        )
    return scope, name


def _label(scope: str, name: str) -> str:
    return f"{PREFIX}.{scope}.{name}"
