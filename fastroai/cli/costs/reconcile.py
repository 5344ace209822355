"""`fastroai costs reconcile`: compares a ledger with a provider's invoice."""

from __future__ import annotations

import asyncio
import csv
import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, localcontext
from itertools import chain
from pathlib import Path
from typing import Annotated, TextIO

from cyclopts import Parameter
from rich.console import Console

from ...ledger.aggregation import step_key
from ...ledger.entries import LedgerEntry, total_usd
from ...ledger.exports import BilledSum, export_format, read_export, reconcile_sums
from ...ledger.invoices import COLUMNS, InvoiceLine, read_invoice, separated
from ...ledger.reconciliation import AgreeingPairs, Match, Reconciliation, reconcile
from ...pricing.money import EXACT
from ...providers import PROVIDERS, canonical_provider
from ..exit_codes import NOT_BALANCED, UsageError
from ..parsing import duration
from ..rendering.console import console, prose
from ..rendering.tables import Amount, Cell, Column, amounts, exact, print_table
from .filters import ALL, CONFIGURED, Filters, Source
from .recorded import Recorded, read_recorded
from .report import publish
from .sums import as_json as sums_as_json
from .sums import show as show_sums
from .sums import show_texts, span, verdict, within


def reconcile_invoice(
    invoice: Annotated[str, Parameter(name="INVOICE.csv", allow_leading_hyphen=True)],
    /,
    *,
    column: Sequence[str] = (),
    provider: str | None = None,
    tolerance: Annotated[timedelta, Parameter(converter=duration)] = timedelta(minutes=5),
    filters: Filters = ALL,
    source: Source = CONFIGURED,
) -> int:
    """Compare the ledger with a provider's invoice.

    Args:
        invoice: CSV with a line of column names; - is stdin.
        column: NAME=COLUMN, the invoice's own name for response_id, model, at, input_tokens,
            output_tokens or cost_usd, where it is not found by itself. Repeatable.
        provider: Whose invoice it is, for example openai; default: of all requests, or that of the
            export.
        tolerance: How far apart in time the same request may be on both sides; default: 5m.
    """
    with nothing_collected(), opened(invoice) as file:
        header, rows = with_header(file)
        known = None if column else export_format(header)
        lines: tuple[InvoiceLine, ...] = ()
        billed: tuple[BilledSum, ...] = ()
        if known is None:
            lines = read_invoice(rows, dict(map(named_column, column)))
        else:
            billed = read_export(rows, known)
    if not (billed or lines):
        raise UsageError(f"Invoice {invoice!r} has no lines: there is nothing to compare.")
    if known is not None:
        return compare_sums(billed, provider or known.provider, filters, source)
    filters = with_days_of(lines, filters)
    agreeing = AgreeingPairs(lines)
    del lines  # each is let go of when its entry is found
    with nothing_collected():
        recorded = read_entries(source, filters, tolerance, provider, agreeing)
        found = reconcile(recorded.entries, agreeing.lines, tolerance=tolerance)
        found = within_time(found, filters)
    content = reconciliation_json(found, agreeing, filters) | recorded.as_json()
    remarks = recorded.remarks()
    publish(source, content, lambda: show(console(), found, agreeing, filters, remarks))
    return 0 if found.is_balanced else NOT_BALANCED


def compare_sums(
    billed: Sequence[BilledSum], provider: str, filters: Filters, source: Source
) -> int:
    """Compare sums by day and model, as providers export them."""
    billed = within(billed, filters)
    covered = span(billed)
    if covered is not None:
        filters = replace(filters, since=covered[0], until=covered[1])
    recorded = read_entries(source, filters, timedelta(), provider)
    found = reconcile_sums(recorded.entries, billed)
    remarks = recorded.remarks()
    publish(
        source,
        sums_as_json(found, filters, entry_json) | recorded.as_json(),
        lambda: show_sums(console(), found, filters, _ENTRY_COLUMNS, entry_row, remarks),
    )
    return 0 if found.is_balanced else NOT_BALANCED


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Without the garbage collector, which looks through all entries again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def opened(name: str) -> Iterator[TextIO]:
    """The invoice's file; whatever is wrong with it is a wrong argument."""
    try:
        if name == "-":
            yield sys.stdin
            return
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise UsageError(f"Can't read invoice {name!r}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Invoice {name!r} is not valid UTF-8.") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{name}: {error}") from error


def with_header(file: TextIO) -> tuple[list[str], Iterator[str]]:
    """The names of the columns, and all lines."""
    first = file.readline()
    return next(separated([first]), (0, []))[1], chain([first], file)


