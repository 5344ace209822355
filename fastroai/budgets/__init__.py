"""Budgets: limits of spend that hold, checked before every model request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .account import Account, Charge, Kind, Verdict, charge_of
from .budget import AtLimit, Budget, Strength, budgets_given
from .run_limits import Limit, RunLimits
from .signals import BudgetSignal, listen
from .windows import Window

if TYPE_CHECKING:
    from .standing import Budgets, BudgetState, UnknownBudgetError

__all__ = [
    "Account",
    "AtLimit",
    "Budget",
    "BudgetSignal",
    "BudgetState",
    "Budgets",
    "Charge",
    "Kind",
    "Limit",
    "RunLimits",
    "Strength",
    "UnknownBudgetError",
    "Verdict",
    "Window",
    "budgets_given",
    "charge_of",
    "listen",
]


def __getattr__(name: str) -> Any:
    # Only when asked for: a run without a ledger needs no SQLAlchemy.
    if name in ("Budgets", "BudgetState", "UnknownBudgetError"):
        from . import standing

        return getattr(standing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
