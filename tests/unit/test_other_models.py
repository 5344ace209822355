"""Embeddings, images and realtime sessions: what a step asks for is booked, whoever asks."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import httpx2 as httpx
import pytest
from openai import AsyncOpenAI
from pydantic_ai.embeddings import Embedder, EmbeddingModel, EmbeddingResult
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.embeddings.wrapper import WrapperEmbeddingModel
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.images import ImageGenerator
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.images.test import _TINY_PNG
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.decision import DecisionModel, DecisionResponse
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.realtime.codec import RealtimeConnection, SessionUsage
from pydantic_ai.realtime.model import RealtimeModel
from pydantic_ai.usage import RequestUsage

from fastroai.ledger.entries import Attribution, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.replay.journal import Journal

EMBEDDED = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "usage": {"prompt_tokens": 100_000, "total_tokens": 100_000},
}
DRAWN = {
    "created": 1_700_000_000,
    "data": [{"b64_json": base64.b64encode(_TINY_PNG).decode()}],
    "usage": {
        "input_tokens": 1000,
        "output_tokens": 2000,
        "total_tokens": 3000,
        "input_tokens_details": {"text_tokens": 1000, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 2000},
    },
}


def provider(*answers: tuple[int, object], retries: int = 0) -> OpenAIProvider:
    """OpenAI's own client, answered from memory at OpenAI's address; the last answer goes on."""
    left = list(answers)

    async def answer(request: httpx.Request) -> httpx.Response:
        status, body = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, json=body, request=request)

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return OpenAIProvider(
        openai_client=AsyncOpenAI(api_key="k", http_client=client, max_retries=retries)
    )


def embedding(*answers: tuple[int, object], retries: int = 0) -> OpenAIEmbeddingModel:
    return OpenAIEmbeddingModel(
        "text-embedding-3-small", provider=provider(*answers, retries=retries)
    )


class Acme(EmbeddingModel):
    """A user's own, which sends by itself, whatever it holds."""

    model_name = "acme-embed-1"  # type: ignore[assignment]
    system = "acme"  # type: ignore[assignment]

    def __init__(self, other: EmbeddingModel | None = None) -> None:
        super().__init__()
        self.other = other

    async def embed(self, inputs: Any, **options: Any) -> EmbeddingResult:
        usage = RequestUsage(input_tokens=10)
        return EmbeddingResult(
            [[0.1]],
            inputs=[inputs],
            usage=usage,
            model_name="a",
            provider_name="acme",
            **options,
        )


async def books_of(ask: Any) -> list[LedgerEntry]:
    ledger = RequestRecorder()
    with DispatchScope(ledger, Attribution(step_id="s")):
        await ask()
    return list(ledger.of_step("s"))


def costs(entries: list[LedgerEntry]) -> list[str]:
    return [f"{entry.state.value} {entry.cost_usd}" for entry in entries]


