"""Costs of requests, and the ledger in which they are booked."""

from typing import TYPE_CHECKING, Any

from ..ledger.entries import EntryState, LedgerEntry
from ..pricing.calculator import CostCalculator
from ..pricing.price_list import Price

if TYPE_CHECKING:
    from ..ledger.aggregation import Totals
    from ..ledger.ledger import Ledger

__all__ = ["CostCalculator", "EntryState", "Ledger", "LedgerEntry", "Price", "Totals"]


def __getattr__(name: str) -> Any:
    # What reads a ledger is imported when it is asked for: a run does not need it.
    if name == "Ledger":
        from ..ledger.ledger import Ledger

        return Ledger
    if name == "Totals":
        from ..ledger.aggregation import Totals

        return Totals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
