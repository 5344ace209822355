"""When a standing budget will be reached, if its window goes on as it began."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from ..pricing.money import EXACT

if TYPE_CHECKING:
    from .standing import BudgetState


def reached_at(state: BudgetState, now: datetime) -> datetime | None:
    """When a budget will be reached at the present pace of its window.

    What is unknown counts as spent, what is held does not.

    Args:
        now: Within the window.

    Returns:
        `now` if it is reached already; None: not within the window, or it has no window to tell a
        pace from (`total`).
    """
    used = EXACT.add(state.spent, state.unknown)
    remaining = EXACT.subtract(state.budget.usd, used)
    if remaining <= 0:
        return now
    if state.budget.window == "total" or not used:
        return None
    # Compared as numbers of seconds: at a slow pace, the moment lies beyond all dates.
    elapsed = Decimal((now - state.since).total_seconds())
    seconds = elapsed * remaining / used
    if seconds >= Decimal((state.until - now).total_seconds()):
        return None
    return now + timedelta(seconds=float(seconds))
