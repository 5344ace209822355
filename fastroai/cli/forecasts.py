"""What a run will cost, as the commands show it, and the limit that `--max-cost` sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from rich.console import Console

from ..budgets import Budget
from ..budgets.budget import MAX_COST, amount
from ..errors import LedgerUnavailableError
from ..ledger.history import Expectation
from ..pipelines.estimates import CostEstimate, LeftOut, StepEstimate
from .exit_codes import UsageError
from .loading import AnyPipeline
from .rendering.console import console, prose
from .rendering.tables import Amount, Cell, Column, exact, percent, print_table
from .shutdown import run_until_terminated

_COLUMNS = (
    Column("step", shortest=12),
    Column("runs", rank=2),
    Column("median USD"),
    Column("90th percentile"),
    Column("off by", rank=3),
    Column("at most", rank=1),
)
_LEFT_OUT = {
    "other_steps": "had other steps",
    "other_models": "asked other models",
    "unknown": "had requests whose cost is not known",
    "replayed": "took answers from records instead of asking",
}
_FEW = 9
"""Runs from which on the 90th percentile may be less than the highest cost."""


def max_cost_of(text: str) -> Budget:
    """The budget of a run that `--max-cost` asks for: nothing is sent that may not fit.

    Raises:
        UsageError: It is no amount.
    """
    try:
        return Budget(usd=amount(MAX_COST, text), strength="reserved", name=MAX_COST)
    except ValueError as error:
        raise UsageError(str(error)) from error


def estimated(
    pipeline: AnyPipeline, fields: Mapping[str, Any], ledger: str | None = None
) -> CostEstimate:
    """What a run of a pipeline will cost."""
    return run_until_terminated(pipeline.estimate(fields, None, ledger=ledger))


def announce(pipeline: AnyPipeline, fields: Mapping[str, Any], limit: Budget) -> None:
    """Say on stderr whether a run is expected to stay below its limit."""
    out = console(sys.stderr)
    try:
        found = estimated(pipeline, fields)
    except LedgerUnavailableError as error:
        prose(out, f"What it is expected to cost is not known. {error}")
        return
    prose(out, in_short(found))
    for remark in remarks_on_limit(found, limit):
        prose(out, remark)


def in_short(found: CostEstimate) -> str:
    """A run's estimate in a sentence."""
    bound = "no upper bound is known"
    if found.upper_bound_usd is not None:
        bound = f"at most {exact(found.upper_bound_usd)} USD"
    expected = found.expected
    if expected is None:
        return f"Expected to cost: not known, {bound}."
    return (
        f"Expected to cost: {exact(expected.median_usd)} USD, in nine of ten cases at most "
        f"{exact(expected.p90_usd)} USD (by {_counted(expected.runs, 'recorded run')}); {bound}."
    )


def remarks_on_limit(found: CostEstimate, limit: Budget) -> Iterator[str]:
    """Whether a run is expected to stay below its limit."""
    usd, expected = limit.usd, found.expected
    stops = f"At {MAX_COST} {exact(usd)} it stops before the request that may not fit."
    if found.simulated and usd:
        yield f"Nothing will be paid, so {MAX_COST} has no effect: an offline model answers."
    elif found.upper_bound_usd is not None and found.upper_bound_usd <= usd:
        yield f"It can't reach {MAX_COST} {exact(usd)}."
    elif expected is not None and expected.median_usd > usd:
        yield f"LIKELY TOO EXPENSIVE: most recorded runs cost more than {exact(usd)} USD. {stops}"
    elif expected is not None and expected.p90_usd > usd:
        yield f"MAY BE TOO EXPENSIVE: some recorded runs cost more than {exact(usd)} USD. {stops}"


def show(found: CostEstimate, limit: Budget | None = None) -> None:
    """Write an estimate to stdout: a table, and what must be known to read it."""
    out = console()
    prose(out, f"Estimate for {found.pipeline!r}; nothing was sent")
    out.print()
    rows = [(step.step_id, *_measures_of(step)) for step in found.steps]
    print_table(out, _COLUMNS, rows, total=("run", *_measures_of(found)))
    out.print()
    _show_remarks(out, found, limit)


