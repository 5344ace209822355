"""Forms in which invoices and exports come: separators, times, amounts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from fastroai.ledger.exports import export_format, read_export
from fastroai.ledger.invoices import read_invoice

AT = datetime(2026, 3, 1, 9, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "read"),
    [
        ("1772355660", AT),
        ("1772355660000", AT),
        ("2026-03-01 10:01:00 +0100", AT),
        ("2026-03-01 09:01:00 GMT", AT),
        ("20260301", AT.replace(hour=0, minute=0)),
    ],
)
def test_a_time_is_read_for_what_it_is(at: str, read: datetime) -> None:
    [line] = read_invoice(["model,time\n", f"gpt-5-mini,{at}\n"])
    assert line.at == read


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_may_be_separated_otherwise_than_by_commas(separator: str) -> None:
    rows = ["id,model,cost,tokens_in\n", "r1,gpt-5-mini,USD 0.001,1000.0\n"]
    [line] = read_invoice([row.replace(",", separator) for row in rows])
    assert (line.response_id, line.cost_usd) == ("r1", Decimal("0.001"))
    assert (line.input_tokens, line.number) == (1000, 2)


def test_so_may_those_of_an_export() -> None:
    header, row = "date;model;requests;usage\n", "2026-03-01;openai/gpt-5-mini;2;0.002\n"
    known = export_format(header.strip().split(";"))
    assert known is not None
    [billed] = read_export([header, row], known)
    assert billed.sums["cost_usd"] == Decimal("0.002")


def test_a_comma_that_separates_no_thousands_is_not_passed_over() -> None:
    [line] = read_invoice(["id;cost\n", "r1;1,234.50\n"])
    assert line.cost_usd == Decimal("1234.50")
    with pytest.raises(ValueError, match="'cost' can't be '0,001'"):
        read_invoice(["id;cost\n", "r1;0,001\n"])


def test_another_currency_is_refused() -> None:
    with pytest.raises(ValueError, match="Line 2 of the export is in 'EUR', not in USD"):
        read_invoice(["id,cost,currency\n", "r1,0.001,EUR\n"])


def test_what_is_billed_to_a_key_of_ones_own_is_part_of_the_cost() -> None:
    header = "generation_id,cost_total,byok_usage_inference\n"
    [own, other] = read_invoice([header, "g1,0.0001,0.0009\n", "g2,0.001,\n"])
    assert own.cost_usd == other.cost_usd == Decimal("0.0010")