class TestEmbeddings:
    async def test_an_embedder_is_booked_at_its_model_s_price(self) -> None:
        embedder = Embedder(embedding((200, EMBEDDED)))
        (entry,) = await books_of(lambda: embedder.embed_documents(["a"]))
        assert costs([entry]) == ["charged 0.002"]
        assert entry.model_asked == "openai:text-embedding-3-small"
        assert entry.tokens.input_tokens == 100_000
        assert entry.provider_host == "api.openai.com"

    async def test_a_model_that_is_asked_by_hand_is_booked(self) -> None:
        model = embedding((200, EMBEDDED))
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert costs(entries) == ["charged 0.002"]

    async def test_wrappers_and_subclasses_book_it_once(self) -> None:
        class Cautious(OpenAIEmbeddingModel):
            async def embed(self, *args: Any, **kwargs: Any) -> Any:
                return await super().embed(*args, **kwargs)

        inner = Cautious("text-embedding-3-small", provider=provider((200, EMBEDDED)))
        model = WrapperEmbeddingModel(WrapperEmbeddingModel(inner))
        entries = await books_of(lambda: Embedder(model, instrument=True).embed_query("a"))
        assert costs(entries) == ["charged 0.002"]

    async def test_a_subclass_that_answers_from_a_cache_sends_nothing(self) -> None:
        class Cached(OpenAIEmbeddingModel):
            known: Any = None

            async def embed(self, *args: Any, **kwargs: Any) -> Any:
                self.known = self.known or await super().embed(*args, **kwargs)
                return self.known

        model = Cached("text-embedding-3-small", provider=provider((200, EMBEDDED)))

        async def twice() -> None:
            for _ in range(2):
                await model.embed("a", input_type="query")

        assert costs(await books_of(twice)) == ["charged 0.002"]

    async def test_each_attempt_of_a_client_that_sends_again_is_an_entry(self) -> None:
        model = embedding((500, {"error": {"message": "x"}}), (200, EMBEDDED), retries=1)
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert [entry.state.value for entry in entries] == ["refused", "charged"]

    async def test_a_refused_one_costs_nothing(self) -> None:
        model = embedding((400, {"error": {"message": "x"}}))

        async def ask() -> None:
            with pytest.raises(ModelAPIError):
                await model.embed("a", input_type="query")

        assert [entry.state.value for entry in await books_of(ask)] == ["refused"]

    async def test_a_model_of_the_user_s_own_is_booked(self) -> None:
        entries = await books_of(lambda: Acme().embed("a", input_type="query"))
        assert costs(entries) == ["unpriced None"]

    async def test_a_model_of_the_user_s_that_asks_others_sends_nothing_itself(self) -> None:
        class First(EmbeddingModel):
            model_name = "first"  # type: ignore[assignment]
            system = "first"  # type: ignore[assignment]

            def __init__(self, model: EmbeddingModel) -> None:
                super().__init__()
                self.model = model

            async def embed(self, inputs: Any, **options: Any) -> EmbeddingResult:
                return await self.model.embed(inputs, **options)

        model = First(embedding((200, EMBEDDED)))
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert costs(entries) == ["charged 0.002"]

    async def test_one_of_the_user_s_that_holds_another_and_asks_its_base_is_booked(self) -> None:
        class Beside(OpenAIEmbeddingModel):
            other: EmbeddingModel

            async def embed(self, *args: Any, **kwargs: Any) -> Any:
                return await super().embed(*args, **kwargs)

        model = Beside("text-embedding-3-small", provider=provider((200, EMBEDDED)))
        model.other = embedding((200, EMBEDDED))
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert costs(entries) == ["charged 0.002"]

    @pytest.mark.parametrize("holding", [list, tuple, lambda models: dict(enumerate(models))])
    async def test_one_that_asks_all_it_holds_sends_nothing_itself(self, holding: Any) -> None:
        class All(EmbeddingModel):
            model_name = "all"  # type: ignore[assignment]
            system = "all"  # type: ignore[assignment]

            def __init__(self, models: Any) -> None:
                super().__init__()
                self.models = models

            async def embed(self, inputs: Any, **options: Any) -> EmbeddingResult:
                models = self.models.values() if isinstance(self.models, dict) else self.models
                return [await model.embed(inputs, **options) for model in models][-1]

        model = All(holding([embedding((200, EMBEDDED)), embedding((200, EMBEDDED))]))
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert costs(entries) == ["charged 0.002"] * 2

    async def test_one_that_holds_another_and_sends_by_itself_is_booked(self) -> None:
        model = Acme(embedding((200, EMBEDDED)))
        entries = await books_of(lambda: model.embed("a", input_type="query"))
        assert costs(entries) == ["unpriced None"]

    async def test_a_further_attempt_of_a_step_replays_it(self) -> None:
        ledger, journal = RequestRecorder(), Journal("s")
        told, embedder = [], Embedder(embedding((200, EMBEDDED), (500, {})))
        for _ in range(2):
            journal.begin_attempt()
            with DispatchScope(ledger, journal=journal):
                told.append(await embedder.embed_documents(["a"]))
        assert costs(list(ledger.entries)) == ["charged 0.002", "replayed 0.002"]
        assert told[0] == told[1]

    async def test_outside_of_a_run_nothing_is_booked(self) -> None:
        await books_of(lambda: Embedder(embedding((200, EMBEDDED))).embed_query("a"))
        await Embedder(embedding((200, EMBEDDED))).embed_query("a")


