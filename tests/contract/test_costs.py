"""CostCalculator as programs written for fastroai 0.6 use it."""

from __future__ import annotations

import logging

import pytest

from fastroai import CostCalculator
from fastroai.usage import CostCalculator as FromUsage


@pytest.fixture
def calculator() -> CostCalculator:
    return CostCalculator()


def test_one_class_under_two_paths() -> None:
    assert CostCalculator is FromUsage


@pytest.mark.parametrize(
    ("model", "input_tokens", "output_tokens", "cost"),
    [
        ("gpt-4o", 1000, 500, 7500),
        ("gpt-4o", 100, 50, 750),
        ("gpt-4o", 1_000_000, 500_000, 7_500_000),
        ("gpt-4o-mini", 10_000, 1000, 2100),
        ("claude-3-5-sonnet", 2000, 1000, 21_000),
        ("gpt-4o", 0, 0, 0),
    ],
)
def test_list_prices(
    calculator: CostCalculator, model: str, input_tokens: int, output_tokens: int, cost: int
) -> None:
    result = calculator.calculate_cost(model, input_tokens, output_tokens)

    assert result == cost
    assert type(result) is int


@pytest.mark.parametrize(
    "model",
    ["gpt-4-turbo", "claude-3-opus", "claude-3-haiku", "gemini-1.5-pro", "gemini-1.5-flash"],
)
def test_short_names_have_a_price(calculator: CostCalculator, model: str) -> None:
    assert calculator.calculate_cost(model, 1000, 0) > 0


def test_a_provider_prefix_changes_nothing(calculator: CostCalculator) -> None:
    assert calculator.calculate_cost("openai:gpt-4o", 1000, 500) == calculator.calculate_cost(
        "gpt-4o", 1000, 500
    )


@pytest.mark.parametrize(
    "model", [None, "", "no-such-model", "openai:no-such-model", "nobody:no-such-model"]
)
def test_an_unknown_model_costs_0_and_is_logged(
    calculator: CostCalculator, model: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="fastroai.usage"):
        result = calculator.calculate_cost(model, 1000, 500)

    assert result == 0
    assert type(result) is int
    assert [record.levelno for record in caplog.records if record.name == "fastroai.usage"] == [
        logging.DEBUG
    ]


def test_cached_tokens_are_cheaper(calculator: CostCalculator) -> None:
    plain = calculator.calculate_cost("claude-3-5-sonnet", 250, 150)
    cached = calculator.calculate_cost("claude-3-5-sonnet", 250, 150, cache_read_tokens=200)

    assert 0.75 * plain <= cached <= 0.85 * plain


def test_audio_counts_are_accepted(calculator: CostCalculator) -> None:
    cost = calculator.calculate_cost(
        "gpt-4o",
        1000,
        500,
        input_audio_tokens=200,
        cache_read_tokens=150,
        cache_audio_read_tokens=100,
    )

    assert cost > 0


@pytest.mark.parametrize(
    ("rates", "tokens", "cached", "cost"),
    [
        ((2.0, 8.0, None, None), (1000, 500), {}, 6000),
        ((10.0, 20.0, None, None), (1000, 0), {"cache_read_tokens": 800}, 2800),
        ((10.0, 20.0, 0.50, None), (1000, 0), {"cache_read_tokens": 800}, 2400),
        ((10.0, 20.0, None, None), (1000, 0), {"cache_write_tokens": 500}, 11_250),
        ((10.0, 20.0, None, 15.0), (1000, 0), {"cache_write_tokens": 500}, 12_500),
        ((0.001, 0.002, None, None), (1_000_000, 1_000_000), {}, 3000),
    ],
)
def test_overrides(
    rates: tuple[float, float, float | None, float | None],
    tokens: tuple[int, int],
    cached: dict[str, int],
    cost: int,
) -> None:
    names = ("input_per_mtok", "output_per_mtok", "cache_read_per_mtok", "cache_write_per_mtok")
    override = {name: rate for name, rate in zip(names, rates, strict=True) if rate is not None}
    at_construction = CostCalculator(pricing_overrides={"mine": override})
    added = CostCalculator()
    added.add_pricing_override(
        "mine", rates[0], rates[1], cache_read_per_mtok=rates[2], cache_write_per_mtok=rates[3]
    )

    assert at_construction.calculate_cost("mine", *tokens, **cached) == cost
    assert added.calculate_cost("mine", *tokens, **cached) == cost


def test_an_override_beats_the_list() -> None:
    calculator = CostCalculator({"gpt-4o": {"input_per_mtok": 2.0, "output_per_mtok": 8.0}})

    assert calculator.calculate_cost("gpt-4o", 1000, 500) == 6000
    assert calculator.calculate_cost("openai:gpt-4o", 1000, 500) == 6000


@pytest.mark.parametrize(
    ("first", "second"), [("mine", "openai:mine"), ("openai:mine", "mine"), ("mine", "mine")]
)
def test_an_added_override_replaces_one_of_the_same_model(first: str, second: str) -> None:
    calculator = CostCalculator({first: {"input_per_mtok": 1.0, "output_per_mtok": 1.0}})
    calculator.add_pricing_override(second, 2.0, 8.0)

    assert calculator.calculate_cost("mine", 1000, 500) == 6000
    assert calculator.calculate_cost("openai:mine", 1000, 500) == 6000


@pytest.mark.parametrize("name", ["acme:mine", "mine"])
@pytest.mark.parametrize("asked", ["acme:mine", "mine"])
def test_an_override_is_found_with_any_or_no_prefix(name: str, asked: str) -> None:
    calculator = CostCalculator({name: {"input_per_mtok": 2.0, "output_per_mtok": 8.0}})

    assert calculator.calculate_cost(asked, 1000, 500) == 6000


def test_units_are_converted_and_formatted(calculator: CostCalculator) -> None:
    assert calculator.microcents_to_dollars(7500) == 0.0075
    assert calculator.dollars_to_microcents(0.0075) == 7500
    assert calculator.format_cost(1_234_567) == {
        "microcents": 1_234_567,
        "cents": 123,
        "dollars": 1.234567,
    }
