"""A ledger beside a provider's invoice, on a terminal."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

from ...errors import LedgerNotFoundError
from ...ledger.aggregation import step_key
from ...ledger.entries import LedgerEntry, total_usd
from ...ledger.ledger import Ledger
from ...ledger.reconciliation import (
    COLUMNS,
    InvoiceLine,
    Reconciliation,
    read_invoice,
    reconcile,
)
from ...pricing.money import EXACT
from ...providers import canonical_provider
from ..exit_codes import NOT_BALANCED, UsageError
from ..parsing import duration
from ..rendering.table import Column, amounts, printable, prose, show, table, terminal_width
from .report import exact
from .selection import Filters


def reconcile_invoice(arguments: argparse.Namespace) -> int:
    """Compare an invoice with the ledger: 0 when the two balance, 3 when they don't."""
    tolerance = duration("--tolerance", arguments.tolerance)
    lines = _invoice(arguments.invoice, arguments.column)
    filters = _with_days_of(lines, Filters.of(arguments))
    try:
        entries = asyncio.run(_entries(arguments.ledger, filters, tolerance, arguments.provider))
    except LedgerNotFoundError as error:
        entries = []
        sys.stderr.write(f"{error}\n")
    found = _within(reconcile(entries, lines, tolerance=tolerance), filters)
    show(
        [_as_json(found, filters)] if arguments.json else _as_text(found, filters, terminal_width())
    )
    return 0 if found.is_balanced else NOT_BALANCED


def _invoice(name: str, mapping: Sequence[str]) -> tuple[InvoiceLine, ...]:
    columns: dict[str, str] = {}
    for pair in mapping:
        ours, separator, theirs = pair.partition("=")
        if not separator or ours not in COLUMNS:
            raise UsageError(
                f"--column {pair!r}: give NAME=COLUMN, where NAME is one of {', '.join(COLUMNS)}."
            )
        columns[ours] = theirs
    try:
        if name == "-":
            return read_invoice(sys.stdin, columns)
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            return read_invoice(file, columns)
    except OSError as error:
        raise UsageError(
            f"The invoice {name!r} can't be read: {error.strerror or error}."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The invoice {name!r} is not a text in UTF-8. Save it as one.") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{name}: {error}") from error


def _with_days_of(lines: Iterable[InvoiceLine], filters: Filters) -> Filters:
    """The days (UTC) that the invoice has lines of, unless other times are asked for."""
    times = [line.at for line in lines if line.at is not None]
    if filters.since is not None or filters.until is not None or not times:
        return filters
    since, last = (
        datetime.combine(at.astimezone(UTC), time(), UTC) for at in (min(times), max(times))
    )
    return replace(filters, since=since, until=last + timedelta(days=1))


async def _entries(
    url: str | None, filters: Filters, tolerance: timedelta, provider: str | None
) -> list[LedgerEntry]:
    """Those asked for, and a little more: the two clocks may put one request on two sides of a
    limit.
    """
    wider = replace(
        filters,
        since=None if filters.since is None else _moved(filters.since, -tolerance),
        until=None if filters.until is None else _moved(filters.until, tolerance),
    )
    async with Ledger.open(url, create=False) as ledger:
        entries = await ledger.entries(**wider.as_arguments())
    wanted = None if provider is None else canonical_provider(provider)
    return [entry for entry in entries if wanted is None or _provider(entry) == wanted]


def _moved(at: datetime, by: timedelta) -> datetime:
    try:
        return at + by
    except OverflowError:
        return (
            datetime.max.replace(tzinfo=UTC)
            if by > timedelta()
            else datetime.min.replace(tzinfo=UTC)
        )


def _provider(entry: LedgerEntry) -> str | None:
    name = entry.provider or (entry.model_asked or "").partition(":")[0]
    return canonical_provider(name) if name else None


def _within(found: Reconciliation, filters: Filters) -> Reconciliation:
    """Without those that have no partner because theirs may lie outside the time that is asked
    for.
    """

    def is_within(at: datetime | None) -> bool:
        return at is None or (
            (filters.since is None or at >= filters.since)
            and (filters.until is None or at < filters.until)
        )

    return replace(
        found,
        entries=tuple(entry for entry in found.entries if is_within(entry.sent_at)),
        lines=tuple(line for line in found.lines if is_within(line.at)),
    )


def _sums(found: Reconciliation) -> tuple[Decimal, Decimal]:
    """What the ledger and the invoice say, as far as they do."""
    lines = [*(match.line for match in found.matches), *found.lines]
    with localcontext(EXACT):
        billed = sum((line.cost_usd for line in lines if line.cost_usd is not None), Decimal(0))
    return total_usd([*(match.entry for match in found.matches), *found.entries]), billed


