"""`fastroai costs reconcile` beside an export whose lines are sums of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from rich.console import Console

from ...ledger.entries import LedgerEntry
from ...ledger.exports import COST, BilledSum, ComparedSum, SumsReconciliation
from ...pricing.money import EXACT
from ..parsing import shown
from ..rendering.console import prose
from ..rendering.tables import Cell, Column, amounts, exact, print_table
from .filters import Filters

_MOST_ENTRIES = 20

EntryRow = Callable[[LedgerEntry], tuple[Cell, ...]]


def within(billed: Sequence[BilledSum], filters: Filters) -> tuple[BilledSum, ...]:
    """The sums that lie within the time that is asked for."""
    return tuple(
        one
        for one in billed
        if (filters.since is None or one.start >= filters.since)
        and (filters.until is None or one.end <= filters.until)
    )


def span(billed: Sequence[BilledSum]) -> tuple[datetime, datetime] | None:
    """From when to when something was billed."""
    if not billed:
        return None
    return min(one.start for one in billed), max(one.end for one in billed)


def as_json(
    found: SumsReconciliation, filters: Filters, entry_json: Callable[[LedgerEntry], object]
) -> dict[str, object]:
    """All sums; of those that differ, the entries behind them, too."""
    return {
        "balanced": found.is_balanced,
        "filters": filters.as_json(),
        "currency": "USD",
        "sums": [_sum_json(one, entry_json) for one in found.compared],
        "entries_without_line": [entry_json(entry) for entry in found.entries],
    }


def _sum_json(one: ComparedSum, entry_json: Callable[[LedgerEntry], object]) -> dict[str, object]:
    differences = one.differences
    return {
        "start": one.billed.start.isoformat(),
        "end": one.billed.end.isoformat(),
        "model": one.billed.model,
        "lines": one.billed.lines,
        "export": {name: _value(name, value) for name, value in one.billed.sums.items()},
        "ledger": {name: _value(name, one.booked(name)) for name in one.billed.sums},
        "differences": differences,
        "entries": [entry_json(entry) for entry in one.entries] if differences else [],
    }


def _value(name: str, value: Decimal) -> str | int:
    return exact(value) if name == COST else int(value)


def show(
    out: Console,
    found: SumsReconciliation,
    filters: Filters,
    columns: Sequence[Column],
    entry_row: EntryRow,
    remarks: Iterable[str] = (),
) -> None:
    """Write what agrees, what differs, and the entries behind a difference."""
    differing = [one for one in found.compared if one.differences]
    asked = f" ({filters})" if filters else ""
    agreeing = len(found.compared) - len(differing)
    prose(out, f"{len(found.compared):,} sums of the export{asked}: {agreeing:,} agree")
    if differing:
        prose(out, f"\nSums that differ: {len(differing):,}\n")
        for one in differing:
            prose(out, _described(one))
        behind = [entry for one in differing for entry in one.entries]
        _list(out, "Entries behind them", behind, columns, entry_row)
    _list(out, "Entries without a line in the export", found.entries, columns, entry_row)
    if any(COST in one.billed.sums for one in found.compared):
        _show_cost(out, found)
    for remark in remarks:
        prose(out, f"\n{remark}")
    prose(out, "\nThe books balance." if found.is_balanced else "\nThe books do not balance.")


def _described(one: ComparedSum) -> str:
    lines = ", ".join(map(str, one.billed.lines))
    what = f"{shown(one.billed.start)}, {one.billed.model or 'all models'}, line {lines}"
    return f"{what}: {'; '.join(one.differences)}"


def _list(
    out: Console,
    title: str,
    entries: Sequence[LedgerEntry],
    columns: Sequence[Column],
    entry_row: EntryRow,
) -> None:
    if not entries:
        return
    prose(out, f"\n{title}: {len(entries):,}\n")
    print_table(out, columns, [entry_row(entry) for entry in entries[:_MOST_ENTRIES]])
    if len(entries) > _MOST_ENTRIES:
        prose(out, f"… and {len(entries) - _MOST_ENTRIES:,} more; --json has them all.")


def _show_cost(out: Console, found: SumsReconciliation) -> None:
    booked = billed = Decimal(0)
    for one in found.compared:
        booked = EXACT.add(booked, one.booked(COST))
        billed = EXACT.add(billed, one.billed.sums.get(COST, Decimal(0)))
    ours, theirs, apart = amounts([booked, billed, EXACT.subtract(billed, booked)])
    prose(out, f"\nLedger {ours} USD, export {theirs} USD, difference {apart} USD.")
