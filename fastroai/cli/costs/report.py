"""`fastroai costs`: costs of a ledger's requests in groups."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, cast

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ...database.location import MEMORY, ledger_url
from ...ledger.aggregation import AMOUNTS, COUNTS, Totals, dimensions_of, whole_of
from ...ledger.ledger import Ledger
from ...pricing.money import EXACT
from ..exit_codes import UsageError
from ..rendering.console import console, printable, prose, write_json
from ..rendering.tables import Amount, Cell, Column, exact, percent, print_table
from ..watching import watch_until_interrupted
from .filters import ALL, CONFIGURED, By, Filters, Source
from .keys import (
    SEVERAL_TAGS,
    key_cells,
    key_columns,
    key_json,
    key_of,
    title_of,
    total_cells,
    values_of,
)

_EVERY = 5.0
_NONE = Totals()


def report(
    *,
    by: By = "pipeline",
    limit: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    watch: bool = False,
    every: Annotated[float, Parameter(validator=Number(gt=0))] = _EVERY,
    filters: Filters = ALL,
    source: Source = CONFIGURED,
) -> int:
    """Show what the requests cost that the filters select.

    Args:
        by: run, run_key, pipeline, step, item, agent, model, provider, deployment, created_by, day,
            tag, or tag:NAME for the values of one tag; several with commas, as day,model.
            Default: pipeline.
        limit: Show only so many lines, those of the largest amounts, or of the last days. The
            others are added up in one.
        as_csv: As CSV, exact amounts. It has no total, and what is not known is empty.
        watch: Show it again from time to time, until Ctrl-C.
        every: Seconds between two times of --watch; default: 5.
    """
    if sum((as_csv, watch, source.json)) > 1:
        raise UsageError("Specify one of --json, --csv and --watch.")
    asked = _Asked(by, limit, filters, source)
    if watch:
        return watch_until_interrupted(console(), lambda: asked.show(as_csv=False), every)
    asked.show(as_csv)
    return 0


@dataclass(frozen=True, slots=True)
class _Asked:
    by: str
    limit: int | None
    filters: Filters
    source: Source

    def show(self, as_csv: bool) -> None:
        found = asyncio.run(_read(self.source.ledger, self.by, self.limit, self.filters))
        if as_csv:
            write_groups(self.by, found.groups)
            return
        nothing = ""
        if not found.groups:
            nothing = nothing_found(self.source.ledger, self.filters, found.booked)
        publish(
            self.source,
            _as_json(self.by, self.filters, found),
            nothing or (lambda: _show(console(), self.by, self.filters, found)),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The groups that are shown, what the others add up to, and what all do.

    Attributes:
        others: How many these are.
        booked: How many entries there are if these are none.
    """

    groups: Sequence[Totals] = ()
    rest: Totals = _NONE
    others: int = 0
    total: Totals = _NONE
    booked: int = 0


def publish(source: Source, content: object, found: str | Callable[[], None]) -> None:
    """Write what is found as JSON or as a table.

    Args:
        content: For JSON, which is written in any case.
        found: Shows it; or the sentence that says that there is nothing.
    """
    if source.json:
        write_json(content)
    if isinstance(found, str):
        # Beside JSON, a sentence would make stdout unreadable for programs.
        (sys.stderr if source.json else sys.stdout).write(f"{found}\n")
    elif not source.json:
        found()


async def _read(url: str | None, by: str, limit: int | None, filters: Filters) -> _Found:
    async with Ledger.open(url, create=False) as ledger:
        groups = await ledger.totals(by=by, **filters.as_arguments())
        if not groups:
            [everything] = await ledger.totals()
            return _Found(booked=everything.requests + everything.replayed)
        shown, others = _cut(by, groups, limit)
        rest = whole_of(others)
        if "tag" in dimensions_of(by):
            # An entry is in the group of each of its tags.
            [total] = await ledger.totals(**filters.as_arguments())
        else:
            # Not asked for again: meanwhile, there may be more.
            total = whole_of([*shown, rest])
    return _Found(shown, rest, len(others), total)


