"""Money: what requests cost, and the ledger they are booked in."""

from typing import TYPE_CHECKING, Any

from .calculator import CostCalculator
from .ledger import EntryState, LedgerEntry
from .pricing import Price

if TYPE_CHECKING:
    from .books import Ledger
    from .totals import Totals

__all__ = ["CostCalculator", "EntryState", "Ledger", "LedgerEntry", "Price", "Totals"]


def __getattr__(name: str) -> Any:
    # What reads a ledger is imported when it is asked for: a run does not need it.
    if name == "Ledger":
        from .books import Ledger

        return Ledger
    if name == "Totals":
        from .totals import Totals

        return Totals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
