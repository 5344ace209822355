"""What the requests in a ledger cost, in groups."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from ...database.location import MEMORY
from ...errors import LedgerNotFoundError
from ...ledger.aggregation import AMOUNTS, COUNTS, Totals, merged
from ...ledger.ledger import Ledger, ledger_url
from ...pricing.money import EXACT
from ..rendering.table import (
    Column,
    lengths,
    percent,
    places_of,
    printable,
    prose,
    show,
    table,
    terminal_width,
)
from .selection import Filters

_HEADINGS = {"day": "day (UTC)", "step": "pipeline/step"}
SEVERAL_TAGS = (
    "A request with several tags is in the line of each, so the lines may add up to more than the "
    "total."
)


def report(arguments: argparse.Namespace) -> int:
    """Show what the requests cost that the arguments ask for."""
    filters = Filters.of(arguments)
    by: str = arguments.by
    try:
        groups, total, booked = asyncio.run(_read(arguments.ledger, by, filters))
        nothing = _nothing(arguments.ledger, filters, booked) if not groups else None
    except LedgerNotFoundError as error:
        groups, total, nothing = (), Totals(), str(error)
    if arguments.json:
        show([as_json(by, filters, groups, total)])
        if nothing is not None:
            sys.stderr.write(f"{nothing}\n")
    else:
        show(
            as_text(by, filters, groups, total, terminal_width()) if nothing is None else [nothing]
        )
    return 0


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
            [total] = merged(replace(group, key=None) for group in groups)
    return (
        tuple(
            groups
            if by == "day"
            else sorted(groups, key=lambda group: (-paid(group), -group.simulated_usd))
        ),
        total,
        0,
    )


def _nothing(url: str | None, filters: Filters, booked: int) -> str:
    if booked:
        others = f"{booked:,} others" if booked > 1 else "one other"
        return f"No request fits: {printable(str(filters))}. The ledger has {others}."
    if (url or ledger_url()) == MEMORY:
        return (
            f"A ledger in {MEMORY} ends with the process that writes it. Name a database with "
            "--ledger."
        )
    return "The ledger has no entries yet."


def paid(totals: Totals) -> Decimal:
    """Real money: without what an offline model only simulated."""
    return EXACT.subtract(totals.cost_usd, totals.simulated_usd)


def as_json(by: str, filters: Filters, groups: Sequence[Totals], total: Totals) -> str:
    """Amounts as strings, exact; `cost_usd` includes what was simulated, `paid_usd` does not."""
    found = {
        "by": by,
        "filters": filters.as_json(),
        "currency": "USD",
        "groups": [{"key": group.key} | _json_of(group) for group in groups],
        "total": _json_of(total),
    }
    return json.dumps(found, indent=2, ensure_ascii=True)


def _json_of(totals: Totals) -> dict[str, Any]:
    return {
        **{name: getattr(totals, name) for name in COUNTS},
        "share_priced": totals.share_priced,
        "tokens": asdict(totals.tokens),
        "paid_usd": exact(paid(totals)),
        **{name: exact(getattr(totals, name)) for name in AMOUNTS},
    }


def exact(usd: Decimal) -> str:
    """An amount in plain digits, without zeros at its end."""
    return f"{usd.normalize(EXACT):f}"


def as_text(
    by: str, filters: Filters, groups: Sequence[Totals], total: Totals, width: int | None
) -> Iterator[str]:
    """A title, the table with its total, and what must be known to read it."""
    group = f"tag {by.removeprefix('tag:')}" if by.startswith("tag:") else by.replace("_", " ")
    title = f"Costs by {group}: {filters or 'all requests in the ledger'}"
    yield from prose(printable(title), width)
    yield ""
    real = paid(total) != 0 or not total.simulated
    weights = [paid(group) if real else group.simulated_usd for group in groups]
    whole = paid(total) if real else total.simulated_usd
    columns = list(_columns(by, groups, total))
    if whole > 0 and len(groups) > 1:
        shares = [_share(weight, whole) for weight in weights]
        columns.append(Column("share" if real else "simulated share", shares, "", rank=4))
    lines, left_out = table(
        columns, width=width, bars=lengths(weights) if whole > 0 and len(groups) > 1 else ()
    )
    yield from lines
    yield ""
    for remark in _remarks(by, total, left_out):
        yield from prose(remark, width)


def _columns(by: str, groups: Sequence[Totals], total: Totals) -> Iterator[Column]:
    yield key_column(by, [group.key for group in groups])

    def count(heading: str, field: str, rank: int) -> Column:
        return Column.of_counts(
            heading, [getattr(group, field) for group in groups], getattr(total, field), rank=rank
        )

    yield count("requests", "requests", 1)
    for field, rank in (("unpriced", 5), ("unsettled", 5), ("refused", 6), ("replayed", 6)):
        if getattr(total, field):
            yield count(field, field, rank)
    for heading, field in (("input tokens", "input_tokens"), ("output tokens", "output_tokens")):
        values = [getattr(group.tokens, field) for group in groups]
        yield Column.of_counts(heading, values, getattr(total.tokens, field), rank=7)
    real, simulated = [paid(group) for group in groups], [group.simulated_usd for group in groups]
    places = places_of([*real, paid(total), *simulated, total.simulated_usd])
    if total.simulated:
        yield Column.of_amounts(
            "simulated USD", simulated, total.simulated_usd, places=places, rank=2
        )
    yield Column.of_amounts("USD", real, paid(total), places=places)


def key_column(by: str, keys: Sequence[str | None]) -> Column:
    """What the requests of each line have in common."""
    name = printable(by.removeprefix("tag:")) if by.startswith("tag:") else by.replace("_", " ")
    cells = [f"(no {name})" if key is None else printable(key) for key in keys]
    # A run's id is of use only as a whole.
    shortest = 36 if by in ("run", "run_key") else 28
    return Column(_HEADINGS.get(by, name), cells, "total", left=True, shortest=shortest)


def _share(weight: Decimal, whole: Decimal) -> str:
    return f"{float(weight / whole) * 100:.1f} %"


def _remarks(by: str, total: Totals, left_out: Sequence[str]) -> Iterator[str]:
    if by == "tag":
        yield SEVERAL_TAGS
    if total.simulated:
        yield (
            f"SIMULATED: {total.simulated:,} of {_requests(total.requests)} were answered by an "
            f"offline model. What they would have cost, {exact(total.simulated_usd)} USD, was not "
            "paid and is not in the column USD."
        )
    yield from _unknown(total)
    if total.refused:
        yield f"{_requests(total.refused)} refused by the provider, which bills nothing for them."
    if total.replayed:
        yield (
            f"{_requests(total.replayed)} answered from a record instead of being sent again; "
            f"{exact(total.replayed_usd)} USD saved."
        )
    if left_out:
        yield no_room_for(left_out)


def no_room_for(headings: Sequence[str]) -> str:
    """That a table lacks some columns."""
    return (
        f"No room here for: {', '.join(headings)}. A wider terminal shows them, and --json has all."
    )


def _unknown(total: Totals) -> Iterator[str]:
    share = total.share_priced
    if share is None or share == 1:
        return
    yield (
        f"PRICED: {percent(share)} of the requests that count as spend. The rest may have cost "
        "more than is shown:"
    )
    if total.unpriced:
        yield f"- {_requests(total.unpriced)} answered by a model without a known price."
    if total.unsettled:
        bound = (
            f"At most {exact(total.upper_bound_usd)} USD together, as far as a bound is known; "
            "what is known to be spent of it is in the total."
            if total.upper_bound_usd
            else "No upper bound is known."
        )
        yield (
            f"- {_requests(total.unsettled)} unsettled: sent, and no outcome seen, or still under "
            f"way. {bound}"
        )


def _requests(number: int) -> str:
    return f"{number:,} request" + ("" if number == 1 else "s")