def _show_remarks(out: Console, found: CostEstimate, limit: Budget | None) -> None:
    for remark in remarks_on(found):
        prose(out, remark)
    if limit is not None:
        for remark in remarks_on_limit(found, limit):
            prose(out, remark)


def _measures_of(found: CostEstimate | StepEstimate) -> tuple[Cell, ...]:
    bound = None if found.upper_bound_usd is None else Amount(found.upper_bound_usd)
    expected = found.expected
    if expected is None:
        return 0, "-", "-", "-", bound
    off = "-" if expected.off_by is None else percent(expected.off_by)
    return expected.runs, Amount(expected.median_usd), Amount(expected.p90_usd), off, bound


def remarks_on(found: CostEstimate) -> Iterator[str]:
    """What must be known to read an estimate."""
    if found.simulated:
        yield (
            "SIMULATED: an offline model answers, so nothing will be paid; amounts are those of "
            "the model that it is priced as."
        )
    if found.expected is None:
        recorded = f"none of the {found.runs:,} recorded runs of this pipeline says it"
        if not found.runs:
            recorded = "the ledger has no run of this pipeline yet that ended well"
        yield f"NOT KNOWN: what the run is expected to cost; {recorded}."
    else:
        yield from _remarks_on_expected(found.expected)
    yield from _remarks_on_left_out(found.left_out)
    yield from _remarks_on_steps(found)


def _remarks_on_expected(expected: Expectation) -> Iterator[str]:
    if expected.runs < _FEW:
        yield (
            f"FEW RUNS: with fewer than {_FEW}, the 90th percentile is the highest cost there was; "
            "the next run may well cost more."
        )
    if expected.forecasts:
        off = ""
        if expected.off_by is not None:
            off = f"; half of them were off the median by at most {percent(expected.off_by)}"
        yield (
            f"EARLIER FORECASTS: of the last {_counted(expected.forecasts, 'run')}, "
            f"{expected.within_p90} cost no more than the 90th percentile of those before{off}."
        )


def _remarks_on_left_out(left_out: LeftOut) -> Iterator[str]:
    counted = [(number, _LEFT_OUT[name]) for name, number in asdict(left_out).items() if number]
    if counted:
        yield (
            "Left out: "
            + "; ".join(f"{_counted(number, 'run')} that {reason}" for number, reason in counted)
            + "."
        )


def _remarks_on_steps(found: CostEstimate) -> Iterator[str]:
    unseen = [step.step_id for step in found.steps if step.has_agents and step.expected is None]
    if unseen and found.expected is not None:
        yield (
            f"NOT IN THE TOTAL: what {', '.join(map(repr, unseen))} will cost. It has agents, but "
            "no recorded run says what they cost."
        )
    if found.upper_bound_usd is not None:
        return
    yield "NO UPPER BOUND, unless a budget of strength 'reserved' or --max-cost sets one:"
    unbounded: dict[str, list[str]] = {}
    for step in found.steps:
        if step.no_upper_bound is not None:
            unbounded.setdefault(step.no_upper_bound, []).append(repr(step.step_id))
    for reason, steps in unbounded.items():
        yield f"- {', '.join(steps)}: {reason}."


def as_json(found: CostEstimate) -> dict[str, object]:
    """An estimate for programs; amounts are exact, as strings."""
    return {
        "pipeline": found.pipeline,
        "currency": "USD",
        "simulated": found.simulated,
        "recorded_runs": found.runs,
        **_estimate_json(found),
        "steps": [
            {
                "step": step.step_id,
                "has_agents": step.has_agents,
                **_estimate_json(step),
                "no_upper_bound": step.no_upper_bound,
            }
            for step in found.steps
        ],
    }


def _estimate_json(found: CostEstimate | StepEstimate) -> dict[str, object]:
    expected, bound = found.expected, found.upper_bound_usd
    return {
        "expected": expected and _expectation_json(expected),
        "left_out": asdict(found.left_out),
        "upper_bound_usd": None if bound is None else exact(bound),
    }


def _expectation_json(expected: Expectation) -> dict[str, object]:
    fields = asdict(expected)
    return {name: exact(v) if isinstance(v, Decimal) else v for name, v in fields.items()}


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
