"""Prices of one's own: every kind of rate, from a day on, in code or in a file."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator, FastroAgent
from fastroai.errors import SettingsError
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.ledger.repricing import what_if
from fastroai.pricing.rates import KINDS, Rates
from fastroai.pricing.token_counts import TokenCounts
from fastroai.testing import ScriptedModel

M = 1_000_000
BASE = {"input_per_mtok": 2, "output_per_mtok": 8}
USAGE = RequestUsage(input_tokens=M, output_tokens=M)
MARCH = datetime(2026, 3, 15, tzinfo=UTC)
JUNE = datetime(2026, 6, 15, tzinfo=UTC)


def usd(rates: dict[str, Any], context: dict[str, Any] | None = None, **counts: Any) -> Decimal:
    usage = RequestUsage(**{"input_tokens": M, "output_tokens": M, **counts})
    return CostCalculator({"mine": {**BASE, **rates}}).price(usage, "mine", context=context).total


LONG = {"base": 2, "tiers": [{"start": 200_000, "price": 4}]}


@pytest.mark.parametrize(
    ("tokens", "tier", "per_mtok"),
    [
        (200_000, None, 2),
        (200_001, None, 4),
        # A tier's plain rate holds at each size, and one that it lacks is the model's.
        (200_001, "flex", 1),
        (200_001, "priority", 4),
    ],
)
def test_a_long_context_has_rates_of_its_own(tokens: int, tier: str | None, per_mtok: int) -> None:
    tiers = {"flex": {"input_per_mtok": 1}, "priority": {"output_per_mtok": 9}}
    calculator = CostCalculator({"mine": {**BASE, "input_per_mtok": LONG, "tiers": tiers}})
    usage = RequestUsage(input_tokens=tokens)
    price = calculator.price(usage, "mine", context={"service_tier": tier} if tier else None)
    assert price.total == Decimal(tokens) * per_mtok / M
    most = calculator.max_cost("mine")
    assert most is not None
    assert most.usd(tokens, 0) == Decimal(tokens) * (5 if tokens > 200_000 else Decimal("2.5")) / M


@pytest.mark.parametrize(
    "rate",
    [{"base": 1}, {"base": 1, "tiers": []}, {"base": 1, "tiers": [{"start": -1, "price": 2}]}],
)
def test_a_rate_in_steps_that_says_too_little_is_refused(rate: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="base and tiers of start and price"):
        CostCalculator({"mine": {**BASE, "input_per_mtok": rate}})


@pytest.mark.parametrize(
    ("rates", "counts", "total"),
    [
        ({}, {}, 10),
        ({"cache_read_per_mtok": 1}, {"cache_read_tokens": M}, 9),
        ({"cache_write_per_mtok": 3}, {"cache_write_tokens": M}, 11),
        (
            {"cache_write_1h_per_mtok": 4},
            {"cache_write_tokens": M, "cache_write_1h_tokens": M // 2},
            Decimal("11.25"),
        ),
        ({"input_audio_per_mtok": 32}, {"input_audio_tokens": M // 2}, 25),
        (
            {"input_audio_per_mtok": 32, "cache_audio_read_per_mtok": 1},
            {
                "input_audio_tokens": M,
                "cache_read_tokens": M // 2,
                "cache_audio_read_tokens": M // 2,
            },
            Decimal("24.5"),
        ),
        ({"output_audio_per_mtok": 64}, {"output_audio_tokens": M}, 66),
        ({"output_image_per_mtok": 30}, {"output_image_tokens": M}, 32),
        ({"output_reasoning_per_mtok": 3}, {"output_reasoning_tokens": M}, 5),
        ({"per_request": 0.5}, {}, Decimal("10.5")),
        ({"per_web_search": 0.01}, {"web_searches": 3}, Decimal("10.03")),
        ({"per_file_search": 0.0025}, {"storage_searches": 2}, Decimal("10.005")),
    ],
)
def test_each_kind_of_rate(rates: dict[str, Any], counts: dict[str, Any], total: Any) -> None:
    assert usd(rates, **counts) == total


def test_fees_are_told_apart() -> None:
    calculator = CostCalculator({"mine": {**BASE, "per_request": 0.5}})
    assert calculator.price(USAGE, "mine").request_fees == Decimal("0.5")


def test_tiers_and_batch() -> None:
    rates = {
        "tiers": {"flex": {"input_per_mtok": 1}, "fast-mode": {"output_per_mtok": 16}},
        "batch": {"input_per_mtok": 1, "output_per_mtok": 4},
    }
    assert usd(rates, {"service_tier": "flex"}) == 9
    assert usd(rates, {"processing": "batch"}) == 5
    assert usd(rates, {"speed": "fast"}) == 18
    assert usd(rates, {"service_tier": "default"}) == 10


def test_rates_hold_from_a_day_on() -> None:
    dated = [
        {**BASE, "valid_from": "2026-03-01"},
        {"input_per_mtok": 1, "output_per_mtok": 1, "valid_from": "2026-06-01"},
    ]
    calculator = CostCalculator({"gpt-4o": dated})
    before = datetime(2026, 2, 28, 23, 59, tzinfo=UTC)
    assert calculator.price(USAGE, "gpt-4o", at=JUNE).total == 2
    assert calculator.price(USAGE, "gpt-4o", at=MARCH).total == 10
    assert "genai-prices" in calculator.price(USAGE, "gpt-4o", at=before).source


@pytest.mark.parametrize(
    "rates",
    [
        {"tokens_per_usd": 1},
        {"per_request": -1},
        {"tiers": {"flex": {"unknown": 1}}},
        {"tiers": [1]},
        {"batch": {"input_per_mtok": float("nan")}},
        {"valid_from": "soon"},
    ],
)
def test_what_is_no_rate_is_refused(rates: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mine"):
        CostCalculator({"mine": {**BASE, **rates}})


class TestDiscounts:
    def total(self, *discounts: dict[str, Any], **about: Any) -> Decimal:
        asked = {"provider": "openai", "at": JUNE, **about}
        return CostCalculator(discounts=discounts).price(USAGE, "gpt-4o", **asked).total

    def test_one_for_a_provider(self) -> None:
        tenth = {"provider": "openai", "factor": 0.9}
        assert self.total(tenth) == Decimal("11.25")
        assert self.total(tenth, provider="azure") == Decimal("12.5")

    def test_the_most_special_counts_then_the_latest(self) -> None:
        assert self.total(
            {"factor": 0.5},
            {"provider": "openai", "model": "gpt-4o-2024-08-06", "factor": 0.1},
            {"provider": "openai", "model": "gpt-4o", "factor": 0.9},
        ) == Decimal("11.25")
        assert self.total(
            {"factor": 0.5, "valid_from": "2026-01-01"},
            {"factor": 2, "valid_from": "2026-06-01"},
            {"factor": 9, "valid_from": "2026-07-01"},
        ) == Decimal(25)

    def test_an_account_is_told_by_its_host(self) -> None:
        ours = {"host": "acme.openai.azure.com", "factor": 0.8}
        azure = {"provider": "azure"}
        for host, usd in (("acme", 10), ("other", Decimal("12.5"))):
            url = f"https://{host}.openai.azure.com/openai"
            assert self.total(ours, **azure, provider_url=url) == usd

    def test_the_price_says_so_and_its_fees_too(self) -> None:
        usage = RequestUsage(input_tokens=10, output_tokens=5, web_searches=100)
        calculator = CostCalculator(discounts=[{"factor": 0.5}])
        price = calculator.price(usage, "gpt-5-mini", provider="openai")
        assert price.request_fees == Decimal("0.5")
        assert "0.5 times" in price.source

    def test_ones_own_rates_are_as_they_are(self) -> None:
        calculator = CostCalculator({"mine": BASE}, discounts=[{"factor": 0.5}])
        assert calculator.price(USAGE, "mine").total == 10

    @pytest.mark.parametrize("entry", [{}, {"factor": -1}, {"factor": 1, "who": "me"}, 3])
    def test_what_is_none_is_refused(self, entry: Any) -> None:
        with pytest.raises(ValueError, match="discount"):
            CostCalculator(discounts=[entry])


DOCUMENT = {
    "models": {"acme": {**BASE, "per_request": 0.25}, "openai:gpt-4o": [{**BASE}]},
    "discounts": [{"provider": "openai", "factor": 0.5, "valid_from": "2026-06-01"}],
}
YAML = """
models:
  acme: {input_per_mtok: 2, output_per_mtok: 8, per_request: 0.25}
  openai:gpt-4o:
    - {input_per_mtok: 2, output_per_mtok: 8}
