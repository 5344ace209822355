"""`fastroai costs reconcile` beside an export whose lines are sums of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain

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
    first, last = filters.bounds
    return tuple(one for one in billed if first <= one.start and one.end <= last)


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
        "entries_without_line": list(map(entry_json, found.entries)),
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
        "entries": list(map(entry_json, one.entries)) if differences else [],
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
    agreeing = len(found.compared) - len(differing)
    asked = filters.in_brackets
    prose(out, f"{len(found.compared):,} sums of the export{asked}: {agreeing:,} agree")
    show_texts(out, "Sums that differ", list(map(describe_sum, differing)))
    behind = list(chain.from_iterable(one.entries for one in differing))
    list_entries(out, "Entries behind them", behind, columns, entry_row)
    list_entries(out, "Entries without a line in the export", found.entries, columns, entry_row)
    if any(COST in one.billed.sums for one in found.compared):
        show_cost(out, found)
    for remark in remarks:
        prose(out, f"\n{remark}")
    prose(out, f"\n{verdict(found.is_balanced)}")


def show_texts(out: Console, heading: str, texts: Sequence[str]) -> None:
    """A heading that counts some texts, and each on its line, where there are any."""
    if texts:
        prose(out, f"\n{heading}: {len(texts):,}\n")
    for text in texts:
        prose(out, text)


def verdict(is_balanced: bool) -> str:
    """The last line of a comparison."""
    return "The books balance." if is_balanced else "The books do not balance."


def describe_sum(one: ComparedSum) -> str:
    lines = ", ".join(map(str, one.billed.lines))
    what = f"{shown(one.billed.start)}, {one.billed.model or 'all models'}, line {lines}"
    return f"{what}: {'; '.join(one.differences)}"


def list_entries(
    out: Console,
    title: str,
    entries: Sequence[LedgerEntry],
    columns: Sequence[Column],
    entry_row: EntryRow,
) -> None:
    if not entries:
        return
    prose(out, f"\n{title}: {len(entries):,}\n")
    print_table(out, columns, list(map(entry_row, entries[:_MOST_ENTRIES])))
    if len(entries) > _MOST_ENTRIES:
        prose(out, f"… and {len(entries) - _MOST_ENTRIES:,} more; --json has them all.")


def show_cost(out: Console, found: SumsReconciliation) -> None:
    booked = billed = Decimal(0)
    for one in found.compared:
        booked = EXACT.add(booked, one.booked(COST))
        billed = EXACT.add(billed, one.billed.sums.get(COST, Decimal(0)))
    ours, theirs, apart = amounts([booked, billed, EXACT.subtract(billed, booked)])
    prose(out, f"\nLedger {ours} USD, export {theirs} USD, difference {apart} USD.")
