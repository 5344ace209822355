"""What a standing cost artifact says, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from ...ledger.aggregation import Totals, whole_of
from ...ledger.recent import EndedRun, RecentCosts, Spending
from ...redaction import redact
from .artifacts import bar_of, counted, dollars, plain_usd

DAYS: Final = 7
"""So many days, the last of which is today, are compared with as many before. Days are UTC."""
MOST_ROWS: Final = 10
LONGEST_NAME: Final = 60

KeysOf = Callable[[Spending], Iterable[str | None]]
"""The groups that something was spent in; None: in none that has a name."""


@dataclass
class Overview:
    """The last runs, and sums of this week beside the week before.

    Attributes:
        pipeline: Whose; None: of all.
        now: When the ledger was read, timezone-aware.
        link: From a run's id to its page.
    """

    pipeline: str | None
    costs: RecentCosts
    now: datetime
    link: Callable[[str], str]

    def __post_init__(self) -> None:
        first = self.now.date() - timedelta(days=DAYS - 1)
        self._this = [spent for spent in self.costs.spending if spent.day >= first]
        self._before = [spent for spent in self.costs.spending if spent.day < first]

    @property
    def first_look(self) -> str:
        """What there was in all, the last runs, and the last days."""
        return "\n\n".join([self._headline(), self._last_runs(), self._by_day()])

    @property
    def second_look(self) -> str:
        """By pipeline, deployment, model and tag; what nothing has is left out."""
        by: dict[str, KeysOf] = {
            "deployment": lambda spent: (spent.deployment,),
            "model": lambda spent: (spent.model,),
            "tag": lambda spent: spent.tags or (None,),
        }
        if self.pipeline is None:
            by = {"pipeline": lambda spent: (spent.pipeline,)} | by
        sections = [section for name, of in by.items() if (section := self._by(name, of))]
        read = f"From the ledger as of {self.now:%Y-%m-%d %H:%M:%S} UTC. Days are UTC days."
        return "\n\n".join([*sections, f"{read} {_UNKNOWN}"])

    def _headline(self) -> str:
        this, before = _sum_of(self._this), _sum_of(self._before)
        name = "All pipelines" if self.pipeline is None else named(self.pipeline)
        said = (
            f"**{name}**: **{dollars(amount(this))}** in the last {DAYS} days for "
            f"{counted(this.requests, 'request')}, {dollars(amount(before))} in the {DAYS} before"
        )
        parts = [said + (f" ({change})" if (change := _change(this, before)) else "")]
        if this.simulated:
            usd = plain_usd(this.simulated_usd)
            parts.append(f"${usd} of it simulated by an offline model, nothing was paid")
        if this.replayed:
            parts.append(f"{this.replayed} replayed, which saved ${plain_usd(this.replayed_usd)}")
        return " · ".join(parts)

    def _last_runs(self) -> str:
        rows = [self._run_row(run, total) for run, total in self.costs.runs]
        return "### Last runs\n\n" + table(rows, right={"cost (USD)", "requests"})

    def _run_row(self, run: EndedRun, total: Totals) -> dict[str, str]:
        name = named(run.name or run.run_id[:8])
        row = {"run": f"[{name}]({self.link(run.run_id)})"}
        if self.pipeline is None:
            row["pipeline"] = named(run.pipeline)
        return row | {
            "cost (USD)": amount(total),
            "requests": str(total.requests),
            "state": run.outcome.replace("_", " "),
            "ended (UTC)": f"{run.ended_at:%a %d %b %H:%M}",
            "deployment": named(run.deployment or ""),
        }

    def _by_day(self) -> str:
        today = self.now.date()
        weeks: list[tuple[str, Totals, Totals]] = []
        for back in range(DAYS):
            day = today - timedelta(days=back)
            this = _sum_of(spent for spent in self._this if spent.day == day)
            earlier = day - timedelta(days=DAYS)
            before = _sum_of(spent for spent in self._before if spent.day == earlier)
            weeks.append((f"{day:%a %d %b}" if back else "today", this, before))
        return "### By day\n\n" + _compared("day", weeks, "a week before")

    def _by(self, name: str, keys_of: KeysOf) -> str:
        this, before = _grouped(self._this, keys_of), _grouped(self._before, keys_of)
        keys = {*this, *before}
        if keys <= {None}:
            return ""
        none = Totals()
        groups = [(key, this.get(key, none), before.get(key, none)) for key in keys]
        groups.sort(key=lambda group: (-group[1].cost_usd, -group[2].cost_usd, group[0] or "~"))
        rows = [(named(key or "none"), of, earlier) for key, of, earlier in groups[:MOST_ROWS]]
        if rest := groups[MOST_ROWS:]:
            sums = whole_of([of for _, of, _ in rest]), whole_of([of for _, _, of in rest])
            rows.append((f"{len(rest):,} others", *sums))
        return f"### By {name}\n\n" + _compared(name, rows, f"{DAYS} days before")


_UNKNOWN: Final = (
    "Unknown is what has no price or no answer, requests that are under way among it. A request "
    "counts for each of its tags."
)


def _compared(name: str, sums: Iterable[tuple[str, Totals, Totals]], before: str) -> str:
    """Rows of this week beside the week before, each with a bar; the largest has a full one."""
    rows, sums = [], list(sums)
    largest = max((this.cost_usd for _, this, _ in sums), default=Decimal(0))
    for head, this, earlier in sums:
        row = {name: head, "cost (USD)": amount(this), " ": bar_of(this.cost_usd, largest)}
        row |= {"requests": str(this.requests), before: amount(earlier)}
        rows.append(row | {"change": _change(this, earlier)})
    return table(rows, right={"cost (USD)", "requests", before, "change"})


def _grouped(spending: Iterable[Spending], keys_of: KeysOf) -> dict[str | None, Totals]:
    groups: dict[str | None, list[Spending]] = {}
    for spent in spending:
        for key in keys_of(spent):
            groups.setdefault(key, []).append(spent)
    return {key: _sum_of(group) for key, group in groups.items()}


def _sum_of(spending: Iterable[Spending]) -> Totals:
    return whole_of([spent.totals for spent in spending])


def amount(total: Totals) -> str:
    """USD, exact, told apart from what is not known."""
    known = plain_usd(total.cost_usd)
    if not total.unknown:
        return known
    return f"{known} + {total.unknown} unknown" if total.charged or total.cost_usd else "unknown"


def _change(this: Totals, before: Totals) -> str:
    """By how much more or less is known to be spent; nothing where nothing was."""
    if this.cost_usd == before.cost_usd:
        return "=" if this.cost_usd else ""
    if not before.cost_usd:
        return "new"
    percent = (this.cost_usd - before.cost_usd) / before.cost_usd * 100
    return f"{'▲' if percent > 0 else '▼'} {abs(percent):,.0f} %"


def table(rows: Sequence[dict[str, str]], right: set[str]) -> str:
    """A table in Markdown, without columns that are empty throughout.

    Args:
        right: Which columns are aligned there.
    """
    heads = [head for head in (rows[0] if rows else {}) if any(row[head] for row in rows)]
    if not heads:
        return "none"
    ends = ("---:" if head in right else "---" for head in heads)
    lines = [heads, ends, *([row[head] for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def named(name: str) -> str:
    """A name from outside as plain text in Markdown, without secrets, on one line and not too
    long.
    """
    text = " ".join(redact(name).split())
    if len(text) > LONGEST_NAME:
        text = text[: LONGEST_NAME - 1] + "…"
    return _SPECIAL.sub(r"\\\g<0>", text)


_SPECIAL: Final = re.compile(r"[\\`*_\[\]<>|~#&]")
