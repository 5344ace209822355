"""Prices of requests: by whom, when, and exactly how much."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RequestUsage

from fastroai.errors import SettingsError, UnknownModelPriceError
from fastroai.ledger.entries import EntryState, LedgerEntry, total_usd
from fastroai.ledger.recorder import RequestRecorder
from fastroai.pricing.money import usd_to_microcents
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import CostCalculator, Price
from tests.support.examples import examples

USAGE = RequestUsage(input_tokens=1000, output_tokens=500)
OPENAI = "https://api.openai.com/v1"
LOCAL = "http://127.0.0.1:8000/v1"

counts = st.integers(min_value=0, max_value=50_000_000)
rates = st.one_of(
    st.floats(min_value=0, max_value=1000, allow_nan=False, allow_subnormal=False),
    st.decimals(min_value=0, max_value=1000, places=6, allow_nan=False, allow_infinity=False),
)


@pytest.fixture
def calculator() -> CostCalculator:
    return CostCalculator()


def test_a_price_is_exact_and_names_its_source(calculator: CostCalculator) -> None:
    price = calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=OPENAI)

    assert price.total == Decimal("0.0075")
    assert isinstance(price.total, Decimal)
    assert price.source.startswith("genai-prices ")
    assert price.source.endswith("openai/gpt-4o")


def test_a_price_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Price(total=Decimal(1), source="x").total = Decimal(2)  # type: ignore[misc]


def test_the_same_model_costs_differently_by_provider(calculator: CostCalculator) -> None:
    openai = calculator.price(USAGE, "gpt-oss-120b", provider="openai")
    cerebras = calculator.price(USAGE, "gpt-oss-120b", provider="cerebras")

    assert openai.total != cerebras.total
    assert calculator.price(USAGE, "cerebras:gpt-oss-120b") == cerebras


def test_the_url_says_better_than_the_name_who_answered(calculator: CostCalculator) -> None:
    by_url = calculator.price(
        USAGE, "gpt-oss-120b", provider="openai", provider_url="https://api.cerebras.ai/v1"
    )

    assert by_url == calculator.price(USAGE, "gpt-oss-120b", provider="cerebras")


def test_a_model_that_the_answering_provider_does_not_list_is_not_priced_as_anothers(
    calculator: CostCalculator,
) -> None:
    with pytest.raises(UnknownModelPriceError):
        calculator.price(
            USAGE, "gpt-4o", provider="openai", provider_url="https://api.cerebras.ai/v1"
        )
    with pytest.raises(UnknownModelPriceError):
        calculator.price(USAGE, "gpt-4o", provider="groq")


@pytest.mark.parametrize(
    ("provider", "model", "url"),
    [
        ("openai", "gpt-4o", "https://proxy.example.com/v1"),
        ("openai", "gpt-4o", "https://api.openai.com.example.com/v1"),
        ("openai", "gpt-4o", "https://openai.example.com/v1"),
        ("anthropic", "claude-haiku-4-5", "https://claude.example.com"),
        ("google", "gemini-2.5-flash", "https://gemini.example.com"),
        ("openrouter", "openai/gpt-5-mini", "https://router.example.com/api/v1"),
    ],
)
def test_a_host_that_speaks_a_providers_protocol_is_not_its_own(
    calculator: CostCalculator, provider: str, model: str, url: str
) -> None:
    with pytest.raises(UnknownModelPriceError, match="FASTROAI_PROVIDER_HOSTS"):
        calculator.price(USAGE, model, provider=provider, provider_url=url)


@pytest.mark.parametrize(
    ("provider", "model", "url"),
    [
        ("openai", "gpt-4o", "https://eu.api.openai.com/v1"),
        ("azure", "gpt-4o", "https://acme.eastus.models.ai.azure.com"),
        ("x-ai", "grok-4.20", "https://eu-west-1.api.x.ai/v1"),
        ("openai", "gpt-4o", "https://gateway.pydantic.dev/proxy/chat"),
    ],
)
def test_a_provider_has_hosts_that_the_list_does_not_know(
    calculator: CostCalculator, provider: str, model: str, url: str
) -> None:
    at_home = calculator.price(USAGE, model, provider=provider)
    assert calculator.price(USAGE, model, provider=provider, provider_url=url) == at_home


@pytest.mark.parametrize(
    "url", [LOCAL, "http://localhost:11434/v1", "http://10.0.0.5/v1", "http://vllm:8000/v1"]
)
@pytest.mark.parametrize("model", ["gpt-4o", "openai:gpt-4o"])
def test_a_local_endpoint_is_not_billed_as_openai(
    calculator: CostCalculator, url: str, model: str
) -> None:
    with pytest.raises(UnknownModelPriceError, match="local or private"):
        calculator.price(USAGE, model, provider="openai", provider_url=url)


def test_an_override_prices_a_local_endpoint() -> None:
    calculator = CostCalculator({"gpt-4o": {"input_per_mtok": 2, "output_per_mtok": 8}})

    price = calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=LOCAL)

    assert price == Price(total=Decimal("0.006"), source="override 'gpt-4o'")


@pytest.mark.parametrize(
    "url", ["http://127.1/v1", "http://2130706433/v1", "unix:///run/llm.sock", "http://[broken"]
)
def test_a_local_endpoint_is_not_billed_however_it_is_written(
    calculator: CostCalculator, url: str
) -> None:
    with pytest.raises(UnknownModelPriceError):
        calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=url)


@pytest.mark.parametrize(
    "url", ["https://me:hunter2@api.cerebras.ai/v1", "HTTPS://API.Cerebras.AI:443/v1"]
)
def test_a_listed_endpoint_is_known_however_it_is_written(
    calculator: CostCalculator, url: str
) -> None:
    price = calculator.price(USAGE, "gpt-oss-120b", provider="openai", provider_url=url)

    assert price == calculator.price(USAGE, "gpt-oss-120b", provider="cerebras")


class TestNamedHosts:
    def test_what_they_answer_is_billed_as_told(
        self, calculator: CostCalculator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(
            "FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8000": "cerebras", "api.openai.com": "azure"}'
        )

        local = calculator.price(USAGE, "gpt-oss-120b", provider="openai", provider_url=LOCAL)

        assert local == calculator.price(USAGE, "gpt-oss-120b", provider="cerebras")
        assert (
            "azure/"
            in calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=OPENAI).source
        )

    def test_others_are_not(
        self, calculator: CostCalculator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8001": "openai"}')

        with pytest.raises(UnknownModelPriceError, match="FASTROAI_PROVIDER_HOSTS"):
            calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=LOCAL)

    def test_an_override_for_their_provider_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8000": "cerebras"}')
        calculator = CostCalculator({"cerebras:mine": {"input_per_mtok": 1, "output_per_mtok": 0}})

        assert calculator.price(
            USAGE, "mine", provider="openai", provider_url=LOCAL
        ).total == Decimal("0.001")

    def test_a_provider_that_bills_no_tokens_has_no_price(
        self, calculator: CostCalculator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8000": "ollama"}')

        with pytest.raises(UnknownModelPriceError, match="does not bill by token"):
            calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=LOCAL)

    def test_a_value_that_can_not_be_read_is_an_error(
        self, calculator: CostCalculator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", "openai")

        with pytest.raises(SettingsError):
            calculator.price(USAGE, "gpt-4o", provider="openai", provider_url=OPENAI)


@pytest.mark.parametrize("provider", ["function", "test", "offline", None, ""])
def test_a_simulated_model_is_priced_by_its_name_alone(
    calculator: CostCalculator, provider: str | None
) -> None:
    price = calculator.price(USAGE, "gpt-5-mini", provider=provider)

    assert price.total == Decimal("0.00125")
    assert price.source.endswith("openai/gpt-5-mini, by model name")


def test_an_unlisted_provider_with_an_endpoint_of_its_own_has_no_price(
    calculator: CostCalculator,
) -> None:
    with pytest.raises(UnknownModelPriceError):
        calculator.price(
            USAGE, "gpt-4o", provider="acme", provider_url="https://llm.acme.example/v1"
        )


@pytest.mark.parametrize("provider", ["ollama", "vllm", "heroku", "openai-codex"])
def test_a_provider_without_list_prices_has_none(calculator: CostCalculator, provider: str) -> None:
    with pytest.raises(UnknownModelPriceError, match=provider):
        calculator.price(USAGE, "gpt-4o", provider=provider)


@pytest.mark.parametrize("model", ["", "no-such-model", "test", "llama3:8b"])
def test_an_unknown_model_is_an_error_with_the_remedy(
    calculator: CostCalculator, model: str
) -> None:
    with pytest.raises(UnknownModelPriceError, match="pricing_overrides") as caught:
        calculator.price(USAGE, model)

    assert repr(model) in str(caught.value)


def test_an_error_does_not_show_the_credentials_in_a_url(calculator: CostCalculator) -> None:
    with pytest.raises(UnknownModelPriceError) as caught:
        calculator.price(
            USAGE,
            "gpt-4o",
            provider="openai",
            provider_url="http://me:hunter2@127.0.0.1/v1?key=hunter2",
        )

    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    "model",
    ["anthropic.claude-3-5-sonnet-20241022-v2:0", "us.anthropic.claude-3-5-sonnet-20241022-v2:0"],
)
def test_a_bedrock_name_keeps_its_version(calculator: CostCalculator, model: str) -> None:
    price = calculator.price(USAGE, model, provider="bedrock")

    assert "aws/" in price.source
    assert price == calculator.price(USAGE, f"bedrock:{model}")
    assert price == calculator.price(USAGE, model)
    assert calculator.calculate_cost(model, 1000, 500) == usd_to_microcents(price.total)


def test_tiers_are_cliffs_of_one_request(calculator: CostCalculator) -> None:
    small = RequestUsage(input_tokens=150_000, output_tokens=0)
    summed = RequestUsage(input_tokens=450_000, output_tokens=0)
    model = "google:gemini-2.5-pro"

    assert 3 * calculator.price(small, model).total < calculator.price(summed, model).total


def test_the_context_of_a_response_changes_its_price(calculator: CostCalculator) -> None:
    standard = calculator.price(USAGE, "claude-haiku-4-5", provider="anthropic")
    context = {"processing": "batch", "not a string": 7}
    batch = calculator.price(USAGE, "claude-haiku-4-5", provider="anthropic", context=context)

    assert batch.total < standard.total


@pytest.mark.parametrize(
    ("provider", "model", "context"),
    [
        ("openai", "gpt-4", {"service_tier": "priority"}),
        ("openai", "gpt-5-mini", {"service_tier": "scale"}),
        ("azure", "gpt-4o", {"service_tier": "priority"}),
        ("bedrock", "us.amazon.nova-lite-v1:0", {"service_tier": "flex"}),
        ("google", "gemini-2.5-pro", {"service_tier": "provisioned"}),
        ("cerebras", "gpt-oss-120b", {"processing": "batch"}),
        ("anthropic", "claude-haiku-4-5", {"speed": "fast"}),
    ],
)
def test_a_tier_that_is_not_listed_is_not_priced_as_the_standard_one(
    calculator: CostCalculator, provider: str, model: str, context: dict[str, str]
) -> None:
    assert calculator.price(USAGE, model, provider=provider).total > 0

    with pytest.raises(UnknownModelPriceError, match="service tier"):
        calculator.price(USAGE, model, provider=provider, context=context)


@pytest.mark.parametrize("tier", ["default", "standard", "auto", "ON_DEMAND", "standard_only"])
def test_the_standard_tier_has_many_names(calculator: CostCalculator, tier: str) -> None:
    price = calculator.price(
        USAGE, "gpt-oss-120b", provider="cerebras", context={"service_tier": tier}
    )

    assert price == calculator.price(USAGE, "gpt-oss-120b", provider="cerebras")


def test_a_tier_that_nobody_knows_has_no_price(calculator: CostCalculator) -> None:
    with pytest.raises(UnknownModelPriceError, match="something-new"):
        calculator.price(
            USAGE, "gpt-oss-120b", provider="cerebras", context={"service_tier": "something-new"}
        )


def test_groqs_flex_tier_costs_what_the_standard_one_does(calculator: CostCalculator) -> None:
    price = calculator.price(
        USAGE, "openai/gpt-oss-120b", provider="groq", context={"service_tier": "flex"}
    )

    assert price == calculator.price(USAGE, "openai/gpt-oss-120b", provider="groq")


def test_searches_without_a_listed_price_are_not_free(calculator: CostCalculator) -> None:
    usage = RequestUsage(input_tokens=10, output_tokens=5)
    usage.web_searches = 1  # type: ignore[attr-defined]  # how RequestUsage carries what it has no field for

    with pytest.raises(UnknownModelPriceError, match="web searches"):
        calculator.price(usage, "gpt-oss-120b", provider="cerebras")
    with_fee = calculator.price(usage, "sonar-pro", provider="perplexity")
    assert with_fee.request_fees == Decimal("0.014")


@pytest.mark.parametrize("provider", providers, ids=lambda provider: provider.id)
def test_every_listed_price_is_the_one_that_pydantic_ai_finds(
    calculator: CostCalculator, provider: Any
) -> None:
    """Tiers, hours, dates, cache classes and service tiers of each model; `ModelResponse.cost`
    passes them all.
    """
    times = [
        datetime(2025, 3, 1, 12, tzinfo=UTC),
        datetime(2026, 9, 12, 2, 30, tzinfo=UTC),
        datetime(2026, 11, 20, 8, tzinfo=UTC),
        datetime(2027, 2, 1, 17, tzinfo=UTC),
    ]
    chance = random.Random(provider.id)
    for model in provider.models:
        into = chance.choice([0, 10, 100_000, 100_001, 200_000, 200_001, 272_001, 1_000_000])
        read = chance.randrange(into + 1)
        write = chance.randrange(into - read + 1)
        usage = RequestUsage(
            input_tokens=into,
            output_tokens=chance.randrange(100_000),
            cache_read_tokens=read,
            cache_write_tokens=write,
            cache_write_1h_tokens=chance.randrange(write + 1),
        )
        for context in [None, *(variant.when for variant in model.price_variants or ())]:
            at = chance.choice(times)
            response = ModelResponse(
                parts=[],
                usage=usage,
                model_name=model.id,
                provider_name=provider.id,
                provider_details=context,
                timestamp=at,
            )
            try:
                theirs = response.cost().total_price
            except LookupError:  # an id in the list that is no name of the model
                with pytest.raises(UnknownModelPriceError):
                    calculator.price(usage, model.id, provider=provider.id, at=at, context=context)
                continue
            price = calculator.price(usage, model.id, provider=provider.id, at=at, context=context)
            assert price.total == theirs, (model.id, context, at)


def test_the_moment_of_a_request_must_be_aware(calculator: CostCalculator) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        calculator.price(USAGE, "gpt-4o", at=datetime(2026, 1, 1))

    assert calculator.price(USAGE, "gpt-4o", at=datetime(2026, 1, 1, tzinfo=UTC)).total > 0


def test_dated_prices_follow_the_moment() -> None:
    from genai_prices import data_snapshot
    from genai_prices.types import (
        ClauseEquals,
        ConditionalPrice,
        ModelInfo,
        ModelPrice,
        Provider,
        StartDateConstraint,
    )

    prices = [
        ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(1))),
        ConditionalPrice(
            constraint=StartDateConstraint(start_date=datetime(2026, 1, 1).date()),
            prices=ModelPrice(input_mtok=Decimal(2)),
        ),
    ]
    model = ModelInfo(id="dated", match=ClauseEquals(equals="dated"), prices=prices)
    provider = Provider(
        id="acme-list", name="Acme", api_pattern=r"https://acme\.example", models=[model]
    )
    data_snapshot.set_custom_snapshot(
        data_snapshot.DataSnapshot(providers=[provider], from_auto_update=True)
    )
    try:
        calculator = CostCalculator()
        usage = RequestUsage(input_tokens=1_000_000)
        before = calculator.price(
            usage, "dated", provider="acme-list", at=datetime(2025, 12, 31, tzinfo=UTC)
        )
        after = calculator.price(
            usage, "dated", provider="acme-list", at=datetime(2026, 1, 2, tzinfo=UTC)
        )
    finally:
        data_snapshot.set_custom_snapshot(None)

    assert (before.total, after.total) == (Decimal(1), Decimal(2))
    assert " updated 20" in after.source


@pytest.mark.parametrize(
    "usage",
    [
        RequestUsage(input_tokens=-1),
        RequestUsage(output_tokens=-1),
        RequestUsage(input_tokens=100, cache_read_tokens=-1),
        RequestUsage(input_tokens=100, cache_read_tokens=101),
        RequestUsage(input_tokens=100, cache_read_tokens=60, cache_write_tokens=60),
        RequestUsage(input_tokens=1.5),
        RequestUsage(input_tokens=None),
    ],
)
@pytest.mark.parametrize("model", ["gpt-4o", "mine", "no-such-model"])
def test_impossible_usage_is_refused_by_price(usage: RequestUsage, model: str) -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 1, "output_per_mtok": 1}})

    with pytest.raises(ValueError, match="can't be priced"):
        calculator.price(usage, model)


@given(
    model=st.sampled_from(
        ["mine", "gpt-4o", "gemini-2.5-flash", "claude-3-5-sonnet", "gpt-4o-audio-preview"]
    ),
    tokens=st.lists(st.integers(min_value=-1000, max_value=100_000), min_size=7, max_size=7),
)
def test_impossible_counts_never_make_calculate_cost_fail(model: str, tokens: list[int]) -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 1, "output_per_mtok": 1}})
    names = ("cache_read_tokens", "cache_write_tokens", "input_audio_tokens", "output_audio_tokens")
    extra = dict(zip((*names, "cache_audio_read_tokens"), tokens[2:], strict=True))

    assert calculator.calculate_cost(model, tokens[0], tokens[1], **extra) >= 0


def test_cached_tokens_beyond_the_total_are_paid_at_the_cached_rate_only() -> None:
    calculator = CostCalculator(
        {"mine": {"input_per_mtok": 10, "output_per_mtok": 0, "cache_read_per_mtok": 1}}
    )

    assert calculator.calculate_cost("mine", 100, 0, cache_read_tokens=1500) == 1500


def test_an_estimate_looks_elsewhere_when_the_provider_does_not_list_the_model(
    calculator: CostCalculator,
) -> None:
    assert calculator.calculate_cost("openrouter:gpt-4o", 1000, 500) == 7500
    assert calculator.calculate_cost("acme:gpt-4o", 1000, 500) == 7500
    assert calculator.calculate_cost("ollama:gpt-4o", 1000, 500) == 0


@given(
    tokens=st.tuples(counts, counts, counts, counts),
    input_rate=rates,
    output_rate=rates,
    read_rate=st.none() | rates,
    write_rate=st.none() | rates,
)
@examples(200)
def test_an_override_is_the_decimal_formula(
    tokens: tuple[int, int, int, int],
    input_rate: float | Decimal,
    output_rate: float | Decimal,
    read_rate: float | Decimal | None,
    write_rate: float | Decimal | None,
) -> None:
    plain, read, write, output = tokens
    calculator = CostCalculator()
    calculator.add_pricing_override(
        "mine",
        input_rate,
        output_rate,
        cache_read_per_mtok=read_rate,
        cache_write_per_mtok=write_rate,
    )
    with localcontext() as context:
        context.prec = 400
        full = Decimal(str(input_rate))
        expected = (
            plain * full
            + read * (full / 10 if read_rate is None else Decimal(str(read_rate)))
            + write * (full * 5 / 4 if write_rate is None else Decimal(str(write_rate)))
            + output * Decimal(str(output_rate))
        ) / 10**6
        usage = RequestUsage(
            input_tokens=plain + read + write,
            output_tokens=output,
            cache_read_tokens=read,
            cache_write_tokens=write,
        )

    with localcontext() as context:
        context.prec = 3
        price = calculator.price(usage, "mine")
    cost = calculator.calculate_cost(
        "mine", plain + read + write, output, cache_read_tokens=read, cache_write_tokens=write
    )

    # Rates may have exponents down to 1e-307 as floats; beyond 100 digits nothing is promised.
    assert abs(price.total - expected) <= expected * Decimal("1e-90")
    assert cost == usd_to_microcents(price.total)


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=30))
def test_the_sum_of_requests_is_exact_and_rounded_once(requests: list[tuple[int, int]]) -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 0.15, "output_per_mtok": 0.6}})
    ledger = RequestRecorder()
    for input_tokens, output_tokens in requests:
        tokens = TokenCounts(input_tokens=input_tokens, output_tokens=output_tokens)
        usage = RequestUsage(input_tokens=input_tokens, output_tokens=output_tokens)
        sent = LedgerEntry(model_asked="mine", tokens=tokens)
        ledger.record(sent)
        ledger.record(
            sent.settled(EntryState.CHARGED, cost_usd=calculator.price(usage, "mine").total)
        )

    picodollars = sum(150_000 * i + 600_000 * o for i, o in requests)
    assert total_usd(ledger.entries) == ledger.spent_usd() == Decimal(picodollars) / 10**12
    quotient, rest = divmod(picodollars, 10**6)
    assert usd_to_microcents(ledger.spent_usd()) == quotient + (
        rest * 2 > 10**6 or (rest * 2 == 10**6 and quotient % 2)
    )


def test_a_thousand_calls_below_a_microcent_add_up(calculator: CostCalculator) -> None:
    usage = RequestUsage(input_tokens=6)
    price = calculator.price(usage, "gpt-4o-mini").total

    assert price == Decimal("0.0000009")
    assert usd_to_microcents(sum([price] * 1000, Decimal(0))) == 900


def test_an_estimate_rounds_halves_to_even() -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 0.5, "output_per_mtok": 0}})

    assert [calculator.calculate_cost("mine", n, 0) for n in (1, 2, 3, 5)] == [0, 1, 2, 2]


def test_zero_is_a_price() -> None:
    free = {"input_per_mtok": 0, "output_per_mtok": 0}
    cached_free = {
        "input_per_mtok": 10,
        "output_per_mtok": 0,
        "cache_read_per_mtok": 0,
        "cache_write_per_mtok": 0,
    }
    calculator = CostCalculator({"gpt-4o": free, "cached": cached_free})

    assert calculator.price(USAGE, "gpt-4o") == Price(total=Decimal(0), source="override 'gpt-4o'")
    assert (
        calculator.calculate_cost("cached", 1000, 0, cache_read_tokens=400, cache_write_tokens=400)
        == 2000
    )


@pytest.mark.parametrize(
    "asked",
    [
        "gpt-4o",
        "GPT-4o",
        "openai:gpt-4o",
        "openai-chat:gpt-4o",
        "azure:gpt-4o",
        "gpt-4o-2024-08-06",
        "openai:gpt-4o-2024-08-06",
        "openrouter:openai/gpt-4o",
        "acme:gpt-4o",
    ],
)
def test_an_override_matches_versioned_and_prefixed_names(asked: str) -> None:
    calculator = CostCalculator({"gpt-4o": {"input_per_mtok": 2, "output_per_mtok": 8}})

    assert calculator.price(USAGE, asked).source == "override 'gpt-4o'"


@pytest.mark.parametrize(
    "asked", ["gpt-4o-mini", "gpt-4", "gpt-4o-audio-preview", "ft:gpt-4o:acme::abc"]
)
def test_an_override_does_not_match_another_model(asked: str) -> None:
    calculator = CostCalculator({"gpt-4o": {"input_per_mtok": 2, "output_per_mtok": 8}})

    assert "override" not in _source(calculator, asked)


@pytest.mark.parametrize(
    "name", ["phi:latest", "llama3:8b", "anthropic.claude-3-5-sonnet-20241022-v2:0"]
)
def test_an_override_for_a_name_with_a_colon_is_for_that_name(name: str) -> None:
    calculator = CostCalculator({name: {"input_per_mtok": 1, "output_per_mtok": 1}})
    tail = name.rpartition(":")[2]

    assert _source(calculator, name) == f"override {name!r}"
    assert _source(calculator, name, provider="ollama") == f"override {name!r}"
    assert "override" not in _source(calculator, f"gemma:{tail}")


def test_the_closest_override_wins() -> None:
    def rate(usd: float) -> dict[str, float]:
        return {"input_per_mtok": usd, "output_per_mtok": usd}

    calculator = CostCalculator(
        {
            "azure:gpt-4o": rate(1),
            "gpt-4o": rate(2),
            "gpt-4o-2024-08-06": rate(3),
            "openai:gpt-4o": rate(4),
        }
    )

    assert _source(calculator, "gpt-4o", provider="azure") == "override 'azure:gpt-4o'"
    assert _source(calculator, "gpt-4o", provider="openai-responses") == "override 'openai:gpt-4o'"
    assert _source(calculator, "gpt-4o", provider="groq") == "override 'gpt-4o'"
    assert _source(calculator, "gpt-4o") == "override 'gpt-4o'"
    assert _source(calculator, "gpt-4o-2024-08-06") == "override 'gpt-4o-2024-08-06'"
    assert _source(calculator, "gpt-4o-2024-11-20") == "override 'gpt-4o'"


def test_an_override_with_a_provider_is_for_that_provider() -> None:
    calculator = CostCalculator({"azure:gpt-4o": {"input_per_mtok": 2, "output_per_mtok": 8}})

    assert _source(calculator, "gpt-4o", provider="openai").startswith("genai-prices")
    assert _source(calculator, "gpt-4o") == "override 'azure:gpt-4o'"


def test_overrides_are_copied() -> None:
    overrides = {"mine": {"input_per_mtok": 2.0, "output_per_mtok": 8.0}}
    calculator = CostCalculator(overrides)
    overrides["mine"]["input_per_mtok"] = 1000.0
    overrides["gpt-4o"] = {"input_per_mtok": 0.0, "output_per_mtok": 0.0}
    calculator.add_pricing_override("other", 1, 1)

    assert calculator.calculate_cost("mine", 1000, 500) == 6000
    assert calculator.calculate_cost("gpt-4o", 1000, 500) == 7500
    assert set(overrides) == {"mine", "gpt-4o"}


@pytest.mark.parametrize(
    "rate", [-1, -0.001, float("nan"), float("inf"), Decimal("NaN"), "2", True, [1]]
)
@pytest.mark.parametrize("key", ["input_per_mtok", "cache_read_per_mtok"])
def test_a_rate_that_is_no_amount_is_refused(rate: Any, key: str) -> None:
    with pytest.raises(ValueError, match=rf"'mine': {key} must be a finite number"):
        CostCalculator({"mine": {"input_per_mtok": 1, "output_per_mtok": 1, key: rate}})


def test_rates_must_be_complete_and_known() -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['input'\]. Allowed: input_per_mtok"):
        CostCalculator({"mine": {"input": 1, "output_per_mtok": 1}})
    with pytest.raises(ValueError, match="lacks output_per_mtok"):
        CostCalculator({"mine": {"input_per_mtok": 1}})
    with pytest.raises(ValueError, match="must map rates"):
        CostCalculator({"mine": (1, 2)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="must name a model"):
        CostCalculator().add_pricing_override(" ", 1, 1)


def test_a_refused_override_changes_nothing() -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 2, "output_per_mtok": 8}})
    with pytest.raises(ValueError, match="-1"):
        calculator.add_pricing_override("mine", -1, 1)

    assert calculator.calculate_cost("mine", 1000, 500) == 6000


def test_a_calculator_survives_pickling() -> None:
    calculator = CostCalculator({"mine": {"input_per_mtok": 2, "output_per_mtok": 8}})

    assert pickle.loads(pickle.dumps(calculator)).calculate_cost("mine", 1000, 500) == 6000


def test_the_price_list_is_only_loaded_when_a_price_is_asked_for() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['pydantic_ai'] = None\n"
        "import importlib.util, pathlib\n"
        "root = pathlib.Path(importlib.util.find_spec('fastroai').origin).parent\n"
        "package = types.ModuleType('fastroai'); package.__path__ = [str(root)]\n"
        "sys.modules['fastroai'] = package\n"
        "from fastroai.usage import CostCalculator\n"
        "calculator = CostCalculator({'mine': {'input_per_mtok': 2, 'output_per_mtok': 8}})\n"
        "assert calculator.calculate_cost('mine', 1000, 500) == 6000\n"
        "assert 'genai_prices' not in sys.modules\n"
        "assert calculator.calculate_cost('gpt-4o', 1000, 500) == 7500\n"
        "assert 'genai_prices' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _source(calculator: CostCalculator, model: str, provider: str | None = None) -> str:
    try:
        return calculator.price(USAGE, model, provider=provider).source
    except UnknownModelPriceError:
        return "unknown"
