"""`fastroai costs reprice`: recorded prices beside the price list that is installed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from rich.console import Console

from ...ledger.repricing import PriceCheck, Repriced, check_prices
from ...pricing.money import EXACT
from ..exit_codes import NOT_BALANCED, UsageError
from ..rendering.console import console, prose
from ..rendering.tables import Amount, Cell, Column, exact, print_table
from .filters import ALL, CONFIGURED, Filters, Source
from .recorded import read_recorded
from .report import publish

_COLUMNS = (
    Column("model", shortest=12),
    Column("recorded by", shortest=12, rank=1),
    Column("requests", rank=2),
    Column("recorded USD"),
    Column("would be USD"),
    Column("difference", rank=3),
)

Group = tuple[str, str]
"""A model, and the version of the list that priced it."""


def check_recorded_prices(
    *, check: bool = False, filters: Filters = ALL, source: Source = CONFIGURED
) -> int:
    """Check recorded prices against the price list that is installed.

    Args:
        check: Say what differs; nothing else can be done yet.
    """
    if not check:
        raise UsageError("reprice changes nothing: specify --check.")
    recorded = asyncio.run(read_recorded(source.ledger, filters))
    found = check_prices(recorded.entries)
    content = _as_json(found, filters) | recorded.as_json()
    publish(source, content, lambda: _show(console(), found, filters, recorded.remarks()))
    return NOT_BALANCED if found.differing else 0


def _groups(requests: Iterable[Repriced]) -> dict[Group, list[Repriced]]:
    groups: dict[Group, list[Repriced]] = {}
    for request in requests:
        entry = request.entry
        group = entry.model or "-", entry.price_version or "(unpriced)"
        groups.setdefault(group, []).append(request)
    return dict(sorted(groups.items()))


def _sums(requests: Iterable[Repriced]) -> tuple[Decimal, Decimal]:
    """What was recorded, and what it would be."""
    recorded = now = Decimal(0)
    for request in requests:
        recorded = EXACT.add(recorded, request.entry.cost_usd or Decimal(0))
        now = EXACT.add(now, request.usd or Decimal(0))
    return recorded, now


def _as_json(found: PriceCheck, filters: Filters) -> dict[str, object]:
    return {
        "filters": filters.as_json(),
        "currency": "USD",
        "current": found.current,
        "own": found.own,
        "same": found.same,
        "differing": [
            {
                "id": request.entry.id,
                "model": request.entry.model,
                "price_source": request.entry.price_source,
                "price_version": request.entry.price_version,
                "recorded_usd": _amount(request.entry.cost_usd),
                "usd": _amount(request.usd),
                "source": request.reason,
                "version": request.version,
            }
            for request in found.differing
        ],
        "unknown": dict(_reasons(found)),
        "total": dict(
            zip(("recorded_usd", "usd"), map(exact, _sums(found.differing)), strict=True)
        ),
    }


def _amount(usd: Decimal | None) -> str | None:
    return None if usd is None else exact(usd)


def _reasons(found: PriceCheck) -> list[tuple[str, int]]:
    return Counter(request.reason for request in found.unknown).most_common()


def _show(out: Console, found: PriceCheck, filters: Filters, remarks: Iterable[str] = ()) -> None:
    prose(out, f"Recorded prices beside the installed list: {filters or 'all requests'}")
    prose(out, f"{found.current:,} are from it, {found.same:,} are from earlier ones and agree.")
    if found.own:
        prose(out, f"{found.own:,} are own rates or stated bills, which no list changes.")
    for reason, number in _reasons(found):
        prose(out, f"{number:,} can't be checked: {reason}")
    if found.differing:
        prose(out, f"\nPrices that differ: {len(found.differing):,}\n")
        rows = [(*group, *_measures(those)) for group, those in _groups(found.differing).items()]
        print_table(out, _COLUMNS, rows, total=("total", "", *_measures(found.differing)))
    else:
        prose(out, "\nNo price differs.")
    out.file.writelines(f"{remark}\n" for remark in remarks)


def _measures(requests: Iterable[Repriced]) -> tuple[Cell, ...]:
    those = list(requests)
    recorded, now = _sums(those)
    return len(those), Amount(recorded), Amount(now), Amount(EXACT.subtract(now, recorded))
