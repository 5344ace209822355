"""What prompt caching saved or cost: of a request, in sums, and where it is shown."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from fastroai.executors._prefect.artifacts import run_rows, step_rows
from fastroai.executors._prefect.table_layout import laid_out
from fastroai.ledger.aggregation import totals_of
from fastroai.metering.outcomes import settle_answer
from fastroai.metering.pricer import Pricer
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import CostCalculator, EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import charged

__all__ = ["books"]

RATES = {
    "input_per_mtok": 4,
    "output_per_mtok": 10,
    "cache_read_per_mtok": 0.4,
    "cache_write_per_mtok": 5,
}


def settled(**usage: int) -> LedgerEntry:
    """An answer at rates of its own."""
    model = FunctionModel(lambda messages, info: response, model_name="cached")
    response = ModelResponse(
        [TextPart("yes")], usage=RequestUsage(**usage), model_name="cached", provider_name="openai"
    )
    pricer = Pricer(CostCalculator({"cached": RATES}))
    return settle_answer(LedgerEntry(model_asked="openai:cached"), response, model, pricer)


@pytest.mark.parametrize(
    ("usage", "saved"),
    [
        ({"input_tokens": 1000, "cache_read_tokens": 500}, "0.0018"),
        ({"input_tokens": 1000, "cache_write_tokens": 1000}, "-0.001"),
        ({"input_tokens": 1000, "cache_read_tokens": 400, "cache_write_tokens": 600}, "0.00084"),
        ({"input_tokens": 1000}, None),
    ],
)
def test_it_is_what_the_same_tokens_would_have_cost_outside_of_the_cache(
    usage: dict[str, int], saved: str | None
) -> None:
    entry = settled(output_tokens=10, **usage)
    expected = None if saved is None else Decimal(saved)
    assert entry.cache_saved_usd == expected
    assert entry.cost_usd is not None
    at_full_price = Decimal(1000 * 4 + 10 * 10).scaleb(-6)
    assert entry.cost_usd + (expected or 0) == at_full_price


def test_a_listed_price_says_it_too() -> None:
    model = FunctionModel(lambda messages, info: response, model_name="claude-haiku-4-5")
    response = ModelResponse(
        [TextPart("yes")],
        usage=RequestUsage(input_tokens=10_000, cache_read_tokens=6000, cache_write_tokens=2000),
        model_name="claude-haiku-4-5",
        provider_name="anthropic",
    )
    entry = LedgerEntry(model_asked="anthropic:claude-haiku-4-5")
    done = settle_answer(entry, response, model, Pricer(CostCalculator()))
    # 6,000 at 0.10 and 2,000 at 1.25 USD per million instead of 1 USD.
    assert done.cache_saved_usd == Decimal("0.0049")


TOKENS = TokenCounts(input_tokens=100, cache_read_tokens=50)


def some() -> list[LedgerEntry]:
    def cached(saved: str | None, step_id: str) -> LedgerEntry:
        usd = None if saved is None else Decimal(saved)
        of = {"pipeline": "p", "run_id": "r", "step_id": step_id}
        return charged("0.5", tokens=TOKENS, cache_saved_usd=usd, **of)

    return [
        cached("0.25", "read"),
        cached("-0.0000000000000001", "read"),
        cached(None, "lost"),
        cached("0.125", "both"),
        cached(None, "both"),
        charged("1", pipeline="p", run_id="r", step_id="plain"),
    ]


def test_costs_show_it_by_step_and_what_is_unknown_stays_so(books: Books) -> None:
    books.book(some())
    ran = books.costs("--by", "step")
    place = ran.headings().index("caching saved USD") - 1
    cells = {name: row[place] for name, row in ran.rows().items()}
    assert cells == {
        "p/read": "0.2499999999999999",
        "p/lost": "unknown",
        "p/both": "0.1250000000000000 + unknown",
        "p/plain": "0.0000000000000000",
        "total": "0.3749999999999999 + unknown",
    }
    groups = books.costs("--by", "step", "--json").json["groups"]
    saved = {group["key"]: group["cache_saved_usd"] for group in groups}
    assert saved == {
        "p/read": "0.2499999999999999", "p/lost": None, "p/both": None, "p/plain": "0",
    }  # fmt: skip
    assert "caching saved USD" in books.run("runs", "show", "r").headings()


def test_without_cached_tokens_there_is_no_such_column(books: Books) -> None:
    books.book([charged("1", run_id="r")])
    assert "caching saved USD" not in books.costs().headings()
    assert "caching saved USD" not in books.run("runs", "show", "r").headings()


def test_a_runs_table_has_it_where_it_is_not_all_zero() -> None:
    entries = some()
    of_step = {"read": entries[:2], "lost": entries[2:3], "both": entries[3:5]}
    records = {name: ("completed", 1, tuple(found)) for name, found in of_step.items()}
    rows = laid_out(run_rows(records))
    assert [row["caching saved (USD)"] for row in rows] == [
        "0.2499999999999999", "unknown", "0.125 + 1 unknown",
    ]  # fmt: skip
    assert "caching saved (USD)" not in laid_out(step_rows(entries[5:]))[0]


def test_refused_and_replayed_requests_save_nothing() -> None:
    paid = some()[0]
    refused = replace(paid, id="2", state=EntryState.REFUSED)
    [total] = totals_of([paid, paid.replayed(paid.attribution), refused])
    assert (total.cache_saved_usd, total.cache_priced_tokens) == (Decimal("0.25"), 50)
