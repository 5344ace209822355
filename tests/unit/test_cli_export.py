"""`fastroai costs export --focus`, against the columns that FOCUS publishes."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import START, charged

__all__ = ["books"]

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "cases" / "focus" / "columns-1.2.json").read_text()
)["columns"]
COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")


def booked() -> list[LedgerEntry]:
    """All states; two deployments of one name; a day's end; awkward texts."""
    tokens = TokenCounts(input_tokens=900, output_tokens=100, cache_read_tokens=500)
    at = {"tokens": tokens, "provider": "openai", "model_answered": "gpt-5-mini-2025-08-07"}
    digest = {"pipeline": "digest", "deployment": "digest/daily", "step_id": "read", **at}
    triage = {"pipeline": "triage", "deployment": "triage/daily", "step_id": "read", **at}
    paid = charged("0.1", **digest, run_id="1", tags={"team": "search", 'a"b': "x,y"})
    lost = LedgerEntry(
        attribution=paid.attribution, model_asked="anthropic:claude-haiku-4-5", sent_at=START
    )
    return [
        paid,
        replace(paid, id="2", cost_usd=Decimal("0.20000000000000000001")),
        charged("0.4", **triage, flow_tags=("nightly",), run_id="2"),
        charged("0.8", **triage, sent_at=START + timedelta(hours=12), run_id="2"),
        replace(paid, id="3", state=EntryState.UNPRICED, cost_usd=None),
        lost.settled(EntryState.UNSETTLED, cost_usd=Decimal("0.03")),
        replace(paid, id="4", simulated=True),
        replace(paid, id="5", state=EntryState.REFUSED, cost_usd=None),
        paid.replayed(paid.attribution),
        charged("0", pipeline=None),
    ]


def problems_of(row: dict[str, Any]) -> list[str]:
    """What of a row is not as FOCUS wants it; values as texts, an empty one is null."""
    found = [
        f"{name} is missing"
        for name, c in PUBLISHED.items()
        if c["level"] == "Mandatory" and name not in row
    ]
    for name, value in row.items():
        if name.startswith("x_"):
            continue
        column = PUBLISHED[name]
        if value == "":
            found += [] if column["nulls"] else [f"{name} is null"]
        elif not FORMS[column["type"]](value):
            found.append(f"{name} is no {column['type']}: {value!r}")
        elif value not in column.get("allowed", [value]):
            found.append(f"{name} may not be {value!r}")
    return found


def is_object(text: str) -> bool:
    return all(isinstance(v, str | bool | int) for v in dict(json.loads(text)).values())


FORMS = {
    "String": lambda text: text == text.strip() and text.lower() != "null",
    "Decimal": lambda text: re.fullmatch(r"-?\d+(\.\d+)?", text) is not None,
    "Date/Time": lambda text: re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text) is not None,
    "Key-Value": is_object,
}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_each_row_is_as_focus_publishes_it_but_that_unknown_costs_are_null(books: Books) -> None:
    books.book(booked())
    ran = books.costs("export", "--focus")
    rows = rows_of(ran.out)
    assert rows
    unknown = [row for row in rows if row["x_State"] != "charged"]
    assert sorted(row["x_State"] for row in unknown) == ["unpriced", "unsettled"]
    for row in rows:
        expected = [f"{name} is null" for name in COSTS] if row in unknown else []
        assert problems_of(row) == expected
    assert f"{len(rows)} rows of FOCUS 1.2." in ran.err
    assert "2 of them, of 2 requests without a known cost, have none" in ran.err
    strict = books.costs("export", "--focus", "--only-known")
    assert rows_of(strict.out) == [row for row in rows if row not in unknown]
    assert "2 more, of 2 requests without a known cost, are left out" in strict.err


def test_rows_have_days_deployments_and_amounts_that_add_up_to_the_ledgers(books: Books) -> None:
    books.book(booked())
    rows = rows_of(books.costs("export", "--focus").out)
    known = [
        (row["ChargePeriodStart"][:10], row["x_Deployment"], row["BilledCost"], row["x_Requests"])
        for row in rows
        if row["x_State"] == "charged" and row["x_Pipeline"]
    ]
    assert sorted(known) == [
        ("2026-03-01", "digest/daily", "0.30000000000000000001", "2"),
        ("2026-03-01", "triage/daily", "0.4", "1"),
        ("2026-03-02", "triage/daily", "0.8", "1"),
    ]
    paid = books.costs("--json").json["total"]["paid_usd"]
    assert sum(Decimal(row["x_KnownCost"]) for row in rows) == Decimal(paid)
    [digest] = [row for row in rows if row["x_Requests"] == "2"]
    assert json.loads(digest["Tags"]) == {"team": "search", 'a"b': "x,y"}
    assert (digest["ConsumedQuantity"], digest["ConsumedUnit"]) == ("2000", "Tokens")
    assert digest["BillingPeriodStart"] == "2026-03-01T00:00:00Z"
    assert digest["BillingPeriodEnd"] == "2026-04-01T00:00:00Z"
    assert {json.loads(row["Tags"] or "{}").get("nightly") for row in rows} == {None, True}


def test_a_file_is_replaced_and_the_account_and_filters_are_asked_for(
    books: Books, tmp_path: Path
) -> None:
    books.book(booked())
    path = tmp_path / "focus.csv"
    path.write_text("an older one, which is longer\n" * 1000)
    arguments = ["--deployment", "triage/daily", "--billing-account", "acc-1", "--to", str(path)]
    ran = books.costs("export", "--focus", *arguments)
    rows = rows_of(path.read_text())
    assert ran.out == f"2 rows of FOCUS 1.2 in {path}.\n"
    assert {row["BillingAccountId"] for row in rows} == {"acc-1"}
    assert [Decimal(row["BilledCost"]) for row in rows] == [Decimal("0.4"), Decimal("0.8")]
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("arguments", [[], ["--focus", "--json"]])
def test_what_no_export_can_be_is_wrong_usage(books: Books, arguments: list[str]) -> None:
    books.book([])
    assert books.costs("export", *arguments).code == 2


def test_an_empty_ledger_has_only_the_names_of_the_columns(books: Books) -> None:
    books.book([])
    out = books.costs("export", "--focus").out
    assert set(PUBLISHED) >= {name for name in out.strip().split(",") if name[:2] != "x_"}
    assert len(out.splitlines()) == 1


def test_parquet_has_the_same_where_pyarrow_is_installed(books: Books, tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    books.book(booked())
    path = tmp_path / "focus.parquet"
    assert books.costs("export", "--focus", "--to", str(path)).code == 0
    rows = parquet.read_table(path).to_pylist()
    expected = rows_of(books.costs("export", "--focus").out)
    assert [row["x_State"] for row in rows] == [row["x_State"] for row in expected]
    assert [row["BilledCost"] for row in rows] == [
        Decimal(row["BilledCost"]) if row["BilledCost"] else None for row in expected
    ]
    assert rows[0]["ChargePeriodStart"] == datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_without_pyarrow_that_is_said(books: Books, tmp_path: Path) -> None:
    ran = books.costs("export", "--focus", "--to", str(tmp_path / "focus.parquet"))
    assert ran.code == 2
    assert "pyarrow" in ran.err
