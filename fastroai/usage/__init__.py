"""Costs of requests, and the ledger in which they are booked."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..ledger.aggregation import Totals
    from ..ledger.entries import EntryState, LedgerEntry
    from ..ledger.ledger import Ledger
    from ..pricing.calculator import CostCalculator
    from ..pricing.price_list import Price
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "..ledger.aggregation": "Totals",
            "..ledger.entries": "EntryState LedgerEntry",
            "..ledger.ledger": "Ledger",
            "..pricing.calculator": "CostCalculator",
            "..pricing.price_list": "Price",
        },
    )

__all__ = ["CostCalculator", "EntryState", "Ledger", "LedgerEntry", "Price", "Totals"]