discounts:
  - {provider: openai, factor: 0.5, valid_from: 2026-06-01}
"""


@pytest.mark.parametrize(("name", "text"), [("p.json", json.dumps(DOCUMENT)), ("p.yaml", YAML)])
class TestFile:
    @pytest.fixture(autouse=True)
    def prices(self, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / name).write_text(text)
        monkeypatch.setenv("FASTROAI_PRICES", str(tmp_path / name))

    def test_it_has_rates_and_discounts(self, name: str) -> None:
        calculator = CostCalculator()
        price = calculator.price(USAGE, "acme")
        assert (price.total, price.source) == (Decimal("10.25"), f"override 'acme' of {name}")
        assert calculator.price(USAGE, "gpt-4o", provider="openai").total == 10
        listed = calculator.price(USAGE, "gpt-4o-mini", provider="openai", at=MARCH).total
        agreed = calculator.price(USAGE, "gpt-4o-mini", provider="openai", at=JUNE).total
        assert agreed * 2 == listed

    def test_what_is_given_in_code_comes_first(self) -> None:
        mine = {"acme": {"input_per_mtok": 0, "output_per_mtok": 1}}
        assert CostCalculator(mine).price(USAGE, "acme").total == 1

    def test_estimates_and_what_if_know_it(self) -> None:
        assert CostCalculator().calculate_cost("acme", M, M) == 10_250_000
        entry = LedgerEntry(
            state=EntryState.CHARGED,
            model_asked="openai:gpt-4o-mini",
            cost_usd=Decimal(1),
            tokens=TokenCounts(input_tokens=M, output_tokens=M),
        )
        assert what_if([entry], "acme").usd == Decimal("10.25")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", "{"),
        ("p.yaml", "a: [b"),
        ("p.json", "[]"),
        ("p.json", '{"modells": {}}'),
        ("p.json", '{"models": {"acme": {"input_per_mtok": 1}}}'),
        ("p.json", None),
    ],
)
def test_a_file_that_says_no_prices_is_an_error(
    name: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("FASTROAI_PRICES", str(tmp_path / name))
    with pytest.raises(SettingsError, match="FASTROAI_PRICES"):
        CostCalculator().price(USAGE, "gpt-4o")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"models": {"acme": {\n"input_per_mtok" 1}}}', "line 2"),
        ('{"models": {"acme": {"input_per_mtok": 1}}}', "'acme' lacks output_per_mtok"),
        ('{"models": ["acme"]}', "models must map"),
        ('{"discounts": {"factor": 1}}', "discounts must be a list"),
        ('{"discounts": [{"factor": 1}, {"factor": "half"}]}', "discount 2 of 2"),
        ('{"models": {"acme": 3}}', "'acme' must map"),
    ],
)
async def test_a_lone_agent_is_told_what_is_wrong_with_the_file_before_it_sends(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    monkeypatch.setenv("FASTROAI_PRICES", str(path))
    model = ScriptedModel("Hi")
    with pytest.raises(SettingsError) as raised:
        await FastroAgent(model=model).run("Hi")
    assert all(word in str(raised.value) for word in ("p.json", said, "unset"))
    assert model.prompts == []


_OTHER = ("audio", "image", "video", "search")
_OF_TEXT = [kind for kind in KINDS if not any(other in kind for other in _OTHER)]


@given(
    st.dictionaries(
        st.sampled_from(_OF_TEXT),
        st.decimals(0, 100, places=3),
    ),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_request_for_text_costs_more_than_its_bound(
    rates: dict[str, Decimal], into: int, out: int, cached: float, hour: float
) -> None:
    mine = Rates({"input_per_mtok": Decimal(1), "output_per_mtok": Decimal(1), **rates})
    read = int(into * cached)
    usage = RequestUsage(
        input_tokens=into,
        output_tokens=out,
        cache_read_tokens=read,
        cache_write_tokens=into - read,
        cache_write_1h_tokens=int((into - read) * hour),
        output_reasoning_tokens=int(out * hour),
    )
    assert mine.usd(usage)[0] <= mine.max_cost.usd(into, out)
