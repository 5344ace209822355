"""The most that a step can cost, where that can be told before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from inspect import isawaitable
from typing import Any

from pydantic_ai.models import Model

from ..agent.agent import FastroAgent
from ..budgets import Budget
from ..ledger.entries import ZERO_USD, LedgerEntry
from ..ledger.recorder import RequestRecorder
from ..metering.members import is_made_of_models
from ..metering.models import innermost
from ..metering.scope import DispatchScope
from ..pricing.money import EXACT, plain
from .agent_step import AgentStepWrapper
from .context import StepContext
from .mapped import MappedStep
from .plan import ExecutionPlan, PlannedStep

_ASKED_AGAIN = 1024
"""Tokens of the message that asks for an answer again, where it was empty."""


@dataclass(frozen=True, slots=True)
class UpperBound:
    """What something can cost at most, in USD, exact; or why that can't be told."""

    usd: Decimal | None = None
    reason: str | None = None


class NoBoundError(Exception):
    """What a step can cost at most can't be told; the message says why."""


async def bound_of_step(
    plan: ExecutionPlan, node: PlannedStep, inputs: Mapping[str, Any], deps: Any
) -> UpperBound:
    """The most that a step can cost in one run: by its requests, or by a budget that holds for it.

    Nothing is sent. A prompt that is a plain function is called.
    """
    _, budgets = plan.budgets
    limit = lowest_limit(budgets.get(node.step_id, ()))
    if isinstance(node.step, MappedStep):
        return _bound_of_items(node.step, inputs, limit)
    try:
        usd = await _bound_of_requests(plan, node, inputs, deps)
    except NoBoundError as error:
        return UpperBound(limit, None if limit is not None else str(error))
    return UpperBound(usd if limit is None else min(usd, limit))


def _bound_of_items(
    mapped: MappedStep, inputs: Mapping[str, Any], limit: Decimal | None
) -> UpperBound:
    """The same of a mapped step, whose budgets are those of each item."""
    items = inputs.get(mapped.over)
    if limit is None:
        return UpperBound(reason="each of its items asks for itself")
    if not isinstance(items, list | tuple):
        return UpperBound(reason="how many items it has is known only in the run")
    return UpperBound(plain(EXACT.multiply(limit, Decimal(len(items)))))


def lowest_limit(budgets: Iterable[Budget]) -> Decimal | None:
    """The lowest of the limits that no request can pass; None: there are none."""
    return min((budget.usd for budget in budgets if _is_strict(budget)), default=None)


def _is_strict(budget: Budget) -> bool:
    # A cheaper model is asked whatever is left, and `max_request_usd` may be less than a request
    # costs of which nobody can tell.
    holds = budget.at_limit != "downgrade" and budget.max_request_usd is None
    return budget.strength == "reserved" and holds


async def _bound_of_requests(
    plan: ExecutionPlan, node: PlannedStep, inputs: Mapping[str, Any], deps: Any
) -> Decimal:
    step = node.step
    if type(step) is not AgentStepWrapper:
        raise NoBoundError("its code decides what it sends")
    if plan.config.cheaper_model is not None:
        raise NoBoundError(_CHEAPER)
    for is_so, reason in _OBSTACLES:
        if is_so(step.agent):
            raise NoBoundError(reason)
    message = await _message_of(step, node, inputs, deps)
    sends = (node.config.retries + 1) * (_retries_of_requests(step.agent) + 1)
    bound = ZERO_USD
    for answers in range(step.agent.agent._max_output_retries + 1):
        # All that is sent again with an empty answer: what the model thought, and the request for
        # another one.
        more = "x" * (answers * (step.agent.config.max_tokens + _ASKED_AGAIN))
        bound = EXACT.add(bound, await _bound_of_request(step.agent, message + more, deps))
    return plain(EXACT.multiply(bound, Decimal(sends)))


_CHEAPER = "another model may take its requests at the limit of a budget"


def _may_have_others_send(agent: FastroAgent[Any]) -> bool:
    model = agent.agent.model
    return isinstance(model, Model) and is_made_of_models(innermost(model))


_OBSTACLES: tuple[tuple[Callable[[FastroAgent[Any]], bool], str], ...] = (
    (
        lambda agent: type(agent) is not FastroAgent or not agent._is_built,
        "it uses a ready agent, which may ask as often as it likes",
    ),
    (lambda agent: bool(agent.toolsets), "its tools decide how often the model is asked"),
    (
        lambda agent: agent.agent.output_type is not str,
        "its output may be asked for again, with a list of errors of any length",
    ),
    (
        lambda agent: bool(agent._on_before_dispatch or agent._on_after_dispatch),
        "its hooks may send requests, too",
    ),
    (lambda agent: agent.config.cheaper_model is not None, _CHEAPER),
    (_may_have_others_send, "its model has others answer"),
)
"""What of an agent can't be foreseen, and how that is said."""


def _retries_of_requests(agent: FastroAgent[Any]) -> int:
    model = agent.agent.model
    own = model.settings if isinstance(model, Model) else None
    retries: int = (own or {}).get("max_retries", agent.config.max_retries)
    return retries


async def _message_of(
    step: AgentStepWrapper[Any], node: PlannedStep, inputs: Mapping[str, Any], deps: Any
) -> str:
    prompt = step.prompt
    if callable(prompt):
        if node.dependencies:
            raise NoBoundError("its prompt is made of what other steps return")
        context = StepContext(node.step_id, inputs, deps, {}, config=node.config)
        try:
            with DispatchScope(_refusing()):
                made = prompt(context)
        except Exception as error:
            raise NoBoundError(f"its prompt can't be made before the run: {error!r}") from error
        if isawaitable(made):
            getattr(made, "close", lambda: None)()  # or Python warns that nobody awaited it
            raise NoBoundError("its prompt is made by a coroutine, which may send requests")
        prompt = made
    if not isinstance(prompt, str):
        raise NoBoundError("its prompt is not only text")
    return prompt


async def _bound_of_request(agent: FastroAgent[Any], message: str, deps: Any) -> Decimal:
    """What one request can cost at most: it is made as in a run, as far as its intent."""
    try:
        with DispatchScope(_refusing()):
            await agent.run(message=message, deps=deps)
    except _NotSentError as drafted:
        if drafted.entry.upper_bound_usd is not None:
            return drafted.entry.upper_bound_usd
        model = drafted.entry.model_asked
        raise NoBoundError(f"what a request to {model!r} can cost at most is not known") from None
    except Exception as error:
        raise NoBoundError(f"its request can't be made before the run: {error}") from error
    raise NoBoundError("it sends no request by itself")


class _NotSentError(Exception):
    """Instead of a request that is not to be sent; has its entry."""

    def __init__(self, entry: LedgerEntry) -> None:
        super().__init__("Nothing is sent for an estimate.")
        self.entry = entry


class _SendNothing:
    """Limits that no request fits."""

    async def admit(self, entry: LedgerEntry) -> LedgerEntry:
        raise _NotSentError(entry)

    def note(self, entry: LedgerEntry) -> None:
        """Nothing is sent."""

    def forget(self, entry: LedgerEntry) -> None:
        """Nothing is sent."""


def _refusing() -> RequestRecorder:
    recorder = RequestRecorder(refuses_unpriced=False)
    recorder.limits = _SendNothing()
    return recorder
