"""What a run will cost: at most, and by what earlier runs have cost. Nothing is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any, Literal

from ..errors import LedgerNotFoundError
from ..ledger.history import Expectation, RecordedRun, StepCost, expectation
from ..ledger.ledger import Ledger
from ..pricing.money import EXACT, plain
from .asked_models import AskedModels, asked_models
from .plan import ExecutionPlan, shape_of
from .upper_bounds import UpperBound, bound_of_step, lowest_limit

_Reason = Literal["other_steps", "other_models", "unknown", "replayed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How many recorded runs an expectation does not rest on, each by its first reason.

    Attributes:
        other_steps: The pipeline had other steps then.
        other_models: Other models were asked, or an offline one where none is asked now.
        unknown: What a request cost is not known in full.
        replayed: Nothing was sent, or not by each step: answers were taken from records.
    """

    other_steps: int = 0
    other_models: int = 0
    unknown: int = 0
    replayed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """What a step will cost in one run. Amounts are USD, exact.

    Attributes:
        step_id: The step's id.
        expected: By what it cost in earlier runs in which it really asked; None: there are none.
        left_out: The runs that this does not rest on.
        upper_bound_usd: What it can cost at most, its attempts and the retries of its requests
            included; None: that can't be told.
        no_upper_bound: Why it can't; None: it can.
        has_agents: Whether its code refers to agents, so that it is likely to ask.
    """

    step_id: str
    expected: Expectation | None
    left_out: LeftOut
    upper_bound_usd: Decimal | None
    no_upper_bound: str | None
    has_agents: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What one execution of a pipeline will cost. Amounts are USD, exact.

    Attributes:
        pipeline: Its name.
        steps: By step, in the order of the plan.
        expected: Of the whole run, by what earlier runs cost in which each step that has asked
            really did; None: there are none.
        left_out: The runs that this does not rest on.
        upper_bound_usd: What the run can cost at most: the sum over its steps, or the limit of a
            budget of the run that reserves, if that is lower. None: that can't be told; the steps
            say why.
        runs: Recorded runs that were looked at.
        simulated: Whether an offline model answers: nothing will be paid, amounts are those of the
            model that it is priced as.
    """

    pipeline: str
    steps: tuple[StepEstimate, ...]
    expected: Expectation | None
    left_out: LeftOut
    upper_bound_usd: Decimal | None
    runs: int
    simulated: bool


async def estimate_cost(
    name: str,
    plan: ExecutionPlan,
    inputs: Mapping[str, Any],
    deps: Any = None,
    *,
    ledger: str | None = None,
    last: int = 100,
) -> CostEstimate:
    """What a run of a plan will cost; see `Pipeline.estimate`."""
    runs = await _recorded_runs((name, plan.config.formerly), ledger, last)
    cheaper = plan.config.cheaper_model
    asked = {step_id: asked_models(node.step, cheaper) for step_id, node in plan.steps.items()}
    history = _History(plan, asked, runs)
    steps = []
    for step_id, node in plan.steps.items():
        bound = await bound_of_step(plan, node, inputs, deps)
        steps.append(history.estimate(step_id, bound))
    expected, left_out = history.of_runs()
    return CostEstimate(
        pipeline=name,
        steps=tuple(steps),
        expected=expected,
        left_out=left_out,
        upper_bound_usd=_bound_of_run(plan, [step.upper_bound_usd for step in steps]),
        runs=len(runs),
        simulated=history.is_simulated,
    )


def _bound_of_run(plan: ExecutionPlan, bounds: Iterable[Decimal | None]) -> Decimal | None:
    run_budgets, _ = plan.budgets
    known = [bound for bound in bounds if bound is not None]
    limit = lowest_limit(run_budgets)
    if len(known) < len(plan.steps):
        return limit
    total = plain(sum_of(known))
    return total if limit is None else min(total, limit)


def sum_of(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum of some amounts."""
    return reduce(EXACT.add, amounts, Decimal(0))


async def _recorded_runs(
    names: Iterable[str | None], url: str | None, last: int
) -> list[RecordedRun]:
    try:
        async with Ledger.open(url, create=False) as ledger:
            found = [run for name in names if name for run in await ledger.history(name, most=last)]
    except LedgerNotFoundError:
        return []
    return sorted(found, key=lambda recorded: recorded.run.ended_at)[-last:]


class _History:
    """Recorded runs, as far as they say something of a plan as it is now."""

    def __init__(
        self, plan: ExecutionPlan, asked: Mapping[str, AskedModels], runs: Iterable[RecordedRun]
    ) -> None:
        self.is_simulated = any(models.is_simulated for models in asked.values())
        self._asked = asked
        former = {step_id: node.config.formerly or step_id for step_id, node in plan.steps.items()}
        renamed = {before: step_id for step_id, before in former.items()}
        self._shapes = {plan.shape, shape_of(former.values())}
        self._runs = [
            (run, {renamed.get(id_, id_) if id_ else None: cost for id_, cost in run.steps.items()})
            for run in runs
        ]

    def estimate(self, step_id: str, bound: UpperBound) -> StepEstimate:
        """A step's estimate."""
        costs = [steps[step_id] for _, steps in self._runs if step_id in steps]
        told = [(self._reason_against(step_id, cost), cost.usd) for cost in costs]
        expected, left_out = _expected(told)
        return StepEstimate(
            step_id=step_id,
            expected=expected,
            left_out=left_out,
            upper_bound_usd=bound.usd,
            no_upper_bound=bound.reason,
            has_agents=bool(self._asked[step_id].names),
        )

    def of_runs(self) -> tuple[Expectation | None, LeftOut]:
        """What whole runs let expect."""
        return _expected(self._told_of_run(run, steps) for run, steps in self._runs)

    def _told_of_run(
        self, recorded: RecordedRun, steps: Mapping[str | None, StepCost]
    ) -> tuple[_Reason | None, Decimal]:
        total = sum_of(cost.usd for cost in steps.values())
        if recorded.run.shape not in self._shapes:
            return "other_steps", total
        reasons = {self._reason_against(step_id, cost) for step_id, cost in steps.items()}
        first = next((reason for reason in _REASONS if reason in reasons), None)
        return first, total

    def _reason_against(self, step_id: str | None, cost: StepCost) -> _Reason | None:
        """Why what a step cost in a run does not say what it will; None: it does."""
        if not cost.sent:
            return "replayed"
        models = self._asked.get(step_id or "")
        if models is not None and not models.are_those_of(cost.models):
            return "other_models"
        if cost.simulated and not self.is_simulated:
            return "other_models"
        return "unknown" if cost.unknown else None


_REASONS: tuple[_Reason, ...] = ("other_models", "unknown", "replayed")


def _expected(
    told: Iterable[tuple[_Reason | None, Decimal]],
) -> tuple[Expectation | None, LeftOut]:
    """What costs let expect that have no reason against them."""
    found = list(told)
    counted: Counter[str] = Counter(reason for reason, _ in found if reason is not None)
    costs: Iterator[Decimal] = (usd for reason, usd in found if reason is None)
    return expectation(costs), LeftOut(**counted)