class TestImages:
    async def test_a_generated_image_is_booked_at_image_rates(self) -> None:
        model = OpenAIImageGenerationModel("gpt-image-1", provider=provider((200, DRAWN)))
        (entry,) = await books_of(lambda: ImageGenerator(model).generate("a cat"))
        # gpt-image-1: 1000 text tokens at 5, 2000 image tokens at 40 a million
        assert entry.cost_usd == Decimal("0.085")

    async def test_where_images_cost_otherwise_than_text_they_must_be_told_apart(self) -> None:
        asked = {"text_tokens": 1000, "image_tokens": 0}
        usage = {"input_tokens": 1000, "output_tokens": 2000, "input_tokens_details": asked}
        answers = provider((200, {**DRAWN, "usage": usage}))
        model = OpenAIImageGenerationModel("gpt-image-1.5", provider=answers)
        (entry,) = await books_of(lambda: ImageGenerator(model).generate("a cat"))
        assert entry.state == "unpriced"
        assert "tokens are not told apart" in str(entry.error)


class Deciding(DecisionModel[Any]):
    model_name = "gpt-5-mini"  # type: ignore[assignment]
    system = "openai"  # type: ignore[assignment]

    async def decide(self, *args: Any) -> DecisionResponse:
        usage = RequestUsage(input_tokens=1000, output_tokens=100)
        return DecisionResponse(answers={}, model_name="gpt-5-mini", usage=usage)


async def test_a_decision_that_is_asked_for_by_hand_is_booked() -> None:
    asked: Any = None
    entries = await books_of(lambda: Deciding().decide(asked, asked))
    assert costs(entries) == ["charged 0.00045"]


class Heard(RealtimeConnection):
    """A connection that reports the given events."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    async def send(self, content: Any) -> None:
        pass

    async def frames(self) -> AsyncIterator[Any]:
        for event in self.events:
            yield [event]


class Realtime(RealtimeModel):
    model_name = "gpt-realtime"  # type: ignore[assignment]
    system = "openai"  # type: ignore[assignment]
    base_url = "https://api.openai.com/v1"  # type: ignore[assignment]

    def __init__(self, *events: Any) -> None:
        super().__init__()
        self.events = list(events)

    @asynccontextmanager
    async def connect(self, **options: Any) -> AsyncIterator[Any]:
        yield Heard(self.events)


async def listen(model: RealtimeModel) -> None:
    nothing = ModelRequestParameters()
    options: dict[str, Any] = {"messages": [], "model_settings": None}
    async with model.connect(**options, model_request_parameters=nothing) as connection:
        async for _ in connection:
            pass


class TestRealtime:
    async def test_each_answer_of_a_session_is_an_entry(self) -> None:
        usage = RequestUsage(input_tokens=1000, output_tokens=100)
        model = Realtime(SessionUsage(usage=usage), SessionUsage(usage=usage))
        entries = await books_of(lambda: listen(model))
        assert costs(entries) == ["charged 0.0056"] * 2  # 4 and 16 a million

    async def test_a_transcription_is_unpriced(self) -> None:
        usage = RequestUsage(input_tokens=10, output_tokens=1)
        model = Realtime(SessionUsage(usage=usage, response_scoped=False))
        assert costs(await books_of(lambda: listen(model))) == ["unpriced None"]

    async def test_a_session_that_reports_nothing_is_not_taken_for_free(self) -> None:
        assert costs(await books_of(lambda: listen(Realtime()))) == ["unpriced None"]
