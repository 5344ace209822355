"""Money: what requests cost, and the ledger they are booked in."""

from .calculator import CostCalculator
from .ledger import EntryState, LedgerEntry
from .pricing import Price

__all__ = ["CostCalculator", "EntryState", "LedgerEntry", "Price"]
