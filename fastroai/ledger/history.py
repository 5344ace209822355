"""What earlier runs cost by step, and what that says of the next one."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from ..pricing.money import EXACT, plain
from .aggregation import Totals

LAST_FORECASTS = 20
"""How many of the last forecasts are compared with what then came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """A run of which each step ended well.

    Attributes:
        run_id: Its identity.
        run_key: What the caller named it by; what failed executions under it spent is its cost too.
        shape: A text that is the same for all runs of the same steps.
        ended_at: When the last step had ended, timezone-aware.
    """

    run_id: str
    run_key: str | None = None
    pipeline: str
    shape: str
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one step cost in one run, over its attempts and the executions of the run.

    Attributes:
        models: Whom it asked, as `provider:model`; None: nobody can say.
        sent: Requests that count as spend.
        unknown: Those of them whose cost is not known in full.
        simulated: Those of them that an offline model answered.
        replayed: Requests that were answered from a record instead of being sent.
        usd: What the sent ones cost, as far as that is known; USD, exact.
    """

    models: frozenset[str | None]
    sent: int
    unknown: int
    simulated: int
    replayed: int
    usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A whole run with what its steps cost; those that had no entry are missing.

    Attributes:
        steps: By step id; None for what was sent outside of all steps.
    """

    run: WholeRun
    steps: Mapping[str | None, StepCost]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedRun:
    """A run of which requests are booked.

    Attributes:
        run_id: Its identity; under Prefect the flow run's.
        run_key: What the caller named it by.
        deployment: As `flow/deployment`.
        created_by: Who or what started it, as in `Attribution`.
        first_sent_at: When its first request was sent.
        last_sent_at: When its last one was, so far.
        name: Its flow run's, once it has ended.
        outcome: How it ended, as far as the ledger says: `completed`, `failed`, `over_budget`.
        ended_at: When it did.
        totals: What it cost.
        steps: The same by step and model, in the order of their first requests; where they were
            asked for.
    """

    run_id: str
    run_key: str | None = None
    pipeline: str | None = None
    deployment: str | None = None
    created_by: str | None = None
    first_sent_at: datetime
    last_sent_at: datetime
    name: str | None = None
    outcome: str | None = None
    ended_at: datetime | None = None
    totals: Totals
    steps: tuple[Totals, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a run or a step is expected to cost, by what it cost before. Amounts are USD, exact.

    Attributes:
        median_usd: Half of the runs cost no more.
        p90_usd: The least of the recorded costs that the next one does not exceed in nine of ten
            cases, if it is one like the others; with fewer than nine runs, the highest one.
        runs: How many it rests on.
        forecasts: How many of the last runs were compared with what those before them let expect.
        within_p90: How many of these cost no more than the 90th percentile.
        off_by: By which share of the median they were off, the median of that: 0.25 is a quarter.
            None: nothing was compared, or against nothing but 0.
    """

    median_usd: Decimal
    p90_usd: Decimal
    runs: int
    forecasts: int = 0
    within_p90: int = 0
    off_by: float | None = None


def expectation(costs: Iterable[Decimal]) -> Expectation | None:
    """What the next run is expected to cost; None without any before.

    Args:
        costs: USD, the oldest first. The order only counts for how far forecasts were off.
    """
    known: list[Decimal] = []
    tested: list[tuple[Decimal, Decimal, Decimal]] = []
    for cost in costs:
        if known:
            tested.append((cost, _median(known), _p90(known)))
        insort(known, cost)
    if not known:
        return None
    last = tested[-LAST_FORECASTS:]
    off = sorted(abs(cost - middle) / middle for cost, middle, _ in last if middle)
    return Expectation(
        median_usd=plain(_median(known)),
        p90_usd=plain(_p90(known)),
        runs=len(known),
        forecasts=len(last),
        within_p90=sum(cost <= p90 for cost, _, p90 in last),
        off_by=float(_median(off)) if off else None,
    )


def _median(ordered: Sequence[Decimal]) -> Decimal:
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return EXACT.divide(EXACT.add(ordered[half - 1], ordered[half]), Decimal(2))


def _p90(ordered: Sequence[Decimal]) -> Decimal:
    # Of n + 1 runs, each is as likely as another to be the last: the next one is among the first k
    # with a probability of k / (n + 1). So one more is counted than there are.
    rank = -(-(len(ordered) + 1) * 9 // 10)
    return ordered[min(rank, len(ordered)) - 1]
