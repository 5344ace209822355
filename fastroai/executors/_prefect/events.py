"""Prefect events of what runs cost and of their budgets, for automations to act on.

Prefect's own worker sends them, as it does the states of tasks: to emit one puts it into a queue of
the process, whatever the server does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import emit_event

from ...budgets import Account, BudgetSignal
from ...errors import CostBudgetExceededError
from ...ledger.aggregation import totals_of
from ...ledger.entries import Attribution, LedgerEntry
from ...pricing.money import EXACT, plain
from ...redaction import redact

logger = logging.getLogger("fastroai.executors")

Payload = Mapping[str, str | int | None]

PREFIX: Final = "fastroai"


@dataclass(eq=False)
class RunEvents:
    """Emits the events of one flow run, made where it runs.

    Each names the flow run, its deployment if it has one, and the pipeline as related resources;
    Prefect adds the flow, tags and the like. Amounts are USD as decimal texts.

    Args:
        identity: Whom the run is booked to.
    """

    _flow_run: FlowRun
    _identity: Attribution
    _told: set[tuple[object, ...]] = field(default_factory=set)
    # Budgets are told of in whatever thread, without the run's context.
    _context: Context = field(default_factory=copy_context)

    @property
    def _pipeline(self) -> str:
        return self._identity.pipeline or "pipeline"

    def hear(self, signal: BudgetSignal) -> None:
        """Emit `fastroai.budget.warning` or `.exceeded`, if a budget's signal is of this run."""
        if not self._is_of_this_run(signal.at):
            return
        # Of many requests that are refused at once, a person wants to hear once.
        since, _ = signal.budget.window_of(datetime.now(UTC))
        told = (signal.kind, signal.scope, signal.name, signal.budget.usd, signal.share, since)
        key = (*told, signal.at.step_id if signal.kind == "exceeded" else None)
        if key in self._told:
            return
        self._told.add(key)
        resource = f"{PREFIX}.budget.{signal.scope}.{signal.name}"
        self._emit(f"budget.{signal.kind}", resource, signal.name, _of_budget(signal))

    def _is_of_this_run(self, at: Attribution) -> bool:
        if at.run_id == self._identity.run_id:
            return True
        # A run in memory within one of this run's steps is of no flow run of its own.
        context = FlowRunContext.get()
        around = context.flow_run if context is not None else None
        return around is not None and around.id == self._flow_run.id

    def paused(self, refusal: CostBudgetExceededError) -> None:
        """Emit `fastroai.budget.paused`: the run waits at a budget until somebody resumes it."""
        name, scope = refusal.name or "", refusal.scope
        payload: Payload = {"step": refusal.step_id, "budget": name, "scope": scope}
        amounts = {
            f"{what}_usd": _usd(usd)
            for what in ("limit", "spent", "held", "unknown")
            if (usd := getattr(refusal, what)) is not None
        }
        resource = f"{PREFIX}.budget.{scope}.{name}"
        self._emit("budget.paused", resource, name, {**payload, **amounts})

    def step_ended(
        self, step_id: str, state: str, attempts: int, entries: Sequence[LedgerEntry]
    ) -> None:
        """Emit `fastroai.step.cost`: what a step's attempts in this execution came to."""
        resource = f"{PREFIX}.step.{self._pipeline}.{step_id}"
        payload: Payload = {"step": step_id, "state": state, "attempts": attempts}
        self._emit("step.cost", resource, step_id, {**payload, **_of_entries(entries)})

    def run_ended(self, entries: Sequence[LedgerEntry]) -> None:
        """Emit `fastroai.run.cost`: what this execution of the run came to."""
        resource = f"{PREFIX}.run.{self._identity.run_id}"
        self._emit("run.cost", resource, self._flow_run.name, _of_entries(entries))

    def _emit(self, event: str, resource: str, name: str, payload: Payload) -> None:
        of_run = {
            "run_id": self._identity.run_id,
            "run_key": self._identity.run_key,
            "pipeline": self._pipeline,
            "deployment": self._identity.deployment,
        }
        try:
            self._context.copy().run(
                emit_event,
                event=f"{PREFIX}.{event}",
                resource=_resource(resource, name),
                related=self._related(),
                payload={**of_run, **payload},
            )
        except Exception as error:  # an event never fails a step
            logger.warning("%s.%s could not be emitted: %s", PREFIX, event, redact(repr(error)))

    def _related(self) -> list[dict[str, str]]:
        run, deployment = self._flow_run, self._flow_run.deployment_id
        related = [
            _resource(f"prefect.flow-run.{run.id}", run.name, role="flow-run"),
            _resource(f"{PREFIX}.pipeline.{self._pipeline}", self._pipeline, role="pipeline"),
        ]
        if deployment is not None:
            id_, name = f"prefect.deployment.{deployment}", self._identity.deployment
            related.append(_resource(id_, name or str(deployment), role="deployment"))
        return related


def _resource(id_: str, name: str, *, role: str | None = None) -> dict[str, str]:
    resource = {"prefect.resource.id": id_, "prefect.resource.name": name}
    return resource if role is None else {**resource, "prefect.resource.role": role}


def _of_budget(signal: BudgetSignal) -> Payload:
    budget = signal.budget
    left = Account(signal.spent, signal.held, signal.unknown).left(budget)
    return {
        "step": signal.at.step_id,
        "budget": signal.name,
        "scope": signal.scope,
        "window": budget.window,
        "strength": budget.strength,
        "at_limit": signal.at_limit,
        "limit_usd": _usd(budget.usd),
        "spent_usd": _usd(signal.spent),
        "held_usd": _usd(signal.held),
        "unknown_usd": _usd(signal.unknown),
        "left_usd": _usd(left),
        "share": None if signal.share is None else _usd(signal.share),
    }


def _of_entries(entries: Sequence[LedgerEntry]) -> Payload:
    """What entries came to. Replayed ones cost nothing."""
    [total] = totals_of(entries)
    return {
        "cost_usd": _usd(EXACT.subtract(total.cost_usd, total.simulated_usd)),
        "simulated_usd": _usd(total.simulated_usd),
        "requests": total.sent,
        "requests_of_unknown_cost": total.unknown,
        "replayed": total.replayed,
    }


def _usd(amount: Decimal) -> str:
    return f"{plain(amount):f}"
