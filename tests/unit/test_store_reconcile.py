"""Reconciling: each entry finds its invoice line, and what has no partner is shown."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from fastroai.ledger.invoices import InvoiceLine, read_invoice
from fastroai.ledger.reconciliation import reconcile
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support.ledger_entries import START, charged

MODEL = "gpt-5-mini-2025-08-07"


def answered(
    number: int, *, response_id: str | None = None, tokens: int = 100, cost: str = "0.001"
) -> LedgerEntry:
    return charged(
        cost,
        id=f"e{number}",
        sent_at=START + timedelta(seconds=number),
        model_answered=MODEL,
        response_id=response_id,
        tokens=TokenCounts(input_tokens=tokens, output_tokens=5),
    )


def line(number: int, **changes: object) -> InvoiceLine:
    at = START + timedelta(seconds=number, milliseconds=300)
    return replace(InvoiceLine(number=number, model=MODEL, at=at), **changes)  # type: ignore[arg-type]  # fields of it


def test_lines_are_matched_by_the_response_id() -> None:
    entries = [answered(1, response_id="r1"), answered(2, response_id="r2")]
    found = reconcile(entries, [line(8, response_id="r2"), line(9, response_id="r1")])
    assert [(m.entry.id, m.line.number, m.by) for m in found.matches] == [
        ("e2", 8, "response_id"), ("e1", 9, "response_id"),
    ]  # fmt: skip
    assert found.is_balanced


def test_what_has_no_partner_is_shown_on_both_sides() -> None:
    found = reconcile(
        [answered(1, response_id="r1")],
        [line(1, response_id="other", input_tokens=100, output_tokens=5)],
    )
    assert [entry.id for entry in found.entries] == ["e1"]
    assert [unknown.response_id for unknown in found.lines] == ["other"]
    assert not found.is_balanced


def test_a_request_that_was_billed_twice_leaves_a_line() -> None:
    found = reconcile(
        [answered(1, response_id="r1")], [line(1, response_id="r1"), line(2, response_id="r1")]
    )
    assert [left.number for left in found.lines] == [2]


def test_without_ids_model_and_tokens_and_time_decide() -> None:
    entries = [answered(n, tokens=tokens) for n, tokens in enumerate([100, 200, 100, 300])]
    lines = [
        line(n, input_tokens=tokens, output_tokens=5)
        for n, tokens in enumerate([100, 200, 100, 400])
    ]
    random.Random(1).shuffle(lines)
    found = reconcile(entries, lines)
    assert [(m.entry.id, m.line.number, m.by) for m in found.matches] == [
        (f"e{n}", n, "tokens") for n in range(3)
    ]
    assert ([e.id for e in found.entries], [n.number for n in found.lines]) == (["e3"], [3])


def test_without_tokens_the_cost_decides_to_as_many_places_as_the_invoice_has() -> None:
    entries = [answered(1, cost="0.00124"), answered(2, cost="0.0087")]
    found = reconcile(
        entries, [line(1, cost_usd=Decimal("0.0087")), line(2, cost_usd=Decimal("0.001"))]
    )
    assert [(m.entry.id, m.line.number, m.by) for m in found.matches] == [
        ("e2", 1, "cost"),
        ("e1", 2, "cost"),
    ]
    assert found.is_balanced


def test_a_request_of_unknown_outcome_finds_the_line_it_was_billed_by() -> None:
    lost = LedgerEntry(id="lost", model_asked="openai:gpt-5-mini", sent_at=START)
    broken = replace(
        answered(2).settled(EntryState.UNSETTLED),
        id="broken",
        tokens=TokenCounts(output_tokens=2),
        cost_usd=None,
    )
    lines = [
        line(0, response_id="r1", input_tokens=9, output_tokens=9),
        line(2, input_tokens=100, output_tokens=5),
    ]
    found = reconcile([lost, broken], lines)
    assert [(m.entry.id, m.line.number, m.by) for m in found.matches] == [
        ("lost", 0, "time"),
        ("broken", 2, "time"),
    ]
    assert found.is_balanced


def test_what_lies_too_far_apart_in_time_is_not_the_same_request() -> None:
    far = line(1, at=START + timedelta(hours=1), input_tokens=100, output_tokens=5)
    assert len(reconcile([answered(1)], [far]).matches) == 0
    assert len(reconcile([answered(1)], [far], tolerance=timedelta(hours=2)).matches) == 1


def test_lines_without_a_time_take_what_is_left() -> None:
    lines = [
        line(1, at=None, input_tokens=100, output_tokens=5),
        line(2, input_tokens=100, output_tokens=5),
    ]
    found = reconcile([answered(1), answered(900)], lines)
    assert [(m.entry.id, m.line.number) for m in found.matches] == [("e900", 1), ("e1", 2)]


def test_what_partners_say_otherwise_is_shown() -> None:
    found = reconcile(
        [answered(1, response_id="r1")],
        [line(1, response_id="r1", input_tokens=120, output_tokens=5, cost_usd=Decimal("0.0012"))],
    )
    [match] = found.matches
    assert match.differences == (
        "input_tokens: 100 in the ledger, 120 on the invoice",
        "cost: 0.001 USD in the ledger, 0.0012 on the invoice",
    )
    assert not found.is_balanced


def test_only_what_can_be_billed_is_looked_for() -> None:
    paid = answered(1)
    others = [
        paid.replayed(paid.attribution),
        replace(paid, id="r", state=EntryState.REFUSED),
        replace(paid, id="s", simulated=True),
    ]
    assert reconcile(others, []).is_balanced


def test_many_requests_are_matched_in_a_moment() -> None:
    entries = [answered(n) for n in range(3000)]
    lines = [line(n, input_tokens=100, output_tokens=5) for n in range(3000)]
    found = reconcile(entries, lines)
    assert all(match.entry.id == f"e{match.line.number}" for match in found.matches)
    assert len(found.matches) == 3000


def test_an_invoice_is_read_under_the_names_it_uses() -> None:
    text = (
        "\ufeffRequest ID,Model,Created At,Prompt-Tokens,completion_tokens,Amount,Project\n"
        'req_1,gpt-5-mini,2026-03-01 12:00:00 UTC,"1,200",34,$0.00420,x\n'
        ",gpt-5-mini,1772366400.5,,,,\n"
    )
    first, second = read_invoice(text.splitlines())
    assert first == InvoiceLine(
        number=2,
        response_id="req_1",
        model="gpt-5-mini",
        at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        input_tokens=1200,
        output_tokens=34,
        cost_usd=Decimal("0.00420"),
    )
    assert second == InvoiceLine(
        number=3, model="gpt-5-mini", at=datetime(2026, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    )


def test_a_column_of_another_name_can_be_said() -> None:
    [only] = read_invoice(
        ["Kennung;x,Betrag", "r1,0.5"], columns={"response_id": "Kennung;x", "cost_usd": "Betrag"}
    )
    assert (only.response_id, only.cost_usd) == ("r1", Decimal("0.5"))


def test_a_column_that_is_said_and_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no column 'Kennung'. It has \['id', 'cost'\]"):
        read_invoice(["id,cost", "r1,0.5"], columns={"response_id": "Kennung"})


def test_an_invoice_that_names_no_request_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no column for the response id or the model.*'day', 'usd'"
    ):
        read_invoice(["day,usd", "2026-03-01,5"])


@pytest.mark.parametrize("value", ["many", "NaN", "Infinity"])
def test_a_value_that_can_not_be_read_is_named_with_its_line(value: str) -> None:
    with pytest.raises(ValueError, match=rf"Line 3 of the invoice: 'cost' can't be '{value}'"):
        read_invoice(["model,cost", "m,1", f"m,{value}"])
