"""A run as far as the ledger, its lease and Prefect know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..ledger.aggregation import Totals
from ..ledger.history import BookedRun
from .costs.report import totals_json

if TYPE_CHECKING:
    from ..executors.prefect import RunPage, TrackedRun
    from ..leases.table import LeaseRecord


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run as far as anybody knows it.

    Attributes:
        booked: What the ledger has of it.
        page: What Prefect has.
        tracked: If it is active, dead or paused: what Prefect has of that.
        lease: The same without Prefect.
    """

    run_id: str
    booked: BookedRun | None = None
    page: RunPage | None = None
    tracked: TrackedRun | None = None
    lease: LeaseRecord | None = None

    @property
    def process(self) -> str:
        """`alive`, `DEAD`, `PAUSED`, or nothing: it has ended, or nobody knows."""
        if self.lease is None:
            return ""
        if self.lease.claim.kind == "suspended_run":
            return "PAUSED"
        return "alive" if self.lease.is_alive else "DEAD"

    @property
    def state(self) -> str | None:
        """Its state's name on the server, or what the ledger says of it."""
        outcome = str(_said("outcome", self.booked) or "").replace("_", " ").capitalize()
        without_server = {"PAUSED": "Suspended", "": outcome}.get(self.process, "Running")
        return _said("state", self.page) or without_server or None

    @property
    def started_at(self) -> datetime | None:
        """When it started; as far as the ledger says, when it sent its first request."""
        first = _said("first_sent_at", self.booked) or _said("since", self.lease)
        started: datetime | None = _said("started_at", self.page) or first
        return started

    @property
    def seconds(self) -> float | None:
        """How long it took; as far as the ledger says, from its first request to its end, or to its
        last one.
        """
        if self.page is not None or self.booked is None:
            return self.page.seconds if self.page else None
        end = self.booked.ended_at or self.booked.last_sent_at
        return max(0.0, (end - self.booked.first_sent_at).total_seconds())

    @property
    def facts(self) -> dict[str, str | None]:
        """What else is known, under the names that programs get it by."""
        claim = _said("claim", self.lease)
        run_key = _said("run_key", self.booked, claim)
        return {
            "id": self.run_id,
            "name": _said("name", self.page, self.booked) or run_key,
            "run_key": run_key,
            "pipeline": _said("pipeline", self.booked, claim),
            "deployment": _said("deployment", self.booked, self.tracked),
            "created_by": _said("created_by", self.booked),
            "state": self.state,
            "process": self.process.lower() or None,
            "url": _said("url", self.page),
        }

    @property
    def totals(self) -> Totals:
        """What it cost."""
        return _said("totals", self.booked) or Totals()

    @property
    def steps(self) -> Sequence[Totals]:
        """What its steps did, by model."""
        return _said("steps", self.booked) or ()


def _said(name: str, *by: object) -> Any:
    """What the first of some says that says anything."""
    said = (getattr(one, name, None) for one in by)
    return next((value for value in said if value is not None), None)


def took(seconds: float | None) -> str:
    """A duration, to the second where it is short."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def clock(at: datetime | None) -> str:
    """A time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if at else "-"


def run_json(run: ListedRun) -> dict[str, object]:
    """A run for programs."""
    started = run.started_at
    return {
        **run.facts,
        "started_at": started.astimezone(UTC).isoformat() if started else None,
        "seconds": run.seconds,
        **totals_json(run.totals),
    }


def steps_json(run: ListedRun, pages: Sequence[RunPage]) -> Iterator[dict[str, object]]:
    """Its steps; those that asked nothing too, where Prefect knows them."""
    for name, page, totals in steps_of(run, pages):
        yield {
            "step": name,
            "model": totals.keys[1] if totals.keys else None,
            "state": _said("state", page),
            "seconds": _said("seconds", page),
            **totals_json(totals),
        }


def steps_of(
    run: ListedRun, pages: Sequence[RunPage]
) -> Iterator[tuple[str | None, RunPage | None, Totals]]:
    """Each step and model with its task run; of several attempts the last."""
    last = {page.name: page for page in pages}
    models: dict[str | None, list[Totals]] = {name: [] for name in last}
    for totals in run.steps:
        models.setdefault(totals.keys[0], []).append(totals)
    for name, group in models.items():
        for totals in group or [Totals()]:
            yield name, last.get(name or ""), totals
