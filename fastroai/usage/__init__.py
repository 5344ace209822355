"""Money: what requests cost, and the ledger they are booked in."""

from .books import Ledger
from .calculator import CostCalculator
from .ledger import EntryState, LedgerEntry
from .pricing import Price
from .totals import Totals

__all__ = ["CostCalculator", "EntryState", "Ledger", "LedgerEntry", "Price", "Totals"]
