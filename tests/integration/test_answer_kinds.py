"""Neighbours of the answers in tests/cases: each kind in the forms in which it also comes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar

import pytest
from pydantic_ai import BinaryContent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.ledger.entries import NOT_SENT
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from tests.integration.test_provider_answers import entries_of
from tests.support.answered import answered_model

UNKNOWN = "unknown"
OPENAI, OPENROUTER = "https://api.openai.com/v1", "https://openrouter.ai/api/v1"
ANTHROPIC, GOOGLE = "https://api.anthropic.com", "https://generativelanguage.googleapis.com"
XAI, MOONSHOT = "https://api.x.ai/v1", "https://api.moonshot.ai/v1"
GEMINI_AS_OPENAI = f"{GOOGLE}/v1beta/openai/"
TOKENS = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
DONE = "data: [DONE]"


def chat(model: str = "gpt-5-mini-2025-08-07", **usage: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hello"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {**TOKENS, **usage},
    }


def chunks(*usages: dict[str, Any] | None, model: str = "gpt-5-mini-2025-08-07") -> list[Any]:
    """A stream of as many chunks as usages, the last of which finishes."""
    events: list[Any] = []
    for number, usage in enumerate(usages, 1):
        reason = "stop" if number == len(usages) else None
        choice = {"index": 0, "delta": {"content": "w "}, "finish_reason": reason}
        event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
        events.append({**event, "choices": [choice], **({"usage": usage} if usage else {})})
    return [*events, DONE]


def response(*output: dict[str, Any], model: str = "gpt-5-mini", **more: Any) -> dict[str, Any]:
    text = {"type": "output_text", "text": "Hello", "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    return {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "completed",
        "output": [*output, {**message, "content": [text]}],
        "usage": {
            "input_tokens": 1000,
            "output_tokens": 100,
            "total_tokens": 1100,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **more,
    }


def streamed(complete: dict[str, Any]) -> list[dict[str, Any]]:
    begun = {**complete, "status": "in_progress", "output": [], "usage": None}
    return [
        {"type": "response.created", "sequence_number": 0, "response": begun},
        {
            "type": "response.output_item.added",
            "sequence_number": 1,
            "output_index": 0,
            "item": {
                "type": "message",
                "id": "m",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            },
        },
        {
            "type": "response.output_text.delta",
            "sequence_number": 2,
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
            "delta": "Hello",
            "logprobs": [],
        },
        {"type": "response.completed", "sequence_number": 3, "response": complete},
    ]


def message(model: str = "claude-sonnet-4-6", **usage: Any) -> dict[str, Any]:
    counts = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 0}
    counts |= {"cache_creation_input_tokens": 0}
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**counts, **usage},
    }


def message_stream(start: dict[str, Any], end: dict[str, Any]) -> list[dict[str, Any]]:
    begun = {**message(**start), "content": [], "stop_reason": None}
    return [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "Hello"},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
        {"type": "message_stop"},
    ]


def gemini(model: str = "gemini-2.5-flash", part: Any = None, **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
    content = {"role": "model", "parts": [{"text": "Hello"}, *([part] if part else [])]}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", **more.pop("candidate", {})}],
        "modelVersion": model,
        "responseId": "r",
        "usageMetadata": {**usage, **more},
    }


async def costs(answer: Any, **case: Any) -> str:
    """What a request is booked at, in USD, or `unknown`."""
    kind = "sse" if isinstance(answer, list) else "json"
    told = {"status": case.pop("status", 200), "headers": case.pop("headers", {}), kind: answer}
    case = {"client": "openai-chat", "base_url": OPENAI, "model": "gpt-5-mini", **case}
    [entry] = await entries_of({**case, "stream": kind == "sse", "answers": [told], "why": ""})
    if entry.state != "charged":
        assert entry.error
        return UNKNOWN if entry.state in ("unpriced", "unsettled") else entry.state.value
    assert entry.cost_usd is not None
    return f"{entry.cost_usd.normalize():f}"


def named(host: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", f'{{"{host}": "{provider}"}}')


class TestStatedBills:
    @pytest.mark.parametrize(
        ("usage", "usd"),
        [
            ({"cost": 0.0123}, "0.0123"),
            ({"cost": 0.0005, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.01}},
             "0.0105"),
            ({"cost": 0.0005, "is_byok": True}, UNKNOWN),
            ({"cost": -1}, UNKNOWN),
            ({"cost": "0.1"}, UNKNOWN),
            ({}, UNKNOWN),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("stream", [False, True])
    async def test_openrouters(self, usage: dict[str, Any], usd: str, stream: bool) -> None:
        whole = {**TOKENS, **usage}
        answer = chunks(None, whole, model="acme/x") if stream else chat("acme/x", **usage)
        assert await costs(answer, base_url=OPENROUTER, model="acme/x") == usd

    async def test_openrouters_in_its_responses(self) -> None:
        answer = response(model="acme/x")
        answer["usage"]["cost"] = 0.02
        options = {"client": "openai-responses", "base_url": OPENROUTER, "model": "acme/x"}
        assert await costs(answer, **options) == "0.02"

    async def test_nobody_else_bills_as_openrouter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answer = chat("openai/gpt-5-mini", cost=0.5)
        model = {"model": "openai/gpt-5-mini"}
        assert await costs(chat(cost=9)) == "0.00045"
        assert await costs(answer, base_url="http://10.0.0.5/v1", **model) == UNKNOWN
        foreign = {"base_url": "https://llm.acme-corp.com/v1", **model}
        assert await costs(answer, **foreign) == UNKNOWN
        by_its_client = {"model_class": "OpenRouterModel", "provider": "openrouter"}
        assert await costs(answer, **foreign, **by_its_client) == UNKNOWN
        named("llm.acme-corp.com", "openrouter", monkeypatch)
        assert await costs(answer, **foreign) == "0.5"

    @pytest.mark.parametrize("url", [XAI, "https://eu-west-1.api.x.ai/v1"])
    async def test_xais(self, url: str) -> None:
        at = {"base_url": url, "model": "grok-99"}
        assert await costs(chat("grok-99", cost_in_usd_ticks=12345678), **at) == "0.0012345678"
        assert await costs(chat("grok-99", cost_in_usd_ticks=0), **at) == "0"
        found = chat("grok-99", cost_in_usd_ticks=250000000, num_sources_used=1)
        assert await costs(found, **at) == "0.025"

    async def test_perplexitys(self) -> None:
        at = {"base_url": "https://api.perplexity.ai", "model": "sonar-pro"}
        so_far, whole = dict(TOKENS, completion_tokens=10), dict(TOKENS, cost={"total_cost": 0.01})
        assert await costs(chunks(so_far, whole, model="sonar-pro"), **at) == "0.01"

    @pytest.mark.parametrize(
        ("host", "provider", "cost", "usd"),
        [
            ("litellm.acme-corp.com", None, "0.0006", "0.0006"),
            ("litellm.acme-corp.com", None, "1.05e-05", "0.0000105"),
            ("litellm.acme-corp.com", None, "None", UNKNOWN),
            ("litellm.acme-corp.com", None, "nan", UNKNOWN),
            ("litellm.acme-corp.com", None, "0.0", UNKNOWN),
            ("litellm.acme-corp.com", "openai", "0.0006", "0.00045"),
            ("localhost", None, "0.0006", UNKNOWN),
            ("localhost", "litellm", "0.0006", "0.0006"),
            ("api.openai.com", None, "0.0006", "0.00045"),
        ],
    )
    async def test_litellms(
        self,
        host: str,
        provider: str | None,
        cost: str,
        usd: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if provider:
            named(host, provider, monkeypatch)
        headers = {"x-litellm-response-cost": cost}
        assert await costs(chat(), base_url=f"https://{host}/v1", headers=headers) == usd

    async def test_litellms_at_the_end_of_a_stream(self) -> None:
        answer = chunks(None, {**TOKENS, "cost": 0.0006})
        at = {"base_url": "https://litellm.acme-corp.com/v1"}
        assert await costs(answer, headers={"x-litellm-version": "1.91.0"}, **at) == "0.0006"
        assert await costs(answer, **at) == UNKNOWN

    async def test_a_difference_to_the_list_is_recorded(self) -> None:
        at = {"client": "openai-chat", "base_url": XAI, "model": "grok-4.20", "why": ""}
        answer = {"json": chat("grok-4.20", cost_in_usd_ticks=99)}
        [entry] = await entries_of({**at, "answers": [answer]})
        assert entry.cost_usd == Decimal("9.9E-9")
        assert entry.price_source
        assert "xAI" in entry.price_source
        assert "x-ai/grok-4.20 says 0.0015" in entry.price_source


class TestBesideTokens:
    SEARCH: ClassVar[dict[str, Any]] = {
        "type": "web_search_call",
        "id": "ws",
        "status": "completed",
        "action": {"type": "search", "query": "a", "sources": []},
    }
    CODE: ClassVar[dict[str, Any]] = {
        "type": "code_interpreter_call",
        "id": "ci",
        "status": "completed",
        "code": "1+1",
        "container_id": "c",
        "outputs": [],
    }
    IMAGES: ClassVar[dict[str, Any]] = {
        "image_gen": {
            "input_tokens": 50,
            "output_tokens": 4160,
            "total_tokens": 4210,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 50},
            "output_tokens_details": {"image_tokens": 4160, "text_tokens": 0},
        }
    }

    @pytest.mark.parametrize("stream", [False, True])
    async def test_openais_tools(self, stream: bool) -> None:
        async def usd(answer: dict[str, Any]) -> str:
            return await costs(streamed(answer) if stream else answer, client="openai-responses")

        assert await usd(response()) == "0.00045"
        three = {"web_search": {"num_requests": 3}}
        assert await usd(response(self.SEARCH, tool_usage=three)) == "0.03045"
        assert await usd(response(self.CODE)) == UNKNOWN
        assert await usd(response(tool_usage=self.IMAGES)) == UNKNOWN

    @pytest.mark.parametrize("model", ["gpt-4o-mini-search-preview", "gpt-5-search-api-2025-10-14"])
    async def test_models_that_always_search(self, model: str) -> None:
        assert await costs(chat(model), model=model) == UNKNOWN

    async def test_sources_of_live_search(self) -> None:
        answer = chat("grok-4.20", num_sources_used=4)
        assert await costs(answer, base_url=XAI, model="grok-4.20") == UNKNOWN

    async def test_grounding_with_maps_in_a_stream(self) -> None:
        grounding = {"groundingChunks": [{"maps": {"uri": "u", "title": "t"}}]}
        answer = [gemini(), gemini(candidate={"groundingMetadata": grounding})]
        at = {"client": "google", "base_url": GOOGLE, "model": "gemini-2.5-flash"}
        assert await costs(answer, **at) == UNKNOWN
        assert await costs([gemini(), gemini()], **at) == "0.00055"

    async def test_anthropics_containers(self) -> None:
        at = {"client": "anthropic", "base_url": ANTHROPIC, "model": "claude-sonnet-4-6"}
        box = {"id": "c", "expires_at": "2026-12-01T00:00:00Z"}
        assert await costs({**message(), "container": box}, **at) == UNKNOWN
        searched = message(server_tool_use={"web_search_requests": 1})
        assert await costs({**searched, "container": box}, **at) == "0.0145"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.studio.example.ai/v1",
        "https://openai.acme.com/v1",
        "https://api.openai.com.acme.com/v1",
        "https://abc-8000.proxy.runpod.net/v1",
    ],
)
async def test_a_host_that_speaks_openais_protocol_is_not_openai(url: str) -> None:
    assert await costs(chat(), base_url=url) == UNKNOWN


async def test_a_host_that_speaks_anthropics_protocol_is_not_anthropic() -> None:
    at = {"client": "anthropic", "base_url": "https://llm.acme.com", "model": "claude-sonnet-4-6"}
    assert await costs(message(), **at) == UNKNOWN


class TestRates:
    AUDIO: ClassVar[dict[str, Any]] = {
        "prompt_tokens_details": {"audio_tokens": 800, "text_tokens": 200},
        "completion_tokens_details": {"audio_tokens": 80, "text_tokens": 20},
    }

    async def test_audio_is_not_text(self) -> None:
        model = "gpt-4o-mini-audio-preview"
        assert await costs(chat(model, **self.AUDIO), model=model) == UNKNOWN
        silent = {"prompt_tokens_details": {"audio_tokens": 0}}
        assert await costs(chat("gpt-4o-audio-preview", **silent)) == "0.0035"

    async def test_gemini_takes_one_price_for_what_it_reads_of_some_models_only(self) -> None:
        heard = [{"modality": "AUDIO", "tokenCount": 800}, {"modality": "TEXT", "tokenCount": 200}]
        seen = [{"modality": "IMAGE", "tokenCount": 800}, {"modality": "TEXT", "tokenCount": 200}]
        at = {"client": "google", "base_url": GOOGLE}
        for model, details, usd in (
            ("gemini-2.5-pro", heard, "0.00225"),
            ("gemini-2.5-flash", heard, "0.00111"),
            ("gemini-2.5-flash", seen, "0.00055"),
            ("gemini-2.5-flash-image", heard, UNKNOWN),
        ):
            answer = gemini(model, promptTokensDetails=details)
            assert await costs(answer, model=model, **at) == usd

    async def test_spoken_and_painted_output_is_not_text(self) -> None:
        at = {"client": "google", "base_url": GOOGLE}
        spoken = gemini(candidatesTokensDetails=[{"modality": "AUDIO", "tokenCount": 100}])
        assert await costs(spoken, model="gemini-2.5-flash", **at) == UNKNOWN
        image = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
        painted = gemini("gemini-2.5-flash-image", image)
        assert await costs(painted, model="gemini-2.5-flash-image", **at) == UNKNOWN
        assert await costs([painted], model="gemini-2.5-flash-image", **at) == UNKNOWN


class TestRegions:
    @pytest.mark.parametrize(
        ("region", "model", "usd"),
        [
            ("us.", "gpt-5.4-2026-03-05", "0.0044"),
            ("jp.", "gpt-5.4-2026-03-05", "0.0044"),
            ("eu.", "gpt-5.6-luna", "0.000352"),
            ("eu.", "gpt-4o-2024-08-06", "0.0035"),
            ("eu.", "o3-2025-04-16", "0.0028"),
            ("", "gpt-5.4-2026-03-05", "0.004"),
        ],
    )
    async def test_openais(self, region: str, model: str, usd: str) -> None:
        url = f"https://{region}api.openai.com/v1"
        assert await costs(chat(model), base_url=url, model=model) == usd

    async def test_anthropics(self) -> None:
        at = {"client": "anthropic", "base_url": ANTHROPIC, "model": "claude-sonnet-4-6"}
        assert await costs(message(inference_geo="not_available"), **at) == "0.0045"
        assert await costs(message(inference_geo="mars"), **at) == UNKNOWN
        start = {"inference_geo": "us", "output_tokens": 1}
        assert await costs(message_stream(start, {"output_tokens": 100}), **at) == "0.00495"
        # Tokens cost 1.1 times, cached ones too, and a search what it costs everywhere.
        written = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1000}
        searched = message(
            inference_geo="us",
            cache_creation_input_tokens=1000,
            cache_creation=written,
            server_tool_use={"web_search_requests": 1},
        )
        assert await costs(searched, **at) == "0.02155"

    @pytest.mark.parametrize(
        ("host", "model", "usd"),
        [
            ("us-east5-aiplatform", "claude-haiku-4-5-20251001", "0.00165"),
            ("aiplatform.eu.rep", "claude-haiku-4-5-20251001", "0.00165"),
            ("aiplatform", "claude-haiku-4-5-20251001", "0.0015"),
            ("us-east5-aiplatform", "claude-3-5-haiku-20241022", "0.0012"),
        ],
    )
    async def test_vertex_ais(self, host: str, model: str, usd: str) -> None:
        url = f"https://{host}.googleapis.com/v1"
        at = {"client": "anthropic-vertex", "base_url": url, "model": model}
        assert await costs(message(model), **at) == usd

    async def test_vertex_ais_for_gemini(self) -> None:
        at = {"client": "google", "base_url": "https://europe-west1-aiplatform.googleapis.com"}
        assert await costs(gemini(), model="gemini-2.5-flash", **at) == "0.00055"
        answer = gemini("gemini-3.5-flash")
        everywhere = await costs(answer, model="gemini-3.5-flash", client="google", base_url=GOOGLE)
        assert Decimal(await costs(answer, model="gemini-3.5-flash", **at)) == (
            Decimal(everywhere) * Decimal("1.1")
        )

    @pytest.mark.parametrize(
        ("region", "model", "usd"),
        [
            ("us-east-1", "us.amazon.nova-pro-v1:0", "0.00112"),
            ("eu-west-1", "eu.amazon.nova-pro-v1:0", UNKNOWN),
            ("eu-central-1", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "0.00495"),
            ("eu-central-1", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "0.0045"),
            ("us-gov-west-1", "us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", UNKNOWN),
        ],
    )
    async def test_bedrocks(self, region: str, model: str, usd: str) -> None:
        said = {"message": {"role": "assistant", "content": [{"text": "Hello"}]}}
        answer = {"output": said, "stopReason": "end_turn", "metrics": {"latencyMs": 1}}
        answer["usage"] = {"inputTokens": 1000, "outputTokens": 100, "totalTokens": 1100}
        url = f"https://bedrock-runtime.{region}.amazonaws.com"
        assert await costs(answer, client="bedrock", base_url=url, model=model) == usd


class TestStreams:
    @pytest.mark.parametrize(
        ("usages", "usd"),
        [
            ([None, TOKENS], "0.00045"),
            ([TOKENS, TOKENS, TOKENS], "0.00045"),
            ([{**TOKENS, "completion_tokens": 50, "total_tokens": 1050}, TOKENS], "0.00045"),
            ([dict.fromkeys(TOKENS, 0), TOKENS], "0.00045"),
            ([TOKENS, dict.fromkeys(TOKENS, 0)], "0.00045"),
            (
                [
                    {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000},
                    {"prompt_tokens": 0, "completion_tokens": 100, "total_tokens": 100},
                ],
                "0.00045",
            ),
            (
                [
                    {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
                    {"prompt_tokens": 0, "completion_tokens": 50, "total_tokens": 50},
                ],
                UNKNOWN,
            ),
            ([None, None], UNKNOWN),
        ],
    )
    async def test_usage_counts_once(self, usages: list[Any], usd: str) -> None:
        assert await costs(chunks(*usages)) == usd

    async def test_cached_tokens_of_a_stream_that_repeats_itself(self) -> None:
        usage = {**TOKENS, "prompt_tokens_details": {"cached_tokens": 500}}
        assert await costs(chunks(usage, usage)) == "0.0003375"


class TestUsage:
    async def test_moonshots_cached_tokens(self) -> None:
        at = {"base_url": MOONSHOT, "model": "kimi-k2.5"}
        assert await costs(chat("kimi-k2.5", cached_tokens=500), **at) == "0.00065"
        whole = {**TOKENS, "cached_tokens": 500}
        assert await costs(chunks(None, whole, model="kimi-k2.5"), **at) == "0.00065"

    async def test_thinking_that_only_the_total_tells(self) -> None:
        at = {"base_url": GEMINI_AS_OPENAI, "model": "gemini-2.5-flash"}
        so_far = {"prompt_tokens": 20, "completion_tokens": 98, "total_tokens": 523}
        whole = {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}
        assert await costs(chat("gemini-2.5-flash", **whole), **at) == "0.0015135"
        assert await costs(chunks(so_far, whole, model="gemini-2.5-flash"), **at) == "0.0015135"
        # Elsewhere nobody says what they are.
        assert await costs(chat(**{**whole, "total_tokens": 700})) == UNKNOWN

    @pytest.mark.parametrize(
        ("five", "hour", "usd"), [(1000, 0, "0.0145"), (0, 1000, "0.02125"), (500, 500, UNKNOWN)]
    )
    async def test_cache_writes_of_a_stream_that_searched(
        self, five: int, hour: int, usd: str
    ) -> None:
        split = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
        start = {"cache_creation_input_tokens": 1000, "cache_creation": split}
        end = {"input_tokens": 583, "output_tokens": 100, "cache_creation_input_tokens": 3000}
        at = {"client": "anthropic", "base_url": ANTHROPIC, "model": "claude-sonnet-4-6"}
        got = await costs(message_stream(start, end), **at)
        if usd == UNKNOWN:
            assert got == UNKNOWN
        else:
            rate = Decimal("3.75") if five else Decimal(6)
            assert Decimal(got) == (583 * 3 + 3000 * rate + 100 * 15) / 1_000_000

    @pytest.mark.parametrize(
        "usage",
        [
            {"completion_tokens": -100},
            {"prompt_tokens": 10**30},
            {"prompt_tokens": True, "total_tokens": 101},
            {"completion_tokens": 0, "completion_tokens_details": {"reasoning_tokens": 64}},
            {"prompt_tokens_details": {"cached_tokens": 5000}},
            {"prompt_tokens": 0, "total_tokens": 100},
            {"completion_tokens_details": {"reasoning_tokens": -5}},
            {
                **dict.fromkeys(TOKENS, 0),
                "prompt_tokens_details": {"cached_tokens": 500},
                "completion_tokens_details": {"reasoning_tokens": 64},
            },
        ],
    )
    async def test_what_makes_no_sense_is_unknown(self, usage: dict[str, Any]) -> None:
        assert await costs(chat(**usage)) == UNKNOWN

    @pytest.mark.parametrize("usage", [{"output_tokens": -5}, {"output_tokens": 99.5}])
    async def test_at_anthropic_too(self, usage: dict[str, Any]) -> None:
        at = {"client": "anthropic", "base_url": ANTHROPIC, "model": "claude-sonnet-4-6"}
        assert await costs(message(**usage), **at) == UNKNOWN


class TestErrors:
    @pytest.mark.parametrize("status", [408, 499, 504, 524])
    async def test_who_gave_up_waiting_may_be_billed(self, status: int) -> None:
        error = {"error": {"message": "x", "code": "x"}}
        assert await costs(error, status=status, max_retries=0) == UNKNOWN

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 503])
    async def test_who_refuses_bills_nothing(self, status: int) -> None:
        error = {"error": {"message": "x", "code": "x"}}
        assert await costs(error, status=status, max_retries=0) == "refused"

    async def test_azures_filter_may_be_billed_whoever_asks(self) -> None:
        error = {"error": {"message": "x", "code": "content_filter", "param": "prompt"}}
        url = "https://acme.openai.azure.com/openai/v1"
        assert await costs(error, status=400, base_url=url, max_retries=0) == UNKNOWN

    @pytest.mark.parametrize(
        ("client", "url", "model"),
        [
            ("openai-chat", OPENAI, "gpt-5-mini"),
            ("openai-responses", OPENAI, "gpt-5-mini"),
            ("anthropic", ANTHROPIC, "claude-sonnet-4-6"),
            ("bedrock", "https://bedrock-runtime.us-east-1.amazonaws.com", "amazon.nova-pro-v1:0"),
        ],
    )
    async def test_an_error_before_anything_left_is_no_open_question(
        self, client: str, url: str, model: str
    ) -> None:
        asked = {"client": client, "base_url": url, "model": model, "answers": [{"json": {}}]}
        agent: FastroAgent[str] = FastroAgent(model=answered_model(asked))
        recorder = RequestRecorder()
        nothing_can_send_it = BinaryContent(b"x", media_type="application/x-nobodys")
        with DispatchScope(recorder), pytest.raises(Exception, match=r"(?i)unsupported|nobodys"):
            await agent.run(["Look", nothing_can_send_it])
        [entry] = recorder.entries
        assert entry.state == "refused"
        assert (entry.error or "").startswith(NOT_SENT)


@pytest.mark.parametrize("count", [100.5, float("nan"), float("inf"), -1, 10**30])
async def test_an_odd_count_does_not_lose_what_a_run_paid_for(count: Any) -> None:
    def answer(_: Any, __: Any) -> ModelResponse:
        usage = RequestUsage(input_tokens=count, output_tokens=5)
        return ModelResponse([TextPart("Hello")], usage=usage, model_name="gpt-5-mini")

    agent: FastroAgent[str] = FastroAgent(model=FunctionModel(answer, model_name="gpt-5-mini"))

    @step
    async def ask(context: StepContext[None]) -> str:
        return str((await context.run(agent, "Hi")).output)

    result = await Pipeline("odd", {"ask": ask}, executor="memory").execute({}, None)
    assert result.output == "Hello"
    [entry] = result.entries
    assert entry.state == "unpriced"
    assert "tokens" in (entry.error or "")
