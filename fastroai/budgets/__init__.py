"""Budgets: limits of spend that hold, checked before every model request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names
from .account import Account, Charge, Kind, Verdict, charge_of
from .budget import AtLimit, Budget, Strength, budgets_given
from .run_limits import Limit, RunLimits
from .signals import BudgetSignal, listen
from .windows import Window

if TYPE_CHECKING:
    from .standing import Budgets, BudgetState, UnknownBudgetError
else:
    # A run without a ledger needs no SQLAlchemy.
    __getattr__, __dir__ = lazy_names(
        __name__, {".standing": "Budgets BudgetState UnknownBudgetError"}
    )

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
