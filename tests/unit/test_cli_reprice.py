"""`fastroai costs reprice --check`: recorded prices beside the installed list."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import charged

__all__ = ["books"]

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)


def listed(**changes: object) -> LedgerEntry:
    """A request as the installed list prices it."""
    price = CostCalculator().price(
        RequestUsage(input_tokens=1000, output_tokens=100),
        "gpt-5-mini-2025-08-07",
        provider="openai",
        at=MOMENT,
    )
    entry = charged(
        str(price.total),
        sent_at=MOMENT,
        model_answered="gpt-5-mini-2025-08-07",
        provider="openai",
        tokens=TokenCounts(input_tokens=1000, output_tokens=100),
        price_source=price.source,
        price_version=price.version,
    )
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_prices_from_the_installed_list_do_not_differ(books: Books) -> None:
    earlier = listed(price_version="0.0.1", price_source="genai-prices 0.0.1: openai/gpt-5-mini")
    own = listed(cost_usd=Decimal(7), price_version=None, price_source="override 'gpt-5-mini'")
    lost = LedgerEntry(sent_at=MOMENT, model_asked="openai:gpt-5-mini")
    books.book([listed(), earlier, own, lost])
    found = books.costs("reprice", "--check", "--json")
    assert found.code == 0
    assert [found.json[name] for name in ("current", "same", "own", "differing")] == [1, 1, 1, []]
    assert "No price differs." in books.costs("reprice", "--check").out


def test_what_would_differ_is_summed_by_model_and_version_and_exits_with_3(books: Books) -> None:
    earlier = {"price_version": "0.0.1", "price_source": "genai-prices 0.0.1: openai/gpt-5-mini"}
    booked = [
        listed(),
        listed(id="a", cost_usd=Decimal("0.001"), **earlier),
        listed(id="b", cost_usd=Decimal("0.002"), **earlier),
        listed(id="c", state=EntryState.UNPRICED, cost_usd=None, price_version=None),
    ]
    books.book(booked)
    ran = books.costs("reprice", "--check")
    assert ran.code == 3
    assert "Prices that differ: 3" in ran.out
    assert "0.0.1" in ran.out
    found = books.costs("reprice", "--check", "--json").json
    assert [one["id"] for one in found["differing"]] == ["a", "b", "c"]
    usd = listed().cost_usd
    assert usd is not None
    assert Decimal(found["total"]["recorded_usd"]) == Decimal("0.003")
    assert Decimal(found["total"]["usd"]) == 3 * usd


def test_what_no_list_prices_is_told_apart(books: Books) -> None:
    gone = listed(model_asked="openai:gone", model_answered="gone", price_version="0.0.1")
    books.book([gone])
    found = books.costs("reprice", "--check", "--json")
    assert (found.code, sum(found.json["unknown"].values())) == (0, 1)


def test_without_a_check_nothing_is_done(books: Books) -> None:
    books.book([listed()])
    assert books.costs("reprice").code == 2
