"""`fastroai costs`: sums of the ledger, comparison with invoices, and other prices."""

from __future__ import annotations

from cyclopts import App

from ..parsing import TIME_FORMS
from .archive import archive
from .reconcile import reconcile_invoice
from .report import report
from .reprice import check_recorded_prices
from .what_if import price_otherwise

_TIMES = (
    f"Times are UTC unless they name their zone: {TIME_FORMS}. A day means its start, so "
    "--since yesterday --until today is yesterday."
)

costs = App(name="costs", help_epilogue=_TIMES)
costs.default(report)
costs.command(reconcile_invoice, name="reconcile")
costs.command(price_otherwise, name="what-if")
costs.command(archive, name="archive")
costs.command(check_recorded_prices, name="reprice")