def named_column(pair: str) -> tuple[str, str]:
    """Our name of a column, and the invoice's."""
    ours, separator, theirs = pair.partition("=")
    if not separator or ours not in COLUMNS:
        names = ", ".join(COLUMNS)
        raise UsageError(f"--column {pair!r}: expected NAME=COLUMN, where NAME is one of {names}.")
    return ours, theirs


def with_days_of(lines: Iterable[InvoiceLine], filters: Filters) -> Filters:
    """The days (UTC) that the invoice has lines of, unless other times are asked for."""
    times = [line.at for line in lines if line.at is not None]
    if filters.since is not None or filters.until is not None or not times:
        return filters
    return replace(
        filters, since=midnight(min(times)), until=midnight(max(times)) + timedelta(days=1)
    )


def midnight(at: datetime) -> datetime:
    """The beginning of its day in UTC."""
    return datetime.combine(at.astimezone(UTC), time(), UTC)


def read_entries(
    source: Source,
    filters: Filters,
    tolerance: timedelta,
    provider: str | None,
    agreeing: AgreeingPairs | None = None,
) -> Recorded:
    """The entries to compare: those asked for, and a little more, as the two clocks may put one
    request on two sides of a limit. Those that agree with their line are told of and left out.

    Raises:
        UsageError: Nobody is known under the provider's name, and nothing is booked under it.
        LedgerNotFoundError: There is no ledger.
    """
    since, until = moved(filters.since, -tolerance), moved(filters.until, tolerance)
    wider = replace(filters, since=since, until=until)
    wanted = None if provider is None else canonical_provider(provider)

    def is_wanted(entry: LedgerEntry) -> bool:
        return wanted in (None, canonical_provider(entry.answering_provider or ""))

    def is_kept(entry: LedgerEntry) -> bool:
        return is_wanted(entry) and not (agreeing is not None and agreeing.take(entry))

    recorded = asyncio.run(read_recorded(source.ledger, wider, is_kept))
    has_any = recorded.entries or (agreeing is not None and agreeing.number)
    if not has_any and wanted is not None and wanted not in PROVIDERS:
        raise UsageError(
            f"--provider {provider!r} is not a known provider. Known: "
            f"{', '.join(sorted(PROVIDERS))}."
        )
    return recorded


def moved(at: datetime | None, by: timedelta) -> datetime | None:
    """None where there is no limit, or none in the calendar."""
    try:
        return None if at is None else at + by
    except OverflowError:
        return None


def within_time(found: Reconciliation, filters: Filters) -> Reconciliation:
    """Without those that have no partner because theirs may lie outside the time that is asked
    for.
    """
    first, last = filters.bounds
    entries = tuple(entry for entry in found.entries if first <= entry.sent_at < last)
    lines = tuple(line for line in found.lines if line.at is None or first <= line.at < last)
    return replace(found, entries=entries, lines=lines)


def sums_of(found: Reconciliation, agreeing: AgreeingPairs) -> tuple[Decimal, Decimal]:
    """What the ledger and the invoice say, as far as they do."""
    lines = [*(match.line for match in found.matches), *found.lines]
    known = (line.cost_usd for line in lines if line.cost_usd is not None)
    with localcontext(EXACT):
        billed = sum(known, agreeing.billed_usd)
    booked = total_usd([*(match.entry for match in found.matches), *found.entries])
    return EXACT.add(booked, agreeing.booked_usd), billed


def ways_of(found: Reconciliation, agreeing: AgreeingPairs) -> Counter[str]:
    """How many pairs were found by what."""
    by_response = {"response_id": agreeing.number} if agreeing.number else {}
    return Counter(by_response) + Counter(match.by for match in found.matches)


def reconciliation_json(
    found: Reconciliation, agreeing: AgreeingPairs, filters: Filters
) -> dict[str, object]:
    """What is found; amounts as strings, exact."""
    booked, billed = sums_of(found, agreeing)
    return {
        "balanced": found.is_balanced,
        "filters": filters.as_json(),
        "currency": "USD",
        "ledger_usd": exact(booked),
        "invoice_usd": exact(billed),
        "matched": dict(ways_of(found, agreeing)),
        "entries_without_line": list(map(entry_json, found.entries)),
        "lines_without_entry": list(map(line_json, found.lines)),
        "differing": list(map(match_json, found.differing)),
    }