def _cut(
    by: str, groups: Sequence[Totals], limit: int | None
) -> tuple[Sequence[Totals], Sequence[Totals]]:
    """The groups to show, and the others: days in their order, else the largest first."""
    if "day" in dimensions_of(by):
        first = max(0, len(groups) - limit) if limit else 0
        return groups[first:], groups[:first]
    ordered = sorted(groups, key=lambda group: (-paid(group), -group.simulated_usd))
    return ordered[:limit], ordered[limit:] if limit else ()


def nothing_found(url: str | None, filters: Filters, booked: int) -> str:
    """Why there is nothing to report."""
    if booked:
        others = f"{booked:,} others" if booked > 1 else "one other"
        return f"No request matches: {printable(str(filters))}. The ledger has {others}."
    if (url or ledger_url()) == MEMORY:
        return (
            f"A ledger in {MEMORY} ends with the process that writes it. Name a database with "
            "--ledger."
        )
    return "The ledger has no entries yet."


def paid(totals: Totals) -> Decimal:
    """Real money: without what an offline model only simulated."""
    return EXACT.subtract(totals.cost_usd, totals.simulated_usd)


def _as_json(by: str, filters: Filters, found: _Found) -> dict[str, object]:
    """Amounts as strings, exact; `cost_usd` includes what was simulated, `paid_usd` does not."""
    others = {"others": {"groups": found.others} | totals_json(found.rest)} if found.others else {}
    return {
        "by": by,
        "filters": filters.as_json(),
        "currency": "USD",
        "groups": [key_json(by, key_of(group)) | totals_json(group) for group in found.groups],
        **others,
        "total": totals_json(found.total),
    }


