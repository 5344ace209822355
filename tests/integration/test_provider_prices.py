"""The true clients of several providers against a loopback server: what an answer says of its
price, to the entry.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from openai import AsyncOpenAI
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.openrouter import OpenRouterModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openrouter import OpenRouterProvider
from pydantic_ai.settings import ModelSettings

from fastroai import CostCalculator, FastroAgent
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from tests.support.canned import CannedServer


async def entry_of(
    model: Model, settings: ModelSettings | None = None, **options: Any
) -> LedgerEntry:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        await FastroAgent(model=model, **options).run("Hi", model_settings=settings)
    (entry,) = ledger.entries
    return entry


def bill(monkeypatch: pytest.MonkeyPatch, server: CannedServer, provider: str) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({server.host: provider}))


def chat(model: str = "gpt-5-mini-2025-08-07", **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Hello"},
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        **more,
    }


def openai(server: CannedServer) -> Model:
    return OpenAIChatModel(
        "gpt-5-mini", provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key="k")
    )


class TestOpenAI:
    async def test_a_local_endpoint_is_not_billed_as_openai(self) -> None:
        with CannedServer(chat()) as server:
            entry = await entry_of(openai(server))
        assert (entry.state, entry.cost_usd) == (EntryState.UNPRICED, None)
        assert "FASTROAI_PROVIDER_HOSTS" in (entry.error or "")
        assert entry.provider == "openai"

    async def test_it_is_when_its_host_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with CannedServer(chat()) as server:
            bill(monkeypatch, server, "openai")
            entry = await entry_of(openai(server))
        assert (entry.state, entry.cost_usd) == (EntryState.CHARGED, Decimal("0.00045"))
        assert entry.request_fees_usd == 0
        assert entry.price_version == "0.2.3"
        assert (entry.price_source or "").endswith("openai/gpt-5-mini")

    async def test_it_costs_what_that_provider_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with CannedServer(chat("gpt-oss-120b")) as server:
            bill(monkeypatch, server, "cerebras")
            entry = await entry_of(openai(server))
        assert entry.cost_usd == Decimal("0.000425")

    @pytest.mark.parametrize(
        ("tier", "cost"), [("flex", "0.000225"), ("priority", "0.00081"), ("default", "0.00045")]
    )
    async def test_the_tier_of_the_answer_prices_it(
        self, monkeypatch: pytest.MonkeyPatch, tier: str, cost: str
    ) -> None:
        with CannedServer(chat(service_tier=tier)) as server:
            bill(monkeypatch, server, "openai")
            entry = await entry_of(openai(server), ModelSettings(service_tier="priority"))
            assert server.requests[0]["service_tier"] == "priority"
        assert (entry.service_tier, entry.cost_usd) == (tier, Decimal(cost))

    async def test_a_tier_without_a_listed_price_is_not_guessed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with CannedServer(chat(service_tier="scale")) as server:
            bill(monkeypatch, server, "openai")
            entry = await entry_of(openai(server))
        assert (entry.state, entry.cost_usd, entry.service_tier) == (
            EntryState.UNPRICED,
            None,
            "scale",
        )

    async def test_file_searches_are_billed_by_the_call(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        search = {
            "type": "file_search_call",
            "id": "fs_1",
            "status": "completed",
            "queries": ["a"],
            "results": None,
        }
        message = {
            "type": "message",
            "id": "m_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
        }
        answer = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "gpt-5-mini-2025-08-07",
            "status": "completed",
            "output": [search, {**search, "id": "fs_2"}, message],
            "usage": {
                "input_tokens": 1000,
                "output_tokens": 100,
                "total_tokens": 1100,
                "input_tokens_details": {"cached_tokens": 500, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 40},
            },
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        with CannedServer(answer) as server:
            bill(monkeypatch, server, "openai")
            provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="k")
            entry = await entry_of(OpenAIResponsesModel("gpt-5-mini", provider=provider))
        # 0.25 x 500 + 0.025 x 500 + 2 x 100 a million, and two searches at 2.50 a thousand
        assert (entry.cost_usd, entry.request_fees_usd) == (Decimal("0.0053375"), Decimal("0.005"))
        assert entry.further_usage["storage_searches"] == 2


class TestAnthropic:
    ANSWER: ClassVar[dict[str, Any]] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 1000,
            "output_tokens": 100,
            "cache_read_input_tokens": 2000,
            "cache_creation_input_tokens": 3000,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 2000,
                "ephemeral_1h_input_tokens": 1000,
            },
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
            "service_tier": "standard",
        },
    }

    async def test_cache_classes_and_searches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with CannedServer(self.ANSWER) as server:
            bill(monkeypatch, server, "anthropic")
            provider = AnthropicProvider(base_url=server.url, api_key="k")
            entry = await entry_of(AnthropicModel("claude-haiku-4-5", provider=provider))
        # 1 x 1000 + 0.1 x 2000 + 1.25 x 2000 + 2 x 1000 + 5 x 100 a million, and two searches at 10
        # a thousand
        assert (entry.cost_usd, entry.request_fees_usd) == (Decimal("0.0262"), Decimal("0.02"))
        assert (entry.tokens.input_tokens, entry.tokens.cache_write_tokens) == (6000, 3000)
        assert entry.further_usage == {"cache_write_1h_tokens": 1000, "web_searches": 2}

    async def test_what_an_advisor_used_is_billed_at_rates_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        iterations = [
            {"type": kind, "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 0}
            | {"cache_creation_input_tokens": 0}
            for kind in ("message", "advisor_message")
        ]
        iterations[1]["model"] = "claude-opus-4-8"
        usage = {**self.ANSWER["usage"], "iterations": iterations}
        with CannedServer({**self.ANSWER, "usage": usage}) as server:
            bill(monkeypatch, server, "anthropic")
            provider = AnthropicProvider(base_url=server.url, api_key="k")
            entry = await entry_of(AnthropicModel("claude-haiku-4-5", provider=provider))
        assert (entry.state, entry.cost_usd) == (EntryState.UNPRICED, None)
        assert "advisor" in (entry.error or "")


class TestGoogle:
    ANSWER: ClassVar[dict[str, Any]] = {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}
        ],
        "modelVersion": "gemini-3.8-flash-tts",
        "responseId": "r1",
        "usageMetadata": {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 100,
            "totalTokenCount": 1100,
        },
    }

    async def test_the_tier_is_in_a_header(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with CannedServer(self.ANSWER, headers={"x-gemini-service-tier": "FLEX"}) as server:
            bill(monkeypatch, server, "google")
            provider = GoogleProvider(base_url=server.url, api_key="k")
            model = GoogleModel("gemini-3.8-flash-tts", provider=provider)
            flex = await entry_of(model)
        with CannedServer(self.ANSWER) as server:
            bill(monkeypatch, server, "google")
            provider = GoogleProvider(base_url=server.url, api_key="k")
            standard = await entry_of(GoogleModel("gemini-3.8-flash-tts", provider=provider))
        assert (flex.service_tier, standard.service_tier) == ("flex", None)
        assert standard.cost_usd is not None
        assert flex.cost_usd == standard.cost_usd / 2

    async def test_provisioned_throughput_is_not_billed_by_the_token(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = {**self.ANSWER["usageMetadata"], "trafficType": "PROVISIONED_THROUGHPUT"}
        answer = {**self.ANSWER, "usageMetadata": usage, "modelVersion": "gemini-2.5-pro"}
        with CannedServer(answer) as server:
            bill(monkeypatch, server, "google")
            provider = GoogleProvider(base_url=server.url, api_key="k")
            entry = await entry_of(GoogleModel("gemini-2.5-pro", provider=provider))
        assert (entry.state, entry.service_tier) == (EntryState.UNPRICED, "provisioned")


async def test_a_local_server_can_not_say_what_openrouter_bills() -> None:
    answer = chat("openai/gpt-5-mini", provider="OpenAI", usage={**chat()["usage"], "cost": 0.123})
    with CannedServer(answer) as server:
        # This provider names openrouter.ai as its URL, whatever its client was given.
        provider = OpenRouterProvider(
            openai_client=AsyncOpenAI(base_url=f"{server.url}/api/v1", api_key="k")
        )
        entry = await entry_of(OpenRouterModel("openai/gpt-5-mini", provider=provider))
    assert (entry.state, entry.cost_usd) == (EntryState.UNPRICED, None)
    assert "local or private" in (entry.error or "")


async def test_an_override_prices_a_local_endpoint() -> None:
    with CannedServer(chat()) as server:
        calculator = CostCalculator({"gpt-5-mini": {"input_per_mtok": 0, "output_per_mtok": 0}})
        entry = await entry_of(openai(server), cost_calculator=calculator)
    assert (entry.state, entry.cost_usd) == (EntryState.CHARGED, 0)
    assert (entry.price_version, entry.request_fees_usd) == (None, 0)
