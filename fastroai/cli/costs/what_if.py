"""`fastroai costs what-if`: recorded requests at other prices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from ...ledger.aggregation import GroupKey, dimensions_of, grouping, in_order
from ...ledger.repricing import Repriced, WhatIf, what_if
from ...pricing.calculator import CostCalculator
from ...pricing.money import EXACT
from ..exit_codes import FAILED, UsageError
from ..parsing import moment
from ..rendering.console import console, printable, prose
from ..rendering.tables import Amount, Cell, Column, exact, print_table
from .filters import ALL_RECORDED, CONFIGURED, By, Filters, RecordedFilters, Source
from .keys import SEVERAL_TAGS, key_cells, key_columns, key_json, total_cells
from .recorded import read_recorded
from .report import publish, show_remarks

_MOST_REASONS = 5

Groups = dict[GroupKey, WhatIf]


def price_otherwise(
    *,
    model: str | None = None,
    tier: str | None = None,
    at: Annotated[datetime | None, Parameter(converter=moment)] = None,
    by: By = "pipeline",
    filters: RecordedFilters = ALL_RECORDED,
    source: Source = CONFIGURED,
) -> int:
    """Price recorded requests on another model or service tier.

    Args:
        model: The other model, PROVIDER:MODEL; default: as recorded.
        tier: The other service tier: flex, priority, default, batch, …
        at: Price as of this time; default: as of when each request was sent.
        by: As in `fastroai costs`; several with commas.
    """
    if model is None and tier is None:
        raise UsageError("Specify --model PROVIDER:MODEL, --tier TIER, or both.")
    asked = f": {printable(str(filters))}" if filters else ""
    prices = CostCalculator()
    check_tier(tier, prices)
    recorded = asyncio.run(read_recorded(source.ledger, filters))
    found = what_if(recorded.entries, model, service_tier=tier, at=at, calculator=prices)
    groups = grouped(found, by)
    content = _as_json(found, by, filters, groups) | recorded.as_json()
    if not found.requests:
        nothing = f"No request with a cost matches{asked}."
        publish(source, content, "\n".join([nothing, *recorded.remarks()]))
        return 0
    remarks = [*remarks_on(found, by), *recorded.remarks()]
    publish(source, content, lambda: _show(console(), found, by, filters, groups, remarks))
    return 0 if found.compared else FAILED


def check_tier(tier: str | None, prices: CostCalculator) -> None:
    """Refuse a name that would be priced as the standard tier because nobody knows it."""
    known = prices.service_tiers()
    if tier is not None and tier not in known:
        raise UsageError(
            f"--tier {tier!r} is not a known service tier. Known: {', '.join(sorted(known))}."
        )


def grouped(found: WhatIf, by: str) -> Groups:
    """The compared requests by what they have in common, the largest recorded cost first."""
    keys = grouping(by)
    requests: dict[GroupKey, list[Repriced]] = {}
    for request in found.compared:
        for key in keys(request.entry):
            requests.setdefault(key, []).append(request)
    groups = {
        key: WhatIf(found.model, found.service_tier, tuple(requests[key]))
        for key in in_order(requests)
    }
    if "day" in dimensions_of(by):
        return groups
    return dict(sorted(groups.items(), key=lambda group: -group[1].recorded_usd))


def difference_of(group: WhatIf) -> Decimal:
    """More than 0: it would have cost more."""
    return EXACT.subtract(group.usd, group.recorded_usd)


def reasons_of(found: WhatIf) -> list[tuple[str, int]]:
    """Why requests are left out, the most frequent first."""
    told = (
        r.reason if r.usd is None else "Its recorded cost is not known." for r in found.left_out
    )
    return Counter(told).most_common()


def _as_json(found: WhatIf, by: str, filters: Filters, groups: Groups) -> dict[str, object]:
    return {
        "model": found.model,
        "service_tier": found.service_tier,
        "by": by,
        "filters": filters.as_json(),
        "currency": "USD",
        "groups": [key_json(by, key) | group_json(group) for key, group in groups.items()],
        "total": group_json(found),
        "simulated": sum(r.entry.simulated for r in found.compared),
        "left_out": [
            {"reason": reason, "requests": number} for reason, number in reasons_of(found)
        ],
    }


def group_json(group: WhatIf) -> dict[str, object]:
    """A row of the comparison."""
    return {
        "requests": len(group.compared),
        "recorded_usd": exact(group.recorded_usd),
        "usd": exact(group.usd),
        "difference_usd": exact(difference_of(group)),
    }


def _show(
    out: Console,
    found: WhatIf,
    by: str,
    filters: Filters,
    groups: Groups,
    remarks: Sequence[str],
) -> None:
    other = found.model or "the recorded models"
    if found.service_tier:
        other += f" at tier {found.service_tier}"
    asked = filters or "all requests in the ledger"
    prose(out, f"What they would have cost on {other}: {asked}")
    out.print()
    left_out: tuple[str, ...] = ()
    if groups:
        left_out = _print_groups(out, by, groups, found)
        out.print()
    show_remarks(out, remarks, left_out)


def _print_groups(out: Console, by: str, groups: Groups, total: WhatIf) -> tuple[str, ...]:
    columns = [
        *key_columns(by),
        Column("requests", rank=2),
        Column("recorded USD"),
        Column("would be USD"),
        Column("difference", rank=3),
        Column("change", rank=1),
    ]
    rows = [(*key_cells(by, key), *measures_of(group)) for key, group in groups.items()]
    bars = [group.usd for group in groups.values()] if len(groups) > 1 else ()
    return print_table(out, columns, rows, total=(*total_cells(by), *measures_of(total)), bars=bars)


def measures_of(group: WhatIf) -> tuple[Cell, ...]:
    """The cells of a row."""
    difference = difference_of(group)
    change = "-"
    if group.recorded_usd:
        change = f"{float(difference / group.recorded_usd) * 100:+.1f} %"
    recorded, priced = Amount(group.recorded_usd), Amount(group.usd)
    return len(group.compared), recorded, priced, Amount(difference), change


def remarks_on(found: WhatIf, by: str) -> Iterator[str]:
    """What must be known to read the table."""
    yield (
        "The tokens are those recorded; another model would count and write other ones. Prices are "
        "list prices."
    )
    if "tag" in dimensions_of(by) and found.compared:
        yield SEVERAL_TAGS
    simulated = tuple(r for r in found.compared if r.entry.simulated)
    if simulated:
        recorded = WhatIf(found.model, found.service_tier, simulated).recorded_usd
        yield (
            f"SIMULATED: {len(simulated):,} of {len(found.compared):,} were answered by an offline "
            f"model; the {exact(recorded)} USD recorded for them was not paid."
        )
    if not found.left_out:
        return
    yield f"LEFT OUT: {len(found.left_out):,} of {len(found.requests):,} can't be compared."
    yield from _described(reasons_of(found))


def _described(reasons: Sequence[tuple[str, int]]) -> Iterator[str]:
    for reason, number in reasons[:_MOST_REASONS]:
        yield f"- {number:,}: {reason}"
    if len(reasons) > _MOST_REASONS:
        yield f"- and for {len(reasons) - _MOST_REASONS} other reasons; --json has them all."
