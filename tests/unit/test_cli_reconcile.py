"""`fastroai costs reconcile`: the ledger beside an invoice."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rich.cells import cell_len

from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import START, charged

__all__ = ["books"]

Write = Callable[..., str]


@pytest.fixture
def invoice(tmp_path: Path) -> Write:
    """Write an invoice; its path."""

    def write(*lines: str, header: str = "id,model,time,cost") -> str:
        path = tmp_path / "invoice.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
        return str(path)

    return write


def sent(number: int, cost: str = "0.001", **changes: object) -> LedgerEntry:
    at = START + timedelta(minutes=number)
    answer = {
        "model_answered": "gpt-5-mini-2025-08-07",
        "provider": "openai",
        "response_id": f"r{number}",
    }
    return charged(
        cost, id=f"e{number}", pipeline="p", step_id="s", **{"sent_at": at, **answer, **changes}
    )


def billed(number: int, cost: str = "0.001", at: datetime | None = None) -> str:
    return f"r{number},gpt-5-mini,{(at or START + timedelta(minutes=number)).isoformat()},{cost}"


def test_books_that_balance_exit_with_0(books: Books, invoice: Write) -> None:
    books.book([sent(1), sent(2)])
    ran = books.costs("reconcile", invoice(billed(1), billed(2)))
    assert (ran.code, ran.err) == (0, "")
    assert "2 pairs: 2 by response id" in ran.out
    assert "Ledger 0.002 USD, invoice 0.002 USD, difference 0.000 USD." in ran.out
    assert ran.out.endswith("The books balance.\n")


def test_what_has_no_partner_or_differs_is_listed_and_exits_with_3(
    books: Books, invoice: Write
) -> None:
    books.book([sent(1), sent(2, "0.25"), sent(3)])
    path = invoice(billed(1), billed(3, "0.5"), billed(9, "0.75"))
    ran = books.costs("reconcile", path)
    assert ran.code == 3
    without_line, without_entry = ran.out.split("Invoice lines without an entry: 1")
    assert "Entries without an invoice line: 1" in without_line
    assert "e2" in without_line
    assert "0.25" in without_line
    assert "r9" in without_entry
    assert "line 3, entry e3: cost: 0.001 USD in the ledger, 0.5 on the invoice" in ran.out
    assert "difference 0.999 USD" in ran.out
    found = books.costs("reconcile", path, "--json")
    assert found.code == 3
    assert [entry["id"] for entry in found.json["entries_without_line"]] == ["e2"]
    assert [line["response_id"] for line in found.json["lines_without_entry"]] == ["r9"]
    assert [pair["entry"]["id"] for pair in found.json["differing"]] == ["e3"]
    assert (found.json["balanced"], found.json["matched"]) == (False, {"response_id": 2})
    assert (found.json["ledger_usd"], found.json["invoice_usd"]) == ("0.252", "1.251")


def test_only_the_days_of_the_invoice_are_compared(books: Books, invoice: Write) -> None:
    days = [sent(n, sent_at=START + timedelta(days=n)) for n in range(5)]
    books.book(days)
    lines = [billed(n, at=START + timedelta(days=n)) for n in (1, 2, 3)]
    ran = books.costs("reconcile", invoice(*lines))
    assert ran.code == 0
    assert "2026-03-02 00:00 UTC to 2026-03-05 00:00 UTC" in ran.out
    late = charged(id="late", sent_at=datetime.fromisoformat("2026-03-04T23:59Z"))
    books.book([late])
    found = books.costs("reconcile", invoice(*lines), "--json").json
    assert [entry["id"] for entry in found["entries_without_line"]] == ["late"]


def test_times_that_are_asked_for_count_instead(books: Books, invoice: Write) -> None:
    books.book([sent(n, sent_at=START + timedelta(days=n)) for n in range(5)])
    path = invoice(*(billed(n, at=START + timedelta(days=n)) for n in (1, 2, 3, 4)))
    assert books.costs("reconcile", path, "--since", "2026-03-03").code == 0
    assert books.costs("reconcile", path, "--since", "2026-03-01").code == 3
    assert (
        books.costs("--until", "2026-03-04", "reconcile", path, "--since", "2026-03-02").code == 0
    )


def test_a_request_that_two_clocks_put_on_two_sides_of_a_limit_is_one(
    books: Books, invoice: Write
) -> None:
    midnight = datetime.fromisoformat("2026-03-02T00:00Z")
    books.book(
        [
            sent(1, sent_at=midnight - timedelta(seconds=1)),
            sent(2, sent_at=midnight - timedelta(hours=1)),
        ]
    )
    path = invoice(billed(1, at=midnight + timedelta(seconds=1)))
    assert books.costs("reconcile", path).code == 0
    assert books.costs("reconcile", path, "--tolerance", "2h").code == 0


def test_the_tolerance_is_how_far_apart_one_request_may_be(books: Books, invoice: Write) -> None:
    books.book([replace(sent(1), response_id=None)])
    path = invoice(billed(1, at=START + timedelta(minutes=11)))
    assert books.costs("reconcile", path).code == 3
    assert books.costs("reconcile", path, "--tolerance", "10m").code == 0


def test_requests_of_other_providers_can_be_left_aside(books: Books, invoice: Write) -> None:
    other = replace(
        sent(2),
        provider="anthropic",
        model_asked="anthropic:claude-sonnet-4-5",
        model_answered=None,
    )
    lost = replace(
        other, id="e3", state=EntryState.UNSETTLED, settled_at=None, provider=None, cost_usd=None
    )
    books.book([sent(1), other, lost])
    path = invoice(billed(1))
    assert books.costs("reconcile", path).code == 3
    assert books.costs("reconcile", path, "--provider", "openai-chat").code == 0
    assert books.costs("reconcile", path, "--provider", "anthropic").code == 3


def test_columns_of_other_names_can_be_said(books: Books, invoice: Write) -> None:
    books.book([sent(1)])
    path = invoice("r1,0.001", header="Kennung=1,Betrag")
    ran = books.costs(
        "reconcile", path, "--column", "response_id=Kennung=1", "--column", "cost_usd=Betrag"
    )
    assert ran.code == 0


def test_an_invoice_may_come_from_a_pipe(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    books.book([sent(1)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"id,model,time,cost\n{billed(1)}\n"))
    assert books.costs("reconcile", "-").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.csv"], "'absent.csv': No such file"),
        ([], "INVOICE.csv"),
        (["INVOICE", "--column", "colour=red"], "'colour=red'"),
        (["INVOICE", "--column", "model"], "'model'"),
        (["INVOICE", "--column", "model=Modell"], "'Modell'"),
        (["INVOICE", "--tolerance", "wide"], "--tolerance 'wide'"),
        (["INVOICE", "--tolerance", "999999999999w"], "--tolerance '999999999999w'"),
    ],
)
def test_wrong_usage_exits_with_2(
    books: Books, invoice: Write, arguments: list[str], said: str
) -> None:
    path = invoice(billed(1))
    ran = books.costs(
        "reconcile", *(path if argument == "INVOICE" else argument for argument in arguments)
    )
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"id,cost\nr1,much\n", "Line 2"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_an_invoice_that_can_not_be_read_is_one_message(
    books: Books, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    ran = books.costs("reconcile", str(tmp_path / "bad.csv"))
    assert ran.code == 2
    assert said in ran.err


def test_without_a_ledger_nothing_is_compared(books: Books, invoice: Write) -> None:
    ran = books.costs("reconcile", invoice(billed(1)))
    assert (ran.code, ran.out) == (1, "")
    assert "There is no ledger" in ran.err
    assert not books.path.exists()


@pytest.mark.parametrize(
    "header", ["id,model,time,cost", "start_time,num_model_requests,model,input_tokens"]
)
def test_an_invoice_without_lines_does_not_balance(
    books: Books, invoice: Write, header: str
) -> None:
    books.book([])
    ran = books.costs("reconcile", invoice(header=header))
    assert (ran.code, ran.out) == (2, "")
    assert "has no lines" in ran.err


def test_a_provider_that_nobody_knows_is_refused_with_those_that_are(
    books: Books, invoice: Write
) -> None:
    books.book([sent(1), sent(2, provider="our-gateway")])
    ran = books.costs("reconcile", invoice(billed(1)), "--provider", "opnai")
    assert (ran.code, ran.out) == (2, "")
    assert "'opnai'" in ran.err
    assert " openai," in ran.err
    assert books.costs("reconcile", invoice(billed(1)), "--provider", "openai").code == 0
    # One's own is known by what is booked under it.
    assert books.costs("reconcile", invoice(billed(2)), "--provider", "our-gateway").code == 0


@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_is_wider_than_the_terminal(
    books: Books, invoice: Write, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    books.book([sent(1), sent(2, "0.25"), replace(sent(3), id="契約書" * 20, response_id="x" * 90)])
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = books.costs("reconcile", invoice(billed(1, "0.5"), billed(9, "0.75")))
    assert max(map(cell_len, ran.out.splitlines())) <= columns