def write_groups(by: str, groups: Iterable[Totals]) -> None:
    """Write the groups to stdout as CSV: a column for each dimension, then the numbers."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    numbers: Sequence[str] = ()
    for group in groups:
        measures = totals_json(group)
        measures |= cast("dict[str, object]", measures.pop("tokens"))
        if not numbers:
            numbers = tuple(measures)
            rows.writerow([*dimensions_of(by), *numbers])
        rows.writerow([*values_of(key_of(group)), *map(measures.get, numbers)])


def totals_json(totals: Totals) -> dict[str, object]:
    """A row of the report."""
    return {
        **{name: getattr(totals, name) for name in COUNTS},
        "share_priced": totals.share_priced,
        "tokens": asdict(totals.tokens),
        "paid_usd": exact(paid(totals)),
        **{name: exact(getattr(totals, name)) for name in AMOUNTS},
        # Null where it is not known in full: a part of it would read as all.
        "cache_saved_usd": exact(totals.cache_saved_usd) if _knows_cache(totals) else None,
    }


def _knows_cache(totals: Totals) -> bool:
    return totals.cache_priced_tokens >= totals.cached_tokens


def cache_cell(totals: Totals) -> Cell:
    """What prompt caching saved, or below 0 cost."""
    if _knows_cache(totals):
        return Amount(totals.cache_saved_usd)
    return Amount(totals.cache_saved_usd, " + unknown") if totals.cache_priced_tokens else None


def _show(out: Console, by: str, filters: Filters, found: _Found) -> None:
    """Write a title, the table with its total, and what must be known to read it."""
    prose(out, f"Costs by {title_of(by)}: {filters or 'all requests in the ledger'}")
    out.print()
    left_out = print_groups(out, by, found)
    out.print()
    show_remarks(out, remarks_on(by, found.total), left_out)


def show_remarks(out: Console, remarks: Iterable[str], left_out: Sequence[str]) -> None:
    """What must be known to read a table, and which columns it lacks."""
    for remark in remarks:
        prose(out, remark)
    if left_out:
        prose(out, no_room_for(left_out))


def print_groups(out: Console, by: str, found: _Found) -> tuple[str, ...]:
    total = found.total
    columns, measures = zip(*measures_of(total), strict=True)
    columns = (*key_columns(by), *columns)
    groups = list(found.groups)
    heads = [key_cells(by, key_of(group)) for group in groups]
    if found.others:
        groups.append(found.rest)
        heads.append(total_cells(by, f"({found.others:,} others)"))
    rows = [(*head, *measured(g, measures)) for head, g in zip(heads, groups, strict=True)]
    sums = (*total_cells(by), *measured(total, measures))
    share, amount = "share", paid
    if paid(total) == 0 and total.simulated:  # then what it would have cost is compared
        share, amount = "simulated share", _simulated
    whole = amount(total)
    if whole <= 0 or len(groups) == 1:
        return print_table(out, columns, rows, total=sums)
    bars = list(map(amount, groups))
    rows = [
        (*row, f"{float(bar / whole) * 100:.1f} %") for row, bar in zip(rows, bars, strict=True)
    ]
    if found.others:
        bars[-1] = Decimal(0)  # many together would make each of the others look small
    columns = (*columns, Column(share, rank=4))
    return print_table(out, columns, rows, total=(*sums, ""), bars=bars)


def measured(totals: Totals, measures: Iterable[Callable[[Totals], Cell]]) -> Iterator[Cell]:
    """The cells of a row."""
    return (measure(totals) for measure in measures)


Measure = tuple[Column, Callable[[Totals], Cell]]


def measures_of(total: Totals) -> Iterator[Measure]:
    """The columns of numbers: those that always stand there, and those that have any."""
    yield Column("requests", rank=1), attrgetter("requests")
    for name, rank in (("unpriced", 5), ("unsettled", 5), ("refused", 6), ("replayed", 6)):
        if getattr(total, name):
            yield Column(name, rank=rank), attrgetter(name)
    yield Column("input tokens", rank=7), attrgetter("tokens.input_tokens")
    yield Column("output tokens", rank=7), attrgetter("tokens.output_tokens")
    if total.cached_tokens:
        yield Column("caching saved USD", rank=3), cache_cell
    if total.simulated:
        yield Column("simulated USD", rank=2), lambda totals: Amount(totals.simulated_usd)
    yield Column("USD"), lambda totals: Amount(paid(totals))


def _simulated(totals: Totals) -> Decimal:
    return totals.simulated_usd


def remarks_on(by: str, total: Totals) -> Iterator[str]:
    """What must be known to read a table."""
    if "tag" in dimensions_of(by):
        yield SEVERAL_TAGS
    if total.simulated:
        yield remark_on_simulated(total)
    yield from remarks_on_unknown(total)
    if total.refused:
        yield f"{counted(total.refused)} refused by the provider, which bills nothing for them."
    if total.replayed:
        yield (
            f"{counted(total.replayed)} answered from a record instead of being sent again; "
            f"{exact(total.replayed_usd)} USD saved."
        )


def remark_on_simulated(total: Totals) -> str:
    """That some of its requests were answered by an offline model."""
    were = "was" if total.simulated == 1 else "were"
    return (
        f"SIMULATED: {total.simulated:,} of {counted(total.requests)} {were} answered by an "
        f"offline model. What that would have cost, {exact(total.simulated_usd)} USD, was not "
        "paid and is not in the column USD."
    )


def remarks_on_unknown(total: Totals) -> Iterator[str]:
    """What is not in its amounts."""
    share = total.share_priced
    if share is None or share == 1:
        return
    yield (
        f"PRICED: {percent(share)} of the requests that count as spend. The rest may have cost "
        "more than is shown:"
    )
    if total.unpriced:
        yield f"- {counted(total.unpriced)} answered by a model without a known price."
    bound = "No upper bound is known."
    if total.upper_bound_usd:
        bound = (
            f"At most {exact(total.upper_bound_usd)} USD together, as far as a bound is known; "
            "what is known to be spent of it is in the total."
        )
    if total.unsettled:
        yield f"- {counted(total.unsettled)} unsettled: sent, outcome unknown or pending. {bound}"


def no_room_for(headings: Sequence[str]) -> str:
    """That a table lacks some columns."""
    return (
        f"No room here for: {', '.join(headings)}. A wider terminal shows them, and --json has all."
    )


def counted(number: int) -> str:
    """So many requests."""
    return f"{number:,} request" + ("" if number == 1 else "s")
