"""`fastroai costs what-if`: recorded requests at other prices."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from rich.cells import cell_len

from fastroai.ledger.repricing import what_if
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import charged

__all__ = ["books"]

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)


def sent(pipeline: str, cost: str, tokens: int = 100_000, **changes: object) -> LedgerEntry:
    return charged(
        cost,
        pipeline=pipeline,
        sent_at=MOMENT,
        tokens=TokenCounts(input_tokens=tokens, output_tokens=100),
        model_answered="gpt-5-mini-2025-08-07",
        provider="openai",
        **changes,
    )


def test_each_pipeline_beside_what_it_would_have_cost(books: Books) -> None:
    booked = [sent("small", "0.0252", 1000), sent("large", "1"), sent("large", "2")]
    books.book(booked)
    ran = books.costs("what-if", "--model", "openai:gpt-5-nano")
    assert ran.code == 0
    assert ran.headings() == [
        "pipeline",
        "requests",
        "recorded USD",
        "would be USD",
        "difference",
        "change",
    ]
    assert list(ran.rows()) == ["large", "small", "total"]
    expected = what_if(booked, "openai:gpt-5-nano")
    total = ran.rows()["total"]
    assert [Decimal(cell) for cell in total[:4]] == [
        3,
        expected.recorded_usd,
        expected.usd,
        expected.usd - expected.recorded_usd,
    ]
    assert total[4].startswith("-99.")
    found = books.costs("what-if", "--model", "openai:gpt-5-nano", "--json").json
    assert found["total"]["usd"] == f"{expected.usd.normalize():f}"
    assert sum(Decimal(group["usd"]) for group in found["groups"]) == expected.usd
    assert (found["model"], found["service_tier"], found["left_out"]) == (
        "openai:gpt-5-nano",
        None,
        [],
    )


def test_another_tier_of_the_recorded_models(books: Books) -> None:
    books.book([sent("p", "1")])
    default = books.costs("what-if", "--tier", "default", "--json").json["total"]["usd"]
    flex = books.costs("what-if", "--tier", "flex", "--json").json["total"]["usd"]
    assert Decimal(flex) * 2 == Decimal(default)
    assert "on the recorded models at tier flex" in books.costs("what-if", "--tier", "flex").out


def test_filters_and_groups_may_stand_before_or_after_the_commands_name(books: Books) -> None:
    books.book(
        [sent("a", "1"), sent("b", "2"), replace(sent("a", "4"), model_asked="openai:gpt-5")]
    )
    for arguments in (
        ["--by", "model", "--pipeline", "a", "--json", "what-if", "--tier", "flex"],
        ["what-if", "--tier", "flex", "--by", "model", "--pipeline", "a", "--json"],
    ):
        found = books.costs(*arguments).json
        assert found["filters"] == {"pipeline": "a"}
        assert [group["key"] for group in found["groups"]] == ["openai:gpt-5", "openai:gpt-5-mini"]
    only = books.costs(
        "what-if", "--model", "openai:gpt-5-nano", "--recorded-model", "openai:gpt-5", "--json"
    ).json
    assert only["total"]["recorded_usd"] == "4"


def test_what_can_not_be_compared_is_counted_with_its_reason(books: Books) -> None:
    lost = LedgerEntry(model_asked="openai:gpt-5-mini", sent_at=MOMENT)
    books.book([sent("a", "1"), lost, sent("a", "1").settled(EntryState.UNPRICED, cost_usd=None)])
    out = books.costs("what-if", "--tier", "flex").out
    assert "LEFT OUT: 2 of 3 can't be compared." in out
    assert "- 1: Its tokens are not known." in out
    assert "- 1: Its recorded cost is not known." in out


def test_money_that_was_only_simulated_is_said(books: Books) -> None:
    books.book([sent("a", "1"), replace(sent("a", "2"), simulated=True)])
    assert (
        "SIMULATED: 1 of 2 were answered by an offline model; the 2 USD"
        in books.costs("what-if", "--tier", "flex").out
    )


def test_a_model_without_a_price_fails_and_says_why(books: Books) -> None:
    books.book([sent("a", "1")])
    ran = books.costs("what-if", "--model", "openai:no-such-model")
    assert ran.code == 1
    assert "'no-such-model'" in ran.out
    # The command prices by the price list only: a price can't be stated to it.
    assert "CostCalculator" not in ran.out
    assert "0.00" not in ran.out


def test_something_must_be_different(books: Books) -> None:
    books.book([sent("a", "1")])
    ran = books.costs("what-if")
    assert (ran.code, ran.out) == (2, "")
    assert "--model" in ran.err
    assert "--tier" in ran.err
    assert books.costs("what-if", "--tier", "flex", "--at", "once").code == 2


def test_prices_may_be_those_of_another_time(books: Books) -> None:
    books.book([replace(sent("a", "1"), sent_at=datetime(2026, 3, 1, tzinfo=UTC))])
    then = books.costs("what-if", "--tier", "flex", "--json").json["total"]["usd"]
    later = books.costs("what-if", "--tier", "flex", "--json", "--at", "2026-11-01").json["total"][
        "usd"
    ]
    assert Decimal(later) * 2 == Decimal(then)


@pytest.mark.parametrize("tier", ["flx", "", "Flex"])
def test_a_tier_that_nobody_knows_is_refused_with_those_that_are(books: Books, tier: str) -> None:
    books.book([sent("a", "1")])
    ran = books.costs("what-if", "--tier", tier)
    assert (ran.code, ran.out) == (2, "")
    assert repr(tier) in ran.err
    for known in ("batch", "default", "flex", "priority"):
        assert f" {known}" in ran.err
        assert books.costs("what-if", "--tier", known).code in (0, 1)


def test_a_tier_of_own_rates_is_known(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"input_per_mtok": 1, "output_per_mtok": 1}
    models = {"gpt-5-mini": rates | {"tiers": {"night": rates}}}
    (tmp_path / "prices.json").write_text(json.dumps({"models": models}))
    monkeypatch.setenv("FASTROAI_PRICES", str(tmp_path / "prices.json"))
    books.book([sent("a", "1")])
    assert books.costs("what-if", "--tier", "night").code == 0


def test_nothing_to_compare_is_one_sentence(books: Books) -> None:
    books.book([sent("a", "1")])
    ran = books.costs("what-if", "--tier", "flex", "--pipeline", "b")
    assert (ran.code, ran.out) == (0, "No request with a cost matches: pipeline 'b'.\n")


@pytest.mark.parametrize("columns", [45, 80])
def test_no_line_is_wider_than_the_terminal(
    books: Books, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    books.book([sent("契約書レビュー" * 5, "1"), sent("b", "2")])
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = books.costs("what-if", "--model", "openai:gpt-5-nano")
    assert max(map(cell_len, ran.out.splitlines())) <= columns


def test_prices_that_can_not_be_read_are_one_message(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.book([sent("small", "1")])
    monkeypatch.setenv("FASTROAI_PRICES", str(tmp_path / "missing.json"))
    ran = books.costs("what-if", "--tier", "flex")
    assert ran.code == 1
    assert "missing.json" in ran.err
    assert ran.err.count("\n") == 1
