"""What was spent lately: the last runs, and sums of the days since."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from .aggregation import Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run under Prefect that has ended, however it did.

    Attributes:
        run_id: As entries are booked to it.
        name: Its flow run's, for people.
        deployment: As `flow/deployment`.
        outcome: A word or two: `completed`, `failed`, `over_budget`.
        ended_at: Timezone-aware.
    """

    run_id: str
    name: str | None = None
    pipeline: str
    deployment: str | None = None
    outcome: str
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What the entries add up to that have all this in common.

    Attributes:
        day: UTC.
        deployment: As `flow/deployment`.
        model: As it was asked for.
        tags: As `name=value`, and the bare ones of flow runs; a request counts for each.
    """

    pipeline: str | None
    day: date
    deployment: str | None
    model: str | None
    tags: tuple[str, ...]
    totals: Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentCosts:
    """What a ledger said at one moment.

    Attributes:
        runs: The last ones with what they cost, the newest first.
        spending: All of some time, in no order.
    """

    runs: tuple[tuple[EndedRun, Totals], ...]
    spending: tuple[Spending, ...]
