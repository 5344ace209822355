"""What budgets tell of themselves while requests are booked: shares that are reached, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from ..ledger.entries import Attribution
from ..pricing.money import EXACT
from .account import Account
from .budget import AtLimit, Budget

logger = logging.getLogger("fastroai.usage")

Scope = Literal["step", "run", "standing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSignal:
    """Something about a budget that somebody may want to hear of.

    Attributes:
        kind: `warning`: a share of the limit is reached. `exceeded`: a request was refused.
        scope: Whose budget it is.
        budget: The budget.
        name: Its name; of a step's or a run's without one, the step's id or the pipeline's name.
        spent: USD, like `held` and `unknown`, at that moment.
        share: The share of `warn_at` that is reached, for a warning.
        at: Whom the request was booked to, or was to be, with which this came.
    """

    kind: Literal["warning", "exceeded"]
    scope: Scope
    budget: Budget
    name: str
    spent: Decimal
    held: Decimal
    unknown: Decimal
    share: Decimal | None = None
    at: Attribution

    @property
    def at_limit(self) -> AtLimit:
        """What becomes of requests at the limit."""
        return self.budget.at_limit


Listener = Callable[[BudgetSignal], object]

_listeners: list[Listener] = []
"""Of the process, as whoever sends events is."""


def listen(listener: Listener) -> Callable[[], None]:
    """Have a function called with each signal, in whatever thread it comes up; it must not block.

    Returns:
        Ends that.
    """
    _listeners.append(listener)

    def leave() -> None:
        with suppress(ValueError):
            _listeners.remove(listener)

    return leave


def emit(signal: BudgetSignal) -> None:
    """Tell all who listen; what they raise is logged, as no request fails for them."""
    for listener in list(_listeners):
        try:
            listener(signal)
        except Exception:
            logger.exception("A listener to budgets failed.")


def share_reached(budget: Budget, before: Decimal, account: Account) -> Decimal | None:
    """The highest share worth a warning that was reached by what an account has more than
    before.
    """
    now = account.settled
    for share in reversed(budget.warn_at):
        mark = EXACT.multiply(budget.usd, share)
        if before < mark <= now:
            return share
    return None
