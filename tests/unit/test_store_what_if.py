"""What recorded usage would have cost otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from fastroai import CostCalculator
from fastroai.ledger.repricing import what_if
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState
from tests.support.ledger_entries import charged

MILLION = TokenCounts(input_tokens=1_000_000, output_tokens=1_000_000)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
rates = CostCalculator(pricing_overrides={"other:m": {"input_per_mtok": 3, "output_per_mtok": 4}})


def sent(cost: str = "1", tokens: TokenCounts = MILLION, **changes: object):
    return charged(
        cost, tokens=tokens, model_answered="gpt-5-mini-2025-08-07", sent_at=NOW, **changes
    )


def test_each_request_is_priced_by_itself_on_the_other_model() -> None:
    result = what_if([sent("1"), sent("2")], "other:m", calculator=rates)
    assert (result.recorded_usd, result.usd) == (3, 14)
    assert [repriced.reason for repriced in result.requests] == ["override 'other:m'"] * 2


def test_the_list_price_of_the_recorded_model_is_what_was_recorded() -> None:
    usage = TokenCounts(input_tokens=1000, output_tokens=100, cache_read_tokens=500)
    price = CostCalculator().price(usage, "openai:gpt-5-mini", at=NOW)  # type: ignore[arg-type]  # the counters suffice
    result = what_if([sent(str(price.total), usage)], "openai:gpt-5-mini")
    assert result.usd == result.recorded_usd == price.total


def test_another_tier_of_the_same_model() -> None:
    usage = TokenCounts(input_tokens=1000, output_tokens=100)
    default = what_if([sent(tokens=usage)], service_tier="default").usd
    assert what_if([sent(tokens=usage)], service_tier="flex").usd == default / 2
    assert (
        what_if([sent(tokens=usage, service_tier="flex")], "openai:gpt-5-mini").usd == default / 2
    )


def test_tiers_of_today_may_be_asked_of_what_was_sent_before_there_were_any() -> None:
    usage = TokenCounts(input_tokens=1000, output_tokens=100)
    entry = replace(sent(tokens=usage), sent_at=datetime(2026, 3, 1, tzinfo=UTC))
    then = what_if([entry], service_tier="flex").usd
    assert what_if([entry], service_tier="flex", at=NOW).usd == then / 2
    with pytest.raises(ValueError, match="timezone-aware"):
        what_if([entry], service_tier="flex", at=datetime(2026, 3, 1))


def test_batch_is_a_tier_too() -> None:
    usage = TokenCounts(input_tokens=1000, output_tokens=100)
    entry = replace(
        sent(tokens=usage),
        model_asked="anthropic:claude-sonnet-4-5",
        model_answered="claude-sonnet-4-5",
    )
    assert what_if([entry], service_tier="batch").usd < what_if([entry], service_tier="default").usd


def test_what_else_was_counted_is_priced_too() -> None:
    usage = TokenCounts(input_tokens=2000, cache_write_tokens=1000)
    entry = replace(
        sent(tokens=usage),
        model_asked="anthropic:claude-sonnet-4-5",
        model_answered="claude-sonnet-4-5",
    )
    longer = replace(entry, further_usage={"cache_write_1h_tokens": 1000})
    model = "anthropic:claude-sonnet-4-5"
    assert what_if([longer], model).usd > what_if([entry], model).usd


def test_what_can_not_be_compared_is_left_out_and_says_why() -> None:
    unsettled = sent().settled(EntryState.UNSETTLED, tokens=TokenCounts(), cost_usd=None)
    unpriced = sent().settled(EntryState.UNPRICED, cost_usd=None)
    summed = replace(sent(), request_count=3)
    result = what_if([unsettled, unpriced, summed, sent("5")], "other:m", calculator=rates)
    assert [repriced.entry for repriced in result.left_out] == [unsettled, unpriced, summed]
    assert result.left_out[0].reason == "Its tokens are not known."
    assert (result.left_out[1].usd, result.recorded_usd, result.usd) == (Decimal(7), 5, 7)


def test_a_model_without_a_price_costs_nothing_known_and_never_0() -> None:
    result = what_if([sent()], "openai:no-such-model")
    assert result.compared == ()
    assert result.left_out[0].usd is None
    assert "no-such-model" in result.left_out[0].reason


def test_what_was_not_paid_is_left_aside() -> None:
    paid = sent()
    refused = paid.settled(EntryState.REFUSED)
    assert (
        what_if([paid.replayed(paid.attribution), refused], "other:m", calculator=rates).requests
        == ()
    )


def test_something_must_be_different() -> None:
    with pytest.raises(ValueError, match="What should be different"):
        what_if([sent()])
