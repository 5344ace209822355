"""Amounts that are computed beside genai-prices: the same as its own, to the last digit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, localcontext

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, Tier, TieredPrices
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator
from fastroai.pricing.money import EXACT
from fastroai.pricing.rate_sheets import RateSheet

AT = [datetime(2026, 11, 30, hour, 7, tzinfo=UTC) for hour in (3, 9, 17, 23)]


def listed() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in get_snapshot().providers:
        for model in provider.models:
            yield provider, model


def some_counts(chance: random.Random) -> dict[str, int]:
    """Tokens of one request, of whichever kinds, on either side of the usual tiers."""

    def up_to(most: int) -> int:
        return chance.choice([0, 0, min(1, most), most, chance.randint(0, most)])

    total = chance.choice([1, 1_000, 128_000, 200_000, 200_001, 272_001, 1_000_001])
    total = chance.choice([total, chance.randint(1, total)])
    output = chance.randint(0, 10_000)
    read = up_to(total)
    write = up_to(total - read)
    audio = up_to(total - read - write)
    return {
        "input_tokens": total,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": up_to(write),
        "input_audio_tokens": audio,
        "cache_audio_read_tokens": 0,
        "output_audio_tokens": up_to(output),
        "output_reasoning_tokens": 0,
        "web_searches": chance.choice([0, 0, 3]),
    }


def test_no_listed_model_has_another_amount_than_by_genai_prices() -> None:
    chance = random.Random(11)
    computed = 0
    for number, (provider, model) in enumerate(listed()):
        counts, at = some_counts(chance), AT[number % len(AT)]
        variants = model.price_variants or ()
        tags = dict(chance.choice(variants).when) if variants and number % 2 else None
        sheet = RateSheet(provider.id, model.id, model.get_prices(at, tags))
        with localcontext(EXACT):
            try:
                found = model.calc_price(
                    Usage(**counts), provider, genai_request_timestamp=at, price_context=tags
                )
            except ValueError:
                assert sheet.amount(counts) is None
                continue
        if (amount := sheet.amount(counts)) is not None:
            computed += 1
            assert str(amount[1]) == str(found.total_price), (provider.id, model.id, counts)
    assert computed > 1_500  # else nothing was compared


def test_a_second_request_of_a_kind_is_not_asked_of_genai_prices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calculator = CostCalculator()

    def usd(tokens: int, cached: int) -> Decimal:
        usage = RequestUsage(input_tokens=tokens, output_tokens=7, cache_read_tokens=cached)
        return calculator.price(usage, "gpt-5-mini", provider="openai").total

    usd(1_000, 0)
    usd(1_000, 300)
    with monkeypatch.context() as patch:
        patch.setattr(ModelInfo, "calc_price", None)
        without, with_cached = usd(2_000, 0), usd(2_000, 1)
        with pytest.raises(TypeError):
            usd(2_000, 2_000)  # nothing at the full rate: a kind that was not seen yet
    assert without == Decimal("0.000514")
    assert without - with_cached == Decimal("0.000000225")


def test_an_amount_that_genai_prices_does_not_share_is_never_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ModelPrice, "calc_price", lambda *_: dict.fromkeys(PRICES, Decimal(5)))
    usage = RequestUsage(input_tokens=77, output_tokens=3, cache_read_tokens=76)
    prices = [CostCalculator().price(usage, "gpt-4.1-nano", provider="openai") for _ in range(3)]
    assert [price.total for price in prices] == [Decimal(5)] * 3


PRICES = ("input_price", "output_price", "total_price")


@pytest.mark.parametrize(
    ("tokens", "rate"), [(200_000, 1), (200_001, 2), (999_999, 2), (10**6 + 1, 3)]
)
def test_all_tokens_of_a_request_have_the_rate_of_its_tier(tokens: int, rate: int) -> None:
    tiers = [Tier(start=200_000, price=Decimal(2)), Tier(start=10**6, price=Decimal(3))]
    prices = ModelPrice(input_mtok=TieredPrices(base=Decimal(1), tiers=tiers))
    amount = RateSheet("any", "any", prices).amount({"input_tokens": tokens})
    assert amount is not None
    assert amount[1] == Decimal(tokens * rate) / 10**6


@pytest.mark.parametrize(
    "counts",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.5},
        {"input_tokens": True},
        {"output_tokens": 1},
        {"input_tokens": 5, "cache_read_tokens": 6},
    ],
)
def test_counts_that_genai_prices_may_refuse_are_left_to_it(counts: dict[str, float]) -> None:
    prices = ModelPrice(input_mtok=Decimal(1), cache_read_mtok=Decimal(1))
    assert RateSheet("any", "any", prices).amount({"cache_read_tokens": 0, **counts}) is None


def test_seconds_that_may_be_billed_for_a_least_time_are_left_to_genai_prices() -> None:
    prices = ModelPrice(input_mtok=Decimal(1), audio_hours=Decimal(1))
    named = dict.fromkeys(("input_tokens", "input_audio_seconds", "audio_seconds"), 1)
    assert RateSheet("groq", "whisper-large-v3", prices).amount(named) is None
