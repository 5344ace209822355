"""`fastroai costs`: what the ledger adds up to, beside an invoice, and at other prices."""

from __future__ import annotations

import argparse

from ...ledger.aggregation import GROUPINGS, grouping
from .selection import add_filters

GROUPED = f"{', '.join(GROUPINGS)}, or tag:NAME for the values of one tag"
TIMES = (
    "Times are UTC unless they name their zone: 2026-11-01, 2026-11-01T10:00Z, now, today, "
    "yesterday, or how long ago: 30m, 24h, 7d, 2w. A day means its start, so --since yesterday "
    "--until today is yesterday."
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fastroai costs` and its commands."""
    parser = commands.add_parser(
        "costs",
        help="show what the requests in the ledger cost",
        description=(
            "Show what the requests in the ledger cost: by pipeline, or as --by says. Amounts are "
            "exact USD."
        ),
        epilog=TIMES,
    )
    parser.add_argument(
        "--by",
        type=_grouping,
        default="pipeline",
        metavar="GROUP",
        help=f"{GROUPED}; default: pipeline",
    )
    add_filters(parser)
    parser.set_defaults(execute=_report)
    parts = parser.add_subparsers(metavar="COMMAND", title="commands")
    _register_reconcile(parts)
    _register_what_if(parts)


def _register_reconcile(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = parts.add_parser(
        "reconcile",
        help="compare the ledger with a provider's invoice",
        description=(
            "List ledger entries and invoice lines without a partner, and partners that differ. "
            "Simulated, refused and replayed requests are left aside. Without --since and --until, "
            "the days are compared that the invoice is for. Exits with 0 when the books balance, 3 "
            "when they don't."
        ),
        epilog=TIMES,
    )
    parser.add_argument(
        "invoice", metavar="INVOICE.csv", help="CSV with a line of column names; - is stdin"
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help=(
            "what the invoice calls response_id, model, at, input_tokens, output_tokens or "
            "cost_usd, where that is not found by itself; may be given several times"
        ),
    )
    parser.add_argument(
        "--provider", help="whose invoice it is, for example openai; default: all requests"
    )
    parser.add_argument(
        "--tolerance",
        default="5m",
        metavar="DURATION",
        help="how far apart in time the same request may be on both sides; default: 5m",
    )
    add_filters(parser, inherits=True)
    parser.set_defaults(execute=_reconcile)


def _register_what_if(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = parts.add_parser(
        "what-if",
        help="price recorded requests on another model or service tier",
        description=(
            "Price recorded requests otherwise, one by one, at list prices. The tokens are taken "
            "as recorded; another model would count and write other ones."
        ),
        epilog=TIMES,
    )
    parser.add_argument(
        "--model",
        dest="other_model",
        metavar="PROVIDER:MODEL",
        help="the other model; default: the recorded ones",
    )
    parser.add_argument(
        "--tier", metavar="TIER", help="the other service tier: flex, priority, default, batch …"
    )
    parser.add_argument(
        "--at", metavar="TIME", help="price as of this time; default: as of when each was sent"
    )
    parser.add_argument(
        "--by",
        type=_grouping,
        default=argparse.SUPPRESS,
        metavar="GROUP",
        help="as in fastroai costs",
    )
    add_filters(parser, inherits=True, model_option="--recorded-model")
    parser.set_defaults(execute=_what_if)


def _grouping(text: str) -> str:
    try:
        grouping(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _report(arguments: argparse.Namespace) -> int:
    from .report import report

    return report(arguments)


def _reconcile(arguments: argparse.Namespace) -> int:
    from .reconcile import reconcile_invoice

    return reconcile_invoice(arguments)


def _what_if(arguments: argparse.Namespace) -> int:
    from .what_if import price_otherwise

    return price_otherwise(arguments)
