"""Recorded requests at other prices, on a terminal."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

from ...errors import LedgerNotFoundError
from ...ledger.aggregation import grouping
from ...ledger.entries import LedgerEntry
from ...ledger.ledger import Ledger
from ...ledger.repricing import Repriced, WhatIf, what_if
from ...pricing.money import EXACT
from ..exit_codes import FAILED, UsageError
from ..parsing import moment
from ..rendering.table import (
    Column,
    lengths,
    places_of,
    printable,
    prose,
    show,
    table,
    terminal_width,
)
from .report import SEVERAL_TAGS, exact, key_column, no_room_for
from .selection import Filters

_MOST_REASONS = 5


@dataclass(frozen=True, slots=True)
class Compared:
    """Requests with something in common, whose cost is known both ways."""

    key: str | None
    requests: int
    recorded_usd: Decimal
    usd: Decimal

    @property
    def difference_usd(self) -> Decimal:
        """More than 0: it would have cost more."""
        return EXACT.subtract(self.usd, self.recorded_usd)

    @classmethod
    def of(cls, key: str | None, requests: Sequence[Repriced]) -> Compared:
        """Their exact sums."""
        with localcontext(EXACT):
            return cls(
                key,
                len(requests),
                sum((r.entry.cost_usd or Decimal(0) for r in requests), Decimal(0)),
                sum((r.usd or Decimal(0) for r in requests), Decimal(0)),
            )


def price_otherwise(arguments: argparse.Namespace) -> int:
    """Show what recorded requests would have cost; 1 when that can't be said of any."""
    if arguments.other_model is None and arguments.tier is None:
        raise UsageError(
            "What should be different? Give --model provider:model, or --tier, or both."
        )
    filters = Filters.of(arguments)
    at = None if arguments.at is None else moment("--at", arguments.at)
    try:
        entries = asyncio.run(_entries(arguments.ledger, filters))
        nothing = (
            "No request that cost something "
            f"fits{f': {printable(str(filters))}' if filters else ''}."
        )
    except LedgerNotFoundError as error:
        entries, nothing = [], str(error)
    found = what_if(entries, arguments.other_model, service_tier=arguments.tier, at=at)
    groups = _grouped(found.compared, arguments.by)
    if arguments.json:
        show([_as_json(found, arguments.by, filters, groups)])
        if not found.requests:
            sys.stderr.write(f"{nothing}\n")
    else:
        show(
            _as_text(found, arguments.by, filters, groups, terminal_width())
            if found.requests
            else [nothing]
        )
    return FAILED if found.requests and not found.compared else 0


async def _entries(url: str | None, filters: Filters) -> list[LedgerEntry]:
    async with Ledger.open(url, create=False) as ledger:
        return await ledger.entries(**filters.as_arguments())


def _grouped(requests: Sequence[Repriced], by: str) -> list[Compared]:
    keys = grouping(by)
    groups: dict[str | None, list[Repriced]] = {}
    for request in requests:
        for key in keys(request.entry):
            groups.setdefault(key, []).append(request)
    found = [Compared.of(key, group) for key, group in groups.items()]
    if by == "day":
        return sorted(found, key=lambda group: group.key or "")
    return sorted(
        found, key=lambda group: (-group.recorded_usd, group.key is None, group.key or "")
    )


def _reasons(found: WhatIf) -> list[tuple[str, int]]:
    told = (
        r.reason if r.usd is None else "Its recorded cost is not known." for r in found.left_out
    )
    return Counter(told).most_common()


def _as_json(found: WhatIf, by: str, filters: Filters, groups: Sequence[Compared]) -> str:
    total = Compared.of(None, found.compared)

    def of(group: Compared) -> dict[str, object]:
        return {
            "requests": group.requests,
            "recorded_usd": exact(group.recorded_usd),
            "usd": exact(group.usd),
            "difference_usd": exact(group.difference_usd),
        }

    said = {
        "model": found.model,
        "service_tier": found.service_tier,
        "by": by,
        "filters": filters.as_json(),
        "currency": "USD",
        "groups": [{"key": group.key} | of(group) for group in groups],
        "total": of(total),
        "simulated": sum(r.entry.simulated for r in found.compared),
        "left_out": [{"reason": reason, "requests": number} for reason, number in _reasons(found)],
    }
    return json.dumps(said, indent=2)


def _as_text(
    found: WhatIf, by: str, filters: Filters, groups: Sequence[Compared], width: int | None
) -> Iterator[str]:
    other = " at tier ".join(
        part for part in (found.model or "the recorded models", found.service_tier) if part
    )
    asked = filters or "all requests in the ledger"
    yield from prose(printable(f"What they would have cost on {other}: {asked}"), width)
    yield ""
    left_out: tuple[str, ...] = ()
    if groups:
        lines, left_out = _table(by, groups, Compared.of(None, found.compared), width)
        yield from [*lines, ""]
    for remark in _remarks(found, by):
        yield from prose(remark, width)
    if left_out:
        yield from prose(no_room_for(left_out), width)


def _table(
    by: str, groups: Sequence[Compared], total: Compared, width: int | None
) -> tuple[list[str], tuple[str, ...]]:
    columns = [
        key_column(by, [group.key for group in groups]),
        Column.of_counts("requests", [group.requests for group in groups], total.requests, rank=2),
    ]
    money = {"recorded USD": "recorded_usd", "would be USD": "usd", "difference": "difference_usd"}
    places = places_of(
        getattr(group, field) for group in (*groups, total) for field in money.values()
    )
    for heading, field in money.items():
        values, rank = (
            [getattr(group, field) for group in groups],
            3 if field == "difference_usd" else 0,
        )
        columns.append(
            Column.of_amounts(heading, values, getattr(total, field), places=places, rank=rank)
        )
    columns.append(Column("change", [_change(group) for group in groups], _change(total), rank=1))
    bars = lengths([group.usd for group in groups]) if len(groups) > 1 else ()
    return table(columns, width=width, bars=bars)


def _change(group: Compared) -> str:
    if not group.recorded_usd:
        return "-"
    return f"{float(group.difference_usd / group.recorded_usd) * 100:+.1f} %"


def _remarks(found: WhatIf, by: str) -> Iterator[str]:
    yield (
        "The tokens are those recorded; another model would count and write other ones. Prices are "
        "list prices."
    )
    if by == "tag" and found.compared:
        yield SEVERAL_TAGS
    simulated = [r for r in found.compared if r.entry.simulated]
    if simulated:
        sums = Compared.of(None, simulated)
        yield (
            f"SIMULATED: {len(simulated):,} of {len(found.compared):,} were answered by an offline "
            f"model; the {exact(sums.recorded_usd)} USD recorded for them was not paid."
        )
    if found.left_out:
        reasons = _reasons(found)
        yield f"LEFT OUT: {len(found.left_out):,} of {len(found.requests):,} can't be compared."
        for reason, number in reasons[:_MOST_REASONS]:
            yield printable(f"- {number:,}: {reason}")
        if len(reasons) > _MOST_REASONS:
            yield f"- and for {len(reasons) - _MOST_REASONS} other reasons; --json has them all."