def _as_json(found: Reconciliation, filters: Filters) -> str:
    booked, billed = _sums(found)
    said = {
        "balanced": found.is_balanced,
        "filters": filters.as_json(),
        "currency": "USD",
        "ledger_usd": exact(booked),
        "invoice_usd": exact(billed),
        "matched": dict(Counter(match.by for match in found.matches)),
        "entries_without_line": [_entry_json(entry) for entry in found.entries],
        "lines_without_entry": [_line_json(line) for line in found.lines],
        "differing": [
            {
                "entry": _entry_json(match.entry),
                "line": _line_json(match.line),
                "by": match.by,
                "differences": match.differences,
            }
            for match in found.matches
            if match.differences
        ],
    }
    return json.dumps(said, indent=2)


def _entry_json(entry: LedgerEntry) -> dict[str, Any]:
    at = entry.attribution
    return {
        "id": entry.id,
        "state": entry.state.value,
        "sent_at": entry.sent_at.isoformat(),
        "model": entry.model_answered or entry.model_asked,
        "response_id": entry.response_id,
        "run_id": at.run_id,
        "pipeline": at.pipeline,
        "step_id": at.step_id,
        "input_tokens": entry.tokens.input_tokens,
        "output_tokens": entry.tokens.output_tokens,
        "cost_usd": None if entry.cost_usd is None else exact(entry.cost_usd),
        "upper_bound_usd": None if entry.upper_bound_usd is None else exact(entry.upper_bound_usd),
    }


def _line_json(line: InvoiceLine) -> dict[str, Any]:
    return asdict(line) | {
        "at": None if line.at is None else line.at.isoformat(),
        "cost_usd": None if line.cost_usd is None else f"{line.cost_usd:f}",
    }


def _as_text(found: Reconciliation, filters: Filters, width: int | None) -> Iterator[str]:
    matched, asked = len(found.matches), f" ({printable(str(filters))})" if filters else ""
    yield from prose(
        f"{_many(matched + len(found.entries), 'ledger entry', 'ledger entries')} beside "
        f"{_many(matched + len(found.lines), 'invoice line', 'invoice lines')}{asked}",
        width,
    )
    ways = ", ".join(
        f"{number:,} by {by.replace('_', ' ')}"
        for by, number in Counter(m.by for m in found.matches).items()
    )
    yield from prose(f"{_many(matched, 'pair', 'pairs')}{f': {ways}' if ways else ''}", width)
    if found.entries:
        yield from ["", f"Entries without an invoice line: {len(found.entries):,}", ""]
        yield from _entry_table(found.entries, width)
    if found.lines:
        yield from ["", f"Invoice lines without an entry: {len(found.lines):,}", ""]
        yield from _line_table(found.lines, width)
    differing = [match for match in found.matches if match.differences]
    if differing:
        yield from ["", f"Pairs that differ: {len(differing):,}", ""]
        for match in differing:
            told = (
                f"line {match.line.number}, entry {match.entry.id}: {'; '.join(match.differences)}"
            )
            yield from prose(printable(told), width)
    booked, billed = _sums(found)
    ours, theirs, apart = amounts([booked, billed, EXACT.subtract(billed, booked)])
    yield ""
    yield from prose(f"Ledger {ours} USD, invoice {theirs} USD, difference {apart} USD.", width)
    if found.is_balanced:
        yield "The books balance."
    else:
        yield from prose("The books do not balance.", width)


def _entry_table(entries: Sequence[LedgerEntry], width: int | None) -> list[str]:
    places = [
        step_key(entry.attribution.pipeline, entry.attribution.step_id) or "-" for entry in entries
    ]
    lines, _ = table(
        [
            Column("sent (UTC)", [_clock(entry.sent_at) for entry in entries], left=True),
            Column("state", [entry.state.value for entry in entries], left=True, rank=1),
            Column(
                "model",
                [printable(entry.model or "-") for entry in entries],
                left=True,
                shortest=12,
                rank=3,
            ),
            Column(
                "pipeline/step",
                [printable(place) for place in places],
                left=True,
                shortest=12,
                rank=2,
            ),
            Column("entry", [printable(entry.id) for entry in entries], left=True, rank=5),
            Column("USD", _known(entry.cost_usd for entry in entries)),
        ],
        width=width,
        total=False,
    )
    return lines


def _line_table(billed: Sequence[InvoiceLine], width: int | None) -> list[str]:
    lines, _ = table(
        [
            Column("line", [f"{line.number:,}" for line in billed]),
            Column(
                "time (UTC)",
                ["-" if line.at is None else _clock(line.at) for line in billed],
                left=True,
                rank=1,
            ),
            Column(
                "model",
                [printable(line.model or "-") for line in billed],
                left=True,
                shortest=12,
                rank=2,
            ),
            Column(
                "response id",
                [printable(line.response_id or "-") for line in billed],
                left=True,
                shortest=12,
                rank=3,
            ),
            Column("USD", _known(line.cost_usd for line in billed)),
        ],
        width=width,
        total=False,
    )
    return lines


def _known(values: Iterable[Decimal | None]) -> list[str]:
    values = list(values)
    told = iter(amounts(value for value in values if value is not None))
    return ["unknown" if value is None else next(told) for value in values]


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
