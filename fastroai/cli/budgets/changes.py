"""`fastroai budgets set`, `raise` and `remove`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from ...budgets.budget import AtLimit, Strength, amount
from ...budgets.standing import Budgets, BudgetState
from ...budgets.windows import Window
from ..costs.filters import CONFIGURED, Source
from ..exit_codes import as_wrong_usage
from .listing import show_states
from .opened import defined, opened

# A hyphen in front is no option: the message says what is wrong with a negative amount.
Name = Annotated[str, Parameter(name="NAME", allow_leading_hyphen=True)]
Usd = Annotated[str, Parameter(name="USD", allow_leading_hyphen=True)]


def set_budget(
    name: Name,
    usd: Usd,
    /,
    *,
    window: Window = "total",
    zone: str = "UTC",
    pipeline: str | None = None,
    deployment: str | None = None,
    tag: str | None = None,
    model: str | None = None,
    strength: Strength = "settled",
    at_limit: AtLimit = "fail",
    warn_at: Sequence[str] = ("0.8",),
    max_request_usd: str | None = None,
    source: Source = CONFIGURED,
) -> None:
    """Set a standing budget, or replace the one of this name.

    Args:
        name: By which it is changed, and named in messages.
        usd: The limit, exact.
        window: In which spend adds up; default: total.
        zone: IANA name of the time zone in which days begin; default: UTC.
        pipeline: Only requests of this pipeline.
        deployment: Only those of this deployment, FLOW/DEPLOYMENT.
        tag: Only those with this tag, NAME=VALUE; NAME alone for any value.
        model: Only those to this model, as it is asked for.
        strength: settled, the default, sends while the limit is not reached; reserved only what
            fits at its highest possible cost.
        at_limit: What becomes of a request that does not fit; default: fail.
        warn_at: A share of the limit that is worth a warning; default: 0.8. Repeatable.
        max_request_usd: What a request is held to cost at most where that can't be told.
    """
    given = {
        "name": name,
        "usd": usd,
        "window": window,
        "zone": zone,
        "pipeline": pipeline,
        "deployment": deployment,
        "tag": tag,
        "model": model,
        "strength": strength,
        "at_limit": at_limit,
        "warn_at": tuple(warn_at),
        "max_request_usd": max_request_usd,
    }
    budget = defined({name: value for name, value in given.items() if value is not None})

    async def change() -> BudgetState:
        async with Budgets.open(source.ledger) as budgets:
            return await budgets.set(budget)

    show_states([asyncio.run(change())], source)


def raise_budget(name: Name, usd: Usd, /, *, source: Source = CONFIGURED) -> None:
    """Give a standing budget another limit, higher or lower.

    Args:
        name: Of the budget.
        usd: The new limit, not what is added to it.
    """
    with as_wrong_usage():
        limit = amount("usd", usd)

    async def change() -> BudgetState:
        async with opened(source.ledger) as budgets:
            return await budgets.raise_to(name, limit)

    show_states([asyncio.run(change())], source)


def remove_budget(name: Name, /, *, source: Source = CONFIGURED) -> None:
    """Have a standing budget hold no longer.

    Args:
        name: Of the budget.
    """

    async def change() -> None:
        async with opened(source.ledger) as budgets:
            await budgets.remove(name)

    asyncio.run(change())
    said = json.dumps({"removed": name}) if source.json else f"Budget {name!r} is removed."
    sys.stdout.write(f"{said}\n")
