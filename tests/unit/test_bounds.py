"""What a request can cost at most, said before it is answered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import BinaryContent, ImageUrl
from pydantic_ai.messages import (
    CachePoint,
    FilePart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.native_tools import WebSearchTool
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator
from fastroai.ledger.entries import LedgerEntry
from fastroai.metering.outcomes import settle_answer
from fastroai.metering.pricer import Pricer
from fastroai.metering.token_bounds import FOR_TOOLS, PER_PART, PER_REQUEST, tokens_at_most
from fastroai.pricing.max_cost import list_max_cost
from fastroai.pricing.model_names import ModelRef
from fastroai.replay.requests import RequestOfModel
from fastroai.simulation.local_model import estimate_usage
from fastroai.testing import ScriptedModel, fixed_prices
from tests.support.examples import examples

NONE = ModelRequestParameters()
LIMIT: dict[str, Any] = {"max_tokens": 100}


def asked(*content: Any) -> list[ModelMessage]:
    return [ModelRequest(parts=[UserPromptPart(list(content) if len(content) > 1 else content[0])])]


def input_tokens(messages: list[ModelMessage], parameters: ModelRequestParameters = NONE) -> int:
    tokens = tokens_at_most(messages, LIMIT, parameters)
    assert tokens is not None
    return tokens[0]


class TestTokens:
    def test_a_byte_is_a_token_at_most(self) -> None:
        assert input_tokens(asked("x" * 1000)) == PER_REQUEST + 2 * PER_PART + 1000

    def test_bytes_are_those_of_utf_8(self) -> None:
        assert input_tokens(asked("ä" * 1000)) - input_tokens(asked("a" * 1000)) == 1000

    def test_a_character_that_a_tokenizer_writes_out_counts_as_written_out(self) -> None:
        assert input_tokens(asked("\ufdfa")) - input_tokens(asked("")) == 33

    def test_a_lone_surrogate_is_no_obstacle(self) -> None:
        assert input_tokens(asked("\ud800")) > 0

    def test_output_is_bounded_by_max_tokens(self) -> None:
        assert tokens_at_most(asked("Hi"), {"max_tokens": 7}, NONE) == (
            PER_REQUEST + 2 * PER_PART + 2,
            7,
        )

    def test_everything_that_is_sent_counts(self) -> None:
        long = "x" * 10_000
        tool = ToolDefinition(name="t", description=long)
        messages: list[list[ModelMessage]] = [
            [ModelRequest(parts=[SystemPromptPart(long)])],
            [ModelRequest(parts=[UserPromptPart(["a", long, CachePoint()])])],
            [ModelRequest(parts=[ToolReturnPart("t", long, tool_call_id="1")])],
            [ModelRequest(parts=[ToolReturnPart("t", {"a": [long]}, tool_call_id="1")])],
            [ModelRequest(parts=[UserPromptPart("a")], instructions=long)],
            [ModelResponse(parts=[TextPart(long)])],
            [ModelResponse(parts=[ToolCallPart("t", {"a": long})])],
            [ModelResponse(parts=[ToolCallPart("t", long)])],
            [ModelResponse(parts=[ThinkingPart(long)], usage=RequestUsage(output_tokens=1))],
            [
                ModelResponse(
                    parts=[ThinkingPart("", signature=long)], usage=RequestUsage(output_tokens=1)
                )
            ],
            [ModelResponse(parts=[ThinkingPart("")], usage=RequestUsage(output_tokens=10_000))],
        ]
        for sent in messages:
            assert input_tokens(sent) > 10_000
        schema = {"type": "object", "description": long}
        for parameters in (
            ModelRequestParameters(function_tools=[tool]),
            ModelRequestParameters(output_tools=[tool]),
            ModelRequestParameters(
                function_tools=[ToolDefinition(name="t", parameters_json_schema=schema)]
            ),
            ModelRequestParameters(
                output_mode="native", output_object=OutputObjectDefinition(json_schema=schema)
            ),
            ModelRequestParameters(output_mode="prompted", prompted_output_template=long),
        ):
            assert input_tokens(asked("Hi"), parameters) > 10_000

    def test_a_retry_counts_with_its_errors(self) -> None:
        feedback = RetryFeedbackPart("x" * 10_000, retry=RetryInfo(cause="validation_error"))
        retried = ToolReturnPart("t", "x" * 10_000, tool_call_id="1", outcome="retried")
        assert input_tokens([ModelRequest(parts=[feedback])]) > 10_000
        assert input_tokens([ModelRequest(parts=[retried])]) > 20_000

    def test_instructions_count_once(self) -> None:
        turn = ModelRequest(parts=[UserPromptPart("Hi")], instructions="x" * 1000)
        assert input_tokens([turn, turn, turn]) < 2000 + PER_REQUEST

    def test_definitions_count_where_they_are_used(self) -> None:
        """Some models are sent schemas with their definitions written out."""

        class Inner(BaseModel):
            text: str
            other: str

        class Outer(BaseModel):
            fields: tuple[Inner, Inner, Inner, Inner, Inner, Inner, Inner, Inner]
            more: list[Inner]

        tool = ToolDefinition(name="t", parameters_json_schema=Outer.model_json_schema())
        written_out = 9 * len(str(Inner.model_json_schema()))
        assert (
            input_tokens([], ModelRequestParameters(function_tools=[tool]))
            > FOR_TOOLS + PER_REQUEST + written_out
        )

    def test_a_definition_that_uses_itself_ends(self) -> None:
        class Tree(BaseModel):
            children: list[Tree]

        schema = {
            "$defs": {"Tree": Tree.model_json_schema()["$defs"]["Tree"]},
            "$ref": "#/$defs/Tree",
        }
        assert input_tokens(
            [],
            ModelRequestParameters(
                function_tools=[ToolDefinition(name="t", parameters_json_schema=schema)]
            ),
        )

    @pytest.mark.parametrize(
        "messages",
        [
            asked("Look", ImageUrl("https://example.com/a.png")),
            asked("Look", BinaryContent(b"x", media_type="image/png")),
            [
                ModelRequest(
                    parts=[
                        ToolReturnPart(
                            "t", BinaryContent(b"x", media_type="image/png"), tool_call_id="1"
                        )
                    ]
                )
            ],
            [ModelResponse(parts=[FilePart(BinaryContent(b"x", media_type="image/png"))])],
            [ModelResponse(parts=[NativeToolCallPart("web_search", {})])],
            [ModelResponse(parts=[ThinkingPart("")])],
        ],
    )
    def test_what_has_no_size_in_tokens_has_no_bound(self, messages: list[ModelMessage]) -> None:
        assert tokens_at_most(messages, LIMIT, NONE) is None

    @pytest.mark.parametrize(
        "more",
        [
            {"openai_previous_response_id": "r"},
            {"google_cached_content": "c"},
            {"openai_prediction": {"type": "content", "content": "x"}},
            {"extra_body": {"n": 5}},
            {"max_tokens": None},
        ],
    )
    def test_settings_that_may_add_tokens_leave_no_bound(self, more: dict[str, Any]) -> None:
        assert tokens_at_most(asked("Hi"), {**LIMIT, **more}, NONE) is None

    def test_built_in_tools_leave_no_bound(self) -> None:
        assert (
            tokens_at_most(
                asked("Hi"), LIMIT, ModelRequestParameters(native_tools=[WebSearchTool()])
            )
            is None
        )


def bound(
    model: Model, calculator: Any = None, messages: Any = None, settings: Any = None
) -> Decimal | None:
    sent = ModelSettings(**LIMIT) if settings is None else settings
    request = RequestOfModel(messages or asked("Hi"), sent, NONE)
    return Pricer(calculator or CostCalculator()).max_cost(model, request)


def openai(model: str, url: str | None = None, settings: ModelSettings | None = None) -> Model:
    provider = OpenAIProvider(base_url=url or "https://api.openai.com/v1", api_key="k")
    return OpenAIChatModel(model, provider=provider, settings=settings)


class TestUpperBound:
    def test_rates_that_are_added_later_count_from_then_on(self) -> None:
        calculator = CostCalculator()
        listed = bound(openai("gpt-5-mini"), calculator)
        calculator.add_pricing_override("gpt-5-mini", 4000, 8000)
        own = bound(openai("gpt-5-mini"), calculator)
        assert listed is not None
        assert own is not None
        assert own > 100 * listed

    def test_a_host_that_is_named_later_counts_from_then_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calculator, model = CostCalculator(), openai("gpt-5-mini", "http://127.0.0.1:8765/v1")
        assert bound(model, calculator) is None
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", '{"127.0.0.1:8765": "openai"}')
        assert bound(model, calculator) == bound(openai("gpt-5-mini"))

    def test_a_price_list_that_is_updated_counts_from_then_on(self) -> None:
        calculator, model = CostCalculator(), openai("gpt-5-mini")
        listed = bound(model, calculator)
        try:
            set_custom_snapshot(DataSnapshot(providers=[], from_auto_update=False))
            assert bound(model, calculator) is None
        finally:
            set_custom_snapshot(None)
        assert listed is not None
        assert bound(model, calculator) == listed

    def test_it_is_tokens_times_the_highest_rates(self) -> None:
        into = PER_REQUEST + 2 * PER_PART + 2
        usd = bound(ScriptedModel("Hi"), fixed_prices(input_per_mtok=4, output_per_mtok=8))
        # Cache writes cost 125 % of the input rate.
        assert usd == (into * 5 + 100 * 8) / Decimal(1_000_000)

    def test_the_models_own_settings_count(self) -> None:
        assert (
            bound(openai("gpt-4o", settings=ModelSettings(max_tokens=5)), settings=ModelSettings())
            is not None
        )
        assert bound(openai("gpt-4o"), settings=ModelSettings()) is None

    def test_a_higher_tier_may_be_billed_without_being_asked_for(self) -> None:
        into = PER_REQUEST + 2 * PER_PART + 2
        # Priority: 0.45 into and 3.60 out of gpt-5-mini.
        assert (
            bound(openai("gpt-5-mini"))
            == (into * Decimal("0.45") + 100 * Decimal("3.60")) / 1_000_000
        )

    def test_a_free_model_costs_nothing(self) -> None:
        calculator = fixed_prices(input_per_mtok=0, output_per_mtok=0)
        assert bound(ScriptedModel("Hi"), calculator) == 0

    @pytest.mark.parametrize(
        "model",
        [
            openai("gpt-5-mini", "http://127.0.0.1:8000/v1"),
            openai("no-such-model"),
            openai("gpt-4o-search-preview"),
            ScriptedModel("Hi", model_name="sonar-pro"),
        ],
    )
    def test_without_a_price_there_is_none(self, model: Model) -> None:
        assert bound(model) is None

    def test_a_tier_that_is_asked_for_and_not_listed_leaves_none(self) -> None:
        assert (
            bound(openai("gpt-4"), settings=ModelSettings(max_tokens=5, service_tier="priority"))
            is None
        )
        assert bound(openai("gpt-4"), settings=ModelSettings(max_tokens=5)) is not None

    def test_prices_of_someones_own_have_none(self) -> None:
        class Dearer(CostCalculator):
            def price(self, *args: Any, **about: Any) -> Any:
                return super().price(*args, **about)

        class Estimates:
            def calculate_cost(self, *_: Any, **__: Any) -> int:
                return 1

        assert bound(ScriptedModel("Hi"), Dearer()) is None
        assert bound(ScriptedModel("Hi"), Estimates()) is None

    def test_fast_mode_counts_where_it_is_asked_for(self) -> None:
        from pydantic_ai.models.anthropic import AnthropicModel

        model = AnthropicModel("claude-opus-4-8", provider=AnthropicProvider(api_key="k"))
        plain = bound(model)
        fast = bound(model, settings={"max_tokens": 100, "anthropic_speed": "fast"})
        assert plain is not None
        assert fast == 2 * plain


class TestPremiums:
    """What a region takes on top is within the bound, or there is none."""

    @pytest.mark.parametrize(
        ("provider", "model", "url", "context"),
        [
            ("anthropic", "claude-sonnet-4-6", None, {"inference_geo": "us"}),
            ("openai", "gpt-5.4", "https://eu.api.openai.com/v1", {}),
            ("google", "claude-haiku-4-5", "https://us-east5-aiplatform.googleapis.com", {}),
            ("google", "gemini-3.5-flash", "https://us-east5-aiplatform.googleapis.com", {}),
        ],
    )
    def test_a_request_with_one_costs_no_more(
        self, provider: str, model: str, url: str | None, context: dict[str, object]
    ) -> None:
        calculator = CostCalculator()
        most = calculator.max_cost(model, provider=provider, provider_url=url)
        assert most is not None
        # what costs most: all of it written to the cache for an hour
        usage = RequestUsage(input_tokens=1000, output_tokens=100)
        if "claude" in model:
            usage.cache_write_tokens = usage.cache_write_1h_tokens = 1000
        about: dict[str, Any] = {"provider": provider, "provider_url": url}
        with_it = calculator.price(usage, model, context=context, **about).total
        without = calculator.price(usage, model, provider=provider).total
        assert without < with_it <= most.usd(1000, 100)

    @pytest.mark.parametrize(
        ("provider", "model", "url"),
        [
            ("aws", "eu.amazon.nova-pro-v1:0", "https://bedrock-runtime.eu-west-1.amazonaws.com"),
            ("openai", "gpt-realtime-2", "https://eu.api.openai.com/v1"),
            ("openai", "gpt-4o", "https://llm.acme.example/v1"),
            ("openai", "gpt-4o-mini-search-preview", "https://api.openai.com/v1"),
        ],
    )
    def test_where_it_is_not_known_there_is_no_bound(
        self, provider: str, model: str, url: str
    ) -> None:
        assert CostCalculator().max_cost(model, provider=provider, provider_url=url) is None

    @pytest.mark.parametrize("url", ["https://openrouter.ai/api/v1", "https://api.x.ai/v1"])
    def test_whoever_states_the_bill_may_state_another_one_than_the_list(self, url: str) -> None:
        assert bound(openai("grok-4.20" if "x.ai" in url else "openai/gpt-5-mini", url)) is None


text = st.text(max_size=200)
parts = st.one_of(
    st.builds(UserPromptPart, text),
    st.builds(SystemPromptPart, text),
    st.builds(
        ToolReturnPart, st.just("t"), st.one_of(text, st.dictionaries(text, text, max_size=3))
    ),
)
answers = st.one_of(
    st.builds(TextPart, text), st.builds(ToolCallPart, st.just("t"), st.dictionaries(text, text))
)
messages_of_any_kind = st.lists(
    st.one_of(
        st.builds(ModelRequest, st.lists(parts, max_size=3), instructions=st.none() | text),
        st.builds(ModelResponse, st.lists(answers, max_size=3)),
    ),
    max_size=5,
)
HOSTS = ["https://api.openai.com/v1", "https://eu.api.openai.com/v1"]
MODELS = ["gpt-5-mini", "gpt-5.4", "gpt-5.6-sol", "gpt-oss-120b", "o3"]


@examples(200)
@given(
    messages=messages_of_any_kind,
    name=st.sampled_from(MODELS),
    limit=st.integers(0, 20_000),
    answer=st.floats(0, 1),
    cached=st.floats(0, 1),
    tier=st.sampled_from([None, "flex", "priority", "default"]),
    host=st.sampled_from(HOSTS),
)
def test_no_answer_within_max_tokens_costs_more_than_the_bound(
    messages: list[ModelMessage],
    name: str,
    limit: int,
    answer: float,
    cached: float,
    tier: str | None,
    host: str,
) -> None:
    model = openai(name, host)
    pricer = Pricer(CostCalculator())
    request = RequestOfModel(messages, ModelSettings(max_tokens=limit), NONE)
    usd = pricer.max_cost(model, request)
    assert usd is not None
    usage = estimate_usage(messages, NONE, ModelResponse(parts=[]))
    # A byte a token, at worst.
    into = usage.input_tokens = usage.input_tokens * 4
    usage.output_tokens = int(limit * answer)
    usage.cache_read_tokens = int(into * cached)
    usage.cache_write_tokens = into - usage.cache_read_tokens if "5.6" in name else 0
    details = {"service_tier": tier} if tier else None
    response = ModelResponse(
        parts=[TextPart("x")],
        usage=usage,
        model_name=name,
        provider_name="openai",
        provider_url=host,
        provider_details=details,
    )
    entry = settle_answer(LedgerEntry(model_asked=model.model_id), response, model, pricer)
    if entry.cost_usd is not None:
        assert entry.cost_usd <= usd


@pytest.mark.parametrize("provider", providers, ids=lambda provider: provider.id)
def test_no_listed_price_is_above_its_ceiling(provider: Any) -> None:
    calculator = CostCalculator()
    days = [datetime(2026, 11, 20, hour, 30, tzinfo=UTC) for hour in (2, 8, 17)]
    for model in provider.models:
        ceiling = list_max_cost(
            [ModelRef(provider.id, model.id.lower())], at=days[0], tier="fast-mode"
        )
        ceiling = ceiling or list_max_cost([ModelRef(provider.id, model.id.lower())], at=days[0])
        if ceiling is None:
            continue
        contexts = [{}, *(variant.when for variant in model.price_variants or ())]
        flat = not isinstance(model.prices, list) and "tiers" not in repr(model.prices)
        for into in (1000,) if flat else (0, 100_000, 100_001, 200_001, 272_001):
            shares = [
                (0, 0, 0),
                (into, 0, 0),
                (0, into, 0),
                (0, into, into),
                (into // 2, into // 3, into // 4),
            ]
            read, write, hour = shares[into % 5]
            usage = RequestUsage(
                input_tokens=into,
                output_tokens=1_000,
                cache_read_tokens=read,
                cache_write_tokens=write,
                cache_write_1h_tokens=min(hour, write),
            )
            for context in contexts:
                for at in days[:1] if flat else (*days, days[0] + timedelta(days=1)):
                    price = calculator.price(
                        usage, model.id, provider=provider.id, at=at, context=context
                    )
                    assert price.total <= ceiling.usd(into, 1_000), (model.id, into, context, at)
