"""The ledger's sums as charges in the columns of FOCUS 1.2, the open format of cost and usage.

FinOps Open Cost and Usage Specification: https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from .aggregation import Grouping, Totals, deployment_key
from .entries import EntryState

VERSION = "1.2"
_PARTS = (
    "day", "pipeline", "deployment", "step_id", "agent", "model_asked", "model_answered",
    "provider", "tags", "flow_tags", "state", "simulated",
)  # fmt: skip
_STATES = (EntryState.CHARGED, EntryState.UNPRICED, EntryState.UNSETTLED)
_UNKNOWN = "unknown"

Value = str | int | Decimal | datetime | None
FocusRow = dict[str, Value]


def _key(*values: Any) -> tuple[tuple[str | None, ...]]:
    return (tuple(map(_as_text, values)),)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping | tuple):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return "yes" if value is True else "" if not value else str(value)


CHARGES = Grouping(_PARTS, _key)
"""What one row is of: a day, and all that its requests have in common but for their run."""


def focus_rows(charges: Iterable[Totals], billing_account: str | None = None) -> Iterator[FocusRow]:
    """A row for each sum by `CHARGES` that a provider bills: none of what was simulated, refused or
    replayed.

    What requests without a price, or without a known outcome, cost is not known: their costs are
    None, although FOCUS wants a number there. What of it is known is in `x_KnownCost`, which
    adds up to what the ledger says was paid.

    Args:
        billing_account: The account at the provider; None: the provider's name stands for it.
    """
    for totals in charges:
        at = dict(zip(_PARTS, totals.keys, strict=True))
        if at["state"] in _STATES and not at["simulated"]:
            yield _row(totals, at, billing_account)


def _row(totals: Totals, at: Mapping[str, str | None], billing_account: str | None) -> FocusRow:
    asked = at["model_asked"] or ""
    provider = at["provider"] or asked.partition(":")[0] or _UNKNOWN
    model = asked.rpartition(":")[2] or at["model_answered"] or _UNKNOWN
    day = datetime.fromisoformat(at["day"] or "").replace(tzinfo=UTC)
    is_known = at["state"] == EntryState.CHARGED
    cost = totals.cost_usd if is_known else None
    tokens = totals.tokens
    counted = Decimal(tokens.input_tokens + tokens.output_tokens)
    consumed = counted if counted or is_known else None
    unit = "Tokens" if consumed is not None else None
    return {
        "BilledCost": cost,
        "BillingAccountId": billing_account or provider,
        "BillingAccountName": None,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": (day.replace(day=1) + timedelta(days=32)).replace(day=1),
        "BillingPeriodStart": day.replace(day=1),
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{totals.sent} requests to {provider}:{model}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": day + timedelta(days=1),
        "ChargePeriodStart": day,
        "ConsumedQuantity": consumed,
        "ConsumedUnit": unit,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": provider,
        "ListCost": cost,
        "PricingCategory": "Standard",
        "PricingQuantity": consumed,
        "PricingUnit": unit,
        "ProviderName": provider,
        "PublisherName": provider,
        "ResourceId": f"{provider}:{model}",
        "ResourceName": at["model_answered"] or model,
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": f"{provider} API",
        "ServiceSubcategory": "Generative AI",
        "Tags": _tags_of(at),
        "x_Agent": at["agent"],
        "x_CacheReadTokens": tokens.cache_read_tokens,
        "x_CacheWriteTokens": tokens.cache_write_tokens,
        "x_Deployment": deployment_key(at["pipeline"], at["deployment"]),
        "x_InputTokens": tokens.input_tokens,
        "x_KnownCost": totals.cost_usd,
        "x_OutputTokens": tokens.output_tokens,
        "x_Pipeline": at["pipeline"],
        "x_Requests": totals.requests,
        "x_State": at["state"],
        "x_Step": at["step_id"],
    }


def _tags_of(at: Mapping[str, str | None]) -> str | None:
    """As a JSON object; a tag of a flow run has no value, which FOCUS writes as true."""
    tags: dict[str, str | bool] = dict.fromkeys(json.loads(at["flow_tags"] or "[]"), True)
    tags |= json.loads(at["tags"] or "{}")
    return json.dumps(tags, ensure_ascii=False, sort_keys=True) if tags else None


def write_focus_csv(file: IO[str], rows: Iterable[FocusRow]) -> int:
    """Write rows, and return how many; what is None is empty."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    number = 0
    for number, row in enumerate(rows, 1):  # noqa: B007  # counted
        writer.writerow({name: _in_csv(value) for name, value in row.items()})
    return number


def _in_csv(value: Value) -> Value:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value


def write_focus_parquet(path: Path, rows: Iterable[FocusRow]) -> int:
    """The same in Parquet, where pyarrow is installed.

    Raises:
        ImportError: It is not.
        ValueError: An amount has more than 24 decimal places.
    """
    import pyarrow  # type: ignore[import-not-found,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]

    numbers = pyarrow.decimal256(76, 24)
    found = list(rows)
    fields = [
        pyarrow.field(name, _type_of(name, pyarrow, numbers), nullable=True) for name in COLUMNS
    ]
    table = pyarrow.Table.from_pylist(found, pyarrow.schema(fields))
    pyarrow.parquet.write_table(table, path)
    return len(found)


def _type_of(name: str, pyarrow: Any, numbers: Any) -> Any:
    if name.endswith(("Cost", "Quantity")):
        return numbers
    if name.endswith(("PeriodStart", "PeriodEnd")):
        return pyarrow.timestamp("us", tz="UTC")
    is_count = name.endswith("Tokens") or name == "x_Requests"
    return pyarrow.int64() if is_count else pyarrow.string()


COLUMNS = tuple(_row(Totals(), dict.fromkeys(_PARTS) | {"day": "2026-01-01"}, None))
"""The columns of a row, in their order: FOCUS's by name, then those of our own."""
