"""`fastroai budgets list`: standing budgets, what is left of them, and for how long."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from ...budgets.budget import SCOPES, Budget, to_json
from ...budgets.burn_down import reached_at
from ...budgets.standing import BudgetState
from ..costs.filters import CONFIGURED, Source
from ..rendering.console import console, write_json
from ..rendering.tables import Amount, Cell, Column, exact, print_table
from .opened import opened

_COLUMNS = (
    Column("budget", shortest=8),
    Column("scope", shortest=12, rank=1),
    Column("window", shortest=16, rank=2),
    Column("strength", shortest=8, rank=5),
    Column("at limit", shortest=4, rank=5),
    Column("limit USD"),
    Column("spent"),
    Column("held", rank=4),
    Column("unknown", rank=3),
    Column("left"),
    Column("at this pace", shortest=12, rank=1),
)


def list_budgets(*, source: Source = CONFIGURED) -> None:
    """List standing budgets, what is left of them, and when they will be reached."""
    show_states(asyncio.run(_read(source.ledger)), source)


async def _read(url: str | None) -> list[BudgetState]:
    async with opened(url) as budgets:
        return await budgets.list()


def show_states(states: Sequence[BudgetState], source: Source) -> None:
    """Write budgets as a table, or as JSON."""
    now = datetime.now(UTC)
    if source.json:
        write_json({"currency": "USD", "budgets": [state_json(state, now) for state in states]})
    elif states:
        print_table(console(), _COLUMNS, [row_of(state, now) for state in states])
    else:
        sys.stdout.write("No budgets are set. `fastroai budgets set NAME USD` sets one.\n")


def state_json(state: BudgetState, now: datetime) -> dict[str, object]:
    """A budget's definition, and what there is of it; exact amounts as strings, times in UTC."""
    reached = reached_at(state, now)
    return {
        **json.loads(to_json(state.budget)),
        "since": state.since.isoformat(),
        "until": state.until.isoformat(),
        "spent": exact(state.spent),
        "held": exact(state.held),
        "unknown": exact(state.unknown),
        "left": exact(state.left),
        "reached_at": reached and reached.isoformat(timespec="seconds"),
    }


def row_of(state: BudgetState, now: datetime) -> tuple[Cell, ...]:
    """A budget, for the table."""
    amounts = (state.budget.usd, state.spent, state.held, state.unknown, state.left)
    return (
        state.budget.name,
        scope_of(state.budget),
        window_of(state),
        state.budget.strength,
        state.budget.at_limit,
        *map(Amount, amounts),
        pace_of(state, now),
    )


def scope_of(budget: Budget) -> str:
    """What a budget is for, in words."""
    named = ((name, getattr(budget, name)) for name in SCOPES)
    return ", ".join(f"{name} {value}" for name, value in named if value is not None) or "all"


def window_of(state: BudgetState) -> str:
    """The window under way, in the time zone of the budget."""
    budget = state.budget
    if budget.window == "total":
        return "total"
    zone = ZoneInfo(budget.zone)
    since, until = (f"{at.astimezone(zone):%Y-%m-%d %H:%M}" for at in (state.since, state.until))
    return f"{budget.window}, {since} – {until} {budget.zone}"


def pace_of(state: BudgetState, now: datetime) -> str:
    """When a budget will be reached, in words."""
    reached = reached_at(state, now)
    if reached == now:
        return "reached"
    if state.budget.window == "total":
        return "-"
    if reached is None:
        return "not reached in this window"
    zone = ZoneInfo(state.budget.zone)
    return f"reached at {reached.astimezone(zone):%Y-%m-%d %H:%M}"