def match_json(match: Match) -> dict[str, object]:
    """A pair that differs."""
    return {
        "entry": entry_json(match.entry),
        "line": line_json(match.line),
        "by": match.by,
        "differences": match.differences,
    }


def entry_json(entry: LedgerEntry) -> dict[str, object]:
    """A ledger entry."""
    at = entry.attribution
    return {
        "id": entry.id,
        "state": entry.state.value,
        "sent_at": entry.sent_at.isoformat(),
        "model": entry.answering_model,
        "response_id": entry.response_id,
        "run_id": at.run_id,
        "pipeline": at.pipeline,
        "step_id": at.step_id,
        "input_tokens": entry.tokens.input_tokens,
        "output_tokens": entry.tokens.output_tokens,
        "cost_usd": None if entry.cost_usd is None else exact(entry.cost_usd),
        "upper_bound_usd": None if entry.upper_bound_usd is None else exact(entry.upper_bound_usd),
    }


def line_json(line: InvoiceLine) -> dict[str, object]:
    """An invoice line."""
    return asdict(line) | {
        "at": None if line.at is None else line.at.isoformat(),
        "cost_usd": None if line.cost_usd is None else f"{line.cost_usd:f}",
    }


def show(
    out: Console,
    found: Reconciliation,
    agreeing: AgreeingPairs,
    filters: Filters,
    remarks: Iterable[str] = (),
) -> None:
    """Write what is found, what must be known of it, and whether the books balance."""
    for line in headline(found, agreeing, filters):
        prose(out, line)
    entries = list(map(entry_row, found.entries))
    show_list(out, "Entries without an invoice line", _ENTRY_COLUMNS, entries)
    lines = list(map(line_row, found.lines))
    show_list(out, "Invoice lines without an entry", _LINE_COLUMNS, lines)
    differing = found.differing
    show_texts(out, "Pairs that differ", list(map(difference_of, differing)))
    booked, billed = sums_of(found, agreeing)
    ours, theirs, apart = amounts([booked, billed, EXACT.subtract(billed, booked)])
    prose(out, f"\nLedger {ours} USD, invoice {theirs} USD, difference {apart} USD.")
    for remark in remarks:
        prose(out, remark)
    prose(out, verdict(found.is_balanced))


def difference_of(match: Match) -> str:
    """What the two of a pair say otherwise."""
    differences = "; ".join(match.differences)
    return f"line {match.line.number}, entry {match.entry.id}: {differences}"


def show_list(
    out: Console, heading: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]
) -> None:
    """A table below a heading, where it has rows."""
    if rows:
        prose(out, f"\n{heading}: {len(rows):,}\n")
        print_table(out, columns, rows)


def headline(found: Reconciliation, agreeing: AgreeingPairs, filters: Filters) -> Iterator[str]:
    """How many of each there are, and how they were paired."""
    counts = ways_of(found, agreeing)
    pairs = counts.total()
    entries = _many(pairs + len(found.entries), "ledger entry", "ledger entries")
    lines = _many(pairs + len(found.lines), "invoice line", "invoice lines")
    yield f"{entries} beside {lines}{filters.in_brackets}"
    ways = ", ".join(f"{number:,} by {by.replace('_', ' ')}" for by, number in counts.items())
    yield f"{_many(pairs, 'pair', 'pairs')}{f': {ways}' if ways else ''}"


_ENTRY_COLUMNS = (
    Column("sent (UTC)", shortest=19),
    Column("state", shortest=9, rank=1),
    Column("model", shortest=12, rank=3),
    Column("pipeline/step", shortest=12, rank=2),
    Column("entry", shortest=36, rank=5),
    Column("USD"),
)
_LINE_COLUMNS = (
    Column("line"),
    Column("time (UTC)", shortest=19, rank=1),
    Column("model", shortest=12, rank=2),
    Column("response id", shortest=12, rank=3),
    Column("USD"),
)


def entry_row(entry: LedgerEntry) -> tuple[Cell, ...]:
    """A ledger entry, for the table."""
    step = step_key(entry.attribution.pipeline, entry.attribution.step_id) or "-"
    sent = _clock(entry.sent_at)
    usd = None if entry.cost_usd is None else Amount(entry.cost_usd)
    return sent, entry.state.value, entry.model or "-", step, entry.id, usd


def line_row(line: InvoiceLine) -> tuple[Cell, ...]:
    """An invoice line, for the table."""
    at = "-" if line.at is None else _clock(line.at)
    usd = None if line.cost_usd is None else Amount(line.cost_usd)
    return line.number, at, line.model or "-", line.response_id or "-", usd


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _many(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
