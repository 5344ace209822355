"""What an entry keeps of an answer, and what is refused before it is sent."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openrouter import OpenRouterModel
from pydantic_ai.models.test import TestModel as CannedModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.bedrock import BedrockProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.google_cloud import GoogleCloudProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openrouter import OpenRouterProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator
from fastroai.errors import UnknownModelPriceError
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.metering.outcomes import settle_answer
from fastroai.metering.pricer import Pricer
from fastroai.metering.service_tiers import asked_service_tier
from fastroai.testing import OfflineModel, ScriptedModel, fixed_prices

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def openai(name: str = "gpt-5-mini", url: str | None = None, **options: Any) -> Model:
    provider = OpenAIProvider(base_url=url or "https://api.openai.com/v1", api_key="k")
    return OpenAIChatModel(name, provider=provider, **options)


def anthropic(name: str = "claude-opus-4-8") -> Model:
    return AnthropicModel(name, provider=AnthropicProvider(api_key="k"))


def bedrock() -> Model:
    return BedrockConverseModel(
        "us.amazon.nova-lite-v1:0", provider=BedrockProvider(region_name="us-east-1")
    )


def google() -> Model:
    return GoogleModel("gemini-2.5-pro", provider=GoogleProvider(api_key="k"))


def google_cloud() -> Model:
    return GoogleModel("gemini-2.5-pro", provider=GoogleCloudProvider(api_key="k"))


class Ignoring(ScriptedModel):
    unsupported_settings = frozenset({"service_tier"})


def settled(
    model: Model, calculator: Any = None, asked_tier: str | None = None, **response: Any
) -> LedgerEntry:
    usage = response.pop("usage", None) or RequestUsage(input_tokens=1000, output_tokens=100)
    answer = ModelResponse(
        parts=[TextPart("Hi")], usage=usage, model_name=model.model_name, **response
    )
    entry = LedgerEntry(model_asked=model.model_id, sent_at=NOW, service_tier=asked_tier)
    return settle_answer(entry, answer, model, Pricer(calculator or CostCalculator()))


class TestAskedServiceTier:
    @pytest.mark.parametrize(
        ("model", "settings", "tier"),
        [
            (openai(), None, None),
            (openai(), {"temperature": 0.0}, None),
            (openai(), {"service_tier": "flex"}, "flex"),
            (openai(), {"service_tier": "auto"}, "auto"),
            (openai(), {"service_tier": "flex", "openai_service_tier": "priority"}, "priority"),
            (openai(settings={"openai_service_tier": "flex"}), None, "flex"),
            (openai(settings={"service_tier": "flex"}), {"service_tier": "default"}, "default"),
            (WrapperModel(openai()), {"service_tier": "flex"}, "flex"),
            (anthropic(), {"service_tier": "flex"}, None),
            (anthropic(), {"service_tier": "default"}, "standard_only"),
            (anthropic(), {"anthropic_service_tier": "auto"}, "auto"),
            (anthropic(), {"anthropic_speed": "fast"}, "fast-mode"),
            (anthropic("claude-haiku-4-5"), {"anthropic_speed": "fast"}, None),
            (bedrock(), {"service_tier": "priority"}, "priority"),
            (bedrock(), {"service_tier": "auto"}, None),
            (
                bedrock(),
                {"service_tier": "flex", "bedrock_service_tier": {"type": "reserved"}},
                "reserved",
            ),
            (google(), {"service_tier": "flex"}, "flex"),
            (google(), {"service_tier": "auto"}, None),
            (google(), {"google_cloud_service_tier": "flex_only"}, None),
            (google_cloud(), {"google_cloud_service_tier": "pt_then_priority"}, "priority"),
            (google_cloud(), {"google_cloud_service_tier": "pt_only"}, "provisioned"),
            (google_cloud(), {"service_tier": "flex"}, "flex"),
            (Ignoring("Hi"), {"service_tier": "flex"}, None),
            (ScriptedModel("Hi"), {"service_tier": "flex"}, "flex"),
        ],
    )
    def test_it_is_what_the_model_class_sends(
        self, model: Model, settings: Any, tier: str | None
    ) -> None:
        assert asked_service_tier(model, settings) == tier


class TestSettledEntry:
    def test_it_says_who_answered(self) -> None:
        assert settled(openai(), provider_name="azure").provider == "azure"
        assert settled(ScriptedModel("Hi")).provider == "scripted"

    def test_the_tier_of_the_answer_beats_the_one_asked_for(self) -> None:
        entry = settled(openai(), asked_tier="flex", provider_details={"service_tier": "default"})
        assert (entry.service_tier, entry.cost_usd) == ("default", Decimal("0.00045"))

    def test_an_answer_without_a_tier_was_not_given_one(self) -> None:
        """OpenAI names the tier; who does not is something else behind OpenAI's client, and may
        know no tiers.
        """
        entry = settled(openai(), asked_tier="flex")
        assert (entry.service_tier, entry.cost_usd) == (None, Decimal("0.00045"))

    def test_a_tier_that_the_answer_does_not_name_is_the_one_asked_for_where_that_is_given(
        self,
    ) -> None:
        entry = settled(anthropic(), asked_tier="fast-mode")
        # 10 x 1000 + 50 x 100 a million
        assert (entry.service_tier, entry.cost_usd) == ("fast-mode", Decimal("0.015"))
        entry = settled(bedrock(), asked_tier="priority")
        assert (entry.service_tier, entry.state) == ("priority", EntryState.UNPRICED)

    @pytest.mark.parametrize(
        ("details", "tier"),
        [
            ({"processing": "batch"}, "batch"),
            ({"traffic_type": "ON_DEMAND"}, "default"),
            ({"traffic_type": "ON_DEMAND_FLEX"}, "flex"),
            ({"traffic_type": "SOMETHING_NEW"}, None),
            ({"service_tier": 7}, None),
            ({"traffic_type": ["odd"]}, None),
        ],
    )
    def test_answers_name_tiers_in_several_ways(
        self, details: dict[str, Any], tier: str | None
    ) -> None:
        assert settled(google(), provider_details=details).service_tier == tier

    def test_what_else_was_used_is_kept_under_its_name(self) -> None:
        usage = RequestUsage(
            input_tokens=10, output_tokens=5, output_reasoning_tokens=3, audio_seconds=1.5
        )
        usage.web_searches = 2  # type: ignore[attr-defined]  # how RequestUsage carries what it has no field for
        usage.something_else = 9  # type: ignore[attr-defined]  # not a unit of the price list
        entry = settled(openai(), usage=usage)
        assert entry.further_usage == {
            "output_reasoning_tokens": 3,
            "audio_seconds": 1.5,
            "web_searches": 2,
        }
        assert entry.request_fees_usd == Decimal("0.02")

    def test_xais_tools_are_billed_by_the_call_and_not_listed(self) -> None:
        usage = RequestUsage(
            input_tokens=10, output_tokens=5, details={"server_side_tools_web_search": 2}
        )
        entry = settled(
            openai("grok-4"), usage=usage, provider_name="xai", provider_url="https://api.x.ai/v1"
        )
        assert (entry.state, entry.further_usage) == (EntryState.UNPRICED, {"web_searches": 2})
        assert "web searches" in (entry.error or "")

    def test_an_estimate_does_not_tell_fees_apart(self) -> None:
        class Flat:
            def calculate_cost(self, *_: Any, **__: Any) -> int:
                return 42

        entry = settled(openai(), Flat())
        assert (entry.cost_usd, entry.request_fees_usd, entry.price_version) == (
            Decimal("0.000042"),
            None,
            None,
        )

    def test_a_calculator_of_ones_own_need_not_know_fees(self) -> None:
        class Own:
            def price(self, *_: Any, **__: Any) -> Any:
                class Result:
                    total = Decimal("1.5")
                    source = "mine"

                return Result()

        entry = settled(openai(), Own())
        assert (entry.cost_usd, entry.price_source, entry.request_fees_usd) == (
            Decimal("1.5"),
            "mine",
            None,
        )


class TestOpenRouter:
    MODEL = OpenRouterModel("openrouter/auto", provider=OpenRouterProvider(api_key="k"))

    def bill(self, **details: Any) -> tuple[Decimal | None, str | None]:
        entry = settled(self.MODEL, provider_name="openrouter", provider_details=details)
        return entry.cost_usd, entry.price_source

    def test_it_says_what_it_bills(self) -> None:
        assert self.bill(cost=0.0123) == (Decimal("0.0123"), "reported by OpenRouter")

    def test_with_a_key_of_ones_own_the_provider_behind_it_bills_too(self) -> None:
        assert self.bill(cost=0.001, is_byok=True, upstream_inference_cost=0.02)[0] == Decimal(
            "0.021"
        )
        assert self.bill(cost=0.001, is_byok=True)[0] is None

    @pytest.mark.parametrize("cost", ["0.1", True, float("nan"), float("inf"), -1, None])
    def test_what_is_no_amount_is_not_believed(self, cost: Any) -> None:
        assert self.bill(cost=cost)[0] is None


class TestRequirePrice:
    def test_an_unlisted_model_is_refused_with_the_remedies(self) -> None:
        with pytest.raises(UnknownModelPriceError) as caught:
            Pricer(CostCalculator()).require_price(
                openai("no-such-model", "http://me:hunter2@127.0.0.1:8000/v1")
            )
        for part in (
            "no-such-model",
            "openai",
            "127.0.0.1",
            "pricing_overrides",
            "FASTROAI_PROVIDER_HOSTS",
            "FASTROAI_UNPRICED",
        ):
            assert part in str(caught.value)
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "model",
        [
            openai(),
            openai("gpt-5-mini-2025-08-07"),
            anthropic("claude-haiku-4-5-20251001"),
            anthropic("claude-3-5-sonnet-latest"),
            bedrock(),
            google(),
            ScriptedModel("Hi"),
            OfflineModel("no-such-model"),
            CannedModel(),
        ],
    )
    def test_listed_and_simulated_models_pass(self, model: Model) -> None:
        Pricer(CostCalculator()).require_price(model)

    def test_an_override_is_a_price_even_zero(self) -> None:
        pricer = Pricer(fixed_prices("no-such-model", input_per_mtok=0, output_per_mtok=0))
        pricer.require_price(openai("no-such-model", "http://127.0.0.1:8000/v1"))

    def test_a_named_host_has_its_providers_prices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        local = openai(url="http://127.0.0.1:8000/v1")
        with pytest.raises(UnknownModelPriceError):
            Pricer(CostCalculator()).require_price(local)
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8000": "openai"}')
        Pricer(CostCalculator()).require_price(local)

    def test_a_known_model_does_not_vouch_for_its_namesake_elsewhere(self) -> None:
        pricer = Pricer(CostCalculator())
        pricer.require_price(openai())
        with pytest.raises(UnknownModelPriceError):
            pricer.require_price(openai(url="http://127.0.0.1:8000/v1"))

    def test_a_name_that_only_the_answer_explains_passes_until_it_did_not(self) -> None:
        pricer = Pricer(CostCalculator())
        azure = openai("our-deployment", "https://acme.openai.azure.com/openai/v1")
        router = openai("acme/new-model", "https://openrouter.ai/api/v1")
        for model in (azure, router):
            pricer.require_price(model)
            answer = ModelResponse(
                [TextPart("Hi")], usage=RequestUsage(input_tokens=1), model_name="no-such-model"
            )
            entry = settle_answer(LedgerEntry(model_asked=model.model_id), answer, model, pricer)
            assert entry.state is EntryState.UNPRICED
            with pytest.raises(UnknownModelPriceError):
                pricer.require_price(model)

    def test_a_tier_without_a_price_is_refused(self) -> None:
        pricer = Pricer(CostCalculator())
        pricer.require_price(openai("gpt-4"))
        with pytest.raises(UnknownModelPriceError, match="priority"):
            pricer.require_price(openai("gpt-4"), ModelSettings(service_tier="priority"))
