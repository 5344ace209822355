"""`fastroai costs`: costs of a ledger's requests in groups."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from operator import attrgetter

from rich.console import Console

from ...database.location import MEMORY, ledger_url
from ...ledger.aggregation import AMOUNTS, COUNTS, Totals, whole_of
from ...ledger.ledger import Ledger
from ...pricing.money import EXACT
from ..rendering.console import console, printable, prose, write_json
from ..rendering.tables import Amount, Cell, Column, exact, percent, print_table
from .filters import ALL, CONFIGURED, By, Filters, Source

_HEADINGS = {"day": "day (UTC)", "step": "pipeline/step"}
SEVERAL_TAGS = (
    "A request with several tags is in the line of each, so the lines may add up to more than the "
    "total."
)


def report(*, by: By = "pipeline", filters: Filters = ALL, source: Source = CONFIGURED) -> None:
    """Show what the requests cost that the filters select.

    Args:
        by: run, run_key, pipeline, step, item, agent, model, provider, deployment, created_by, day,
            tag, or tag:NAME for the values of one tag. Default: pipeline.
    """
    groups, total, booked = asyncio.run(_read(source.ledger, by, filters))
    nothing = "" if groups else nothing_found(source.ledger, filters, booked)
    content = _as_json(by, filters, groups, total)
    publish(source, content, nothing or (lambda: _show(console(), by, filters, groups, total)))


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


async def _read(
    url: str | None, by: str, filters: Filters
) -> tuple[tuple[Totals, ...], Totals, int]:
    """The groups, largest first, what they add up to, and how many entries there are if these are
    none.
    """
    async with Ledger.open(url, create=False) as ledger:
        groups = await ledger.totals(by=by, **filters.as_arguments())
        if not groups:
            [everything] = await ledger.totals()
            return (), Totals(), everything.requests + everything.replayed
        if by == "tag":
            # An entry is in the group of each of its tags.
            [total] = await ledger.totals(**filters.as_arguments())
        else:
            # Not asked for again: meanwhile, there may be more.
            total = whole_of(groups)
    if by != "day":
        groups = tuple(sorted(groups, key=lambda group: (-paid(group), -group.simulated_usd)))
    return groups, total, 0


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


def _as_json(
    by: str, filters: Filters, groups: Sequence[Totals], total: Totals
) -> dict[str, object]:
    """Amounts as strings, exact; `cost_usd` includes what was simulated, `paid_usd` does not."""
    return {
        "by": by,
        "filters": filters.as_json(),
        "currency": "USD",
        "groups": [{"key": group.key} | totals_json(group) for group in groups],
        "total": totals_json(total),
    }


def totals_json(totals: Totals) -> dict[str, object]:
    """A row of the report."""
    return {
        **{name: getattr(totals, name) for name in COUNTS},
        "share_priced": totals.share_priced,
        "tokens": asdict(totals.tokens),
        "paid_usd": exact(paid(totals)),
        **{name: exact(getattr(totals, name)) for name in AMOUNTS},
    }


def _show(out: Console, by: str, filters: Filters, groups: Sequence[Totals], total: Totals) -> None:
    """Write a title, the table with its total, and what must be known to read it."""
    group = f"tag {key_name(by)}" if by.startswith("tag:") else key_name(by)
    prose(out, f"Costs by {group}: {filters or 'all requests in the ledger'}")
    out.print()
    left_out = print_groups(out, by, groups, total)
    out.print()
    show_remarks(out, remarks_on(by, total), left_out)


def show_remarks(out: Console, remarks: Iterable[str], left_out: Sequence[str]) -> None:
    """What must be known to read a table, and which columns it lacks."""
    for remark in remarks:
        prose(out, remark)
    if left_out:
        prose(out, no_room_for(left_out))


def print_groups(out: Console, by: str, groups: Sequence[Totals], total: Totals) -> tuple[str, ...]:
    columns, measures = zip(*measures_of(total), strict=True)
    columns = (key_column(by), *columns)
    rows = [(key_cell(by, group.key), *measured(group, measures)) for group in groups]
    sums = ("total", *measured(total, measures))
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
    if total.simulated:
        yield Column("simulated USD", rank=2), lambda totals: Amount(totals.simulated_usd)
    yield Column("USD"), lambda totals: Amount(paid(totals))


def _simulated(totals: Totals) -> Decimal:
    return totals.simulated_usd


def key_column(by: str) -> Column:
    """The column that says what the requests of each row have in common."""
    # A run's id is of use only as a whole.
    shortest = 36 if by in ("run", "run_key") else 12
    return Column(_HEADINGS.get(by, key_name(by)), shortest=shortest)


def key_cell(by: str, key: str | None) -> str:
    """What the requests of one row have in common."""
    return f"(no {key_name(by)})" if key is None else key


def key_name(by: str) -> str:
    """A grouping for people."""
    return by.removeprefix("tag:") if by.startswith("tag:") else by.replace("_", " ")


def remarks_on(by: str, total: Totals) -> Iterator[str]:
    """What must be known to read a table."""
    if by == "tag":
        yield SEVERAL_TAGS
    if total.simulated:
        yield (
            f"SIMULATED: {total.simulated:,} of {counted(total.requests)} were answered by an "
            f"offline model. What they would have cost, {exact(total.simulated_usd)} USD, was not "
            "paid and is not in the column USD."
        )
    yield from remarks_on_unknown(total)
    if total.refused:
        yield f"{counted(total.refused)} refused by the provider, which bills nothing for them."
    if total.replayed:
        yield (
            f"{counted(total.replayed)} answered from a record instead of being sent again; "
            f"{exact(total.replayed_usd)} USD saved."
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
