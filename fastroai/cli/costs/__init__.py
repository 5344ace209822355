"""`fastroai costs`: sums of the ledger, comparison with invoices, and other prices."""

from __future__ import annotations

from cyclopts import App

from ..parsing import TIME_FORMS
from .report import report

_TIMES = (
    f"Times are UTC unless they name their zone: {TIME_FORMS}. A day means its start, so "
    "--since yesterday --until today is yesterday."
)

costs = App(name="costs", help_format="markdown", help_epilogue=_TIMES)
costs.default(report)
# By their paths: the report needs no prices.
for _name, _path, _help in (
    (
        "reconcile",
        "reconcile:reconcile_invoice",
        "Compare the ledger with a provider's invoice.\n\n"
        "Lists ledger entries and invoice lines without a partner, and partners that differ. An "
        "export of OpenAI, Anthropic or OpenRouter whose lines are sums, by day and model, is "
        "compared sum by sum. Simulated, refused and replayed requests are ignored. Without "
        "--since and --until, the days are compared that the invoice covers. Exits with 0 when "
        "the books balance, with 3 when they don't.",
    ),
    (
        "what-if",
        "what_if:price_otherwise",
        "Price recorded requests on another model or service tier.\n\n"
        "One by one, at list prices. The tokens are taken as recorded; another model would count "
        "and write other ones.",
    ),
    (
        "archive",
        "archive:archive",
        "Move old entries of the ledger to files. All sums stay as they are.\n\n"
        "Requests without a final outcome stay. The files are written whole before anything is "
        "removed; interrupted, the command goes on when it is called again. Entries that were "
        "moved are not listed or compared with invoices any more.",
    ),
    (
        "export",
        "export:export",
        "Write charges as rows of FOCUS, the open format of cost and usage.\n\n"
        "A row for each day and each group of requests that have pipeline, step, deployment, model "
        "and tags in common. What was simulated, refused or replayed is not billed, and left out.",
    ),
    (
        "reprice",
        "reprice:check_recorded_prices",
        "Check recorded prices against the price list that is installed.\n\n"
        "Each request is priced again as of when it was sent. Nothing is changed: a ledger says "
        "what was known. Requests priced by an own rate or by a bill that the answer stated are "
        "not checked, nor those without an outcome. Exits with 0 when no price differs, with 3 "
        "when some do.",
    ),
):
    costs.command(f"{__name__}.{_path}", name=_name, help=_help)
