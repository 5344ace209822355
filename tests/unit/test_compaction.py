"""Compaction of a conversation is a request: booked once, and not paid again in a retried step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.openai import OpenAICompaction, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import FastroAgent
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.replay.journal import Journal

HISTORY: list[ModelMessage] = [
    ModelRequest.user_text_prompt("A long story."),
    ModelResponse(parts=[TextPart("I see.")]),
]
USAGE = {
    "input_tokens": 100_000,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 1000,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 101_000,
}
COMPACTED = {
    "id": "resp_compacted",
    "object": "response.compaction",
    "created_at": 1_700_000_000,
    "output": [{"id": "cmp_1", "type": "compaction", "encrypted_content": "abc"}],
    "usage": USAGE,
}
TEXT = {"type": "output_text", "text": "Yes.", "annotations": []}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
ANSWERED = {
    "id": "resp_answered",
    "object": "response",
    "created_at": 1_700_000_000,
    "model": "gpt-5-mini",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [{**MESSAGE, "content": [TEXT]}],
    "usage": {**USAGE, "input_tokens": 1000, "output_tokens": 10, "total_tokens": 1010},
}


class Conversation:
    """An agent that compacts its history before it asks, and what its model's API was sent."""

    def __init__(self, around: Callable[[Model], Model]) -> None:
        self.sent: list[str] = []

        async def answer(request: httpx.Request) -> httpx.Response:
            self.sent.append(request.url.path)
            compacts = request.url.path.endswith("/compact")
            return httpx.Response(200, json=COMPACTED if compacts else ANSWERED, request=request)

        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        provider = OpenAIProvider(openai_client=AsyncOpenAI(api_key="k", http_client=http))
        self.model = around(OpenAIResponsesModel("gpt-5-mini", provider=provider))
        compaction: Any = OpenAICompaction(stateless=True, message_count_threshold=1)
        self.agent = Agent(self.model, capabilities=[compaction])

    async def ask(self, journal: Journal | None = None, *, raw: bool = False) -> list[str]:
        ledger = RequestRecorder()
        asked: Any = self.agent if raw else FastroAgent(agent=self.agent)
        with DispatchScope(ledger, journal=journal):
            await asked.run("Go on?", message_history=HISTORY)
        return [f"{entry.state.value} {entry.cost_usd}" for entry in ledger.entries]


def limited(model: Model) -> Model:
    return ConcurrencyLimitedModel(model, limiter=1)


PAID = ["charged 0.027", "charged 0.00027"]
AGAIN = ["replayed 0.027", "replayed 0.00027"]


@pytest.mark.parametrize("around", [lambda model: model, WrapperModel, limited])
@pytest.mark.parametrize("raw", [True, False])
async def test_a_retried_step_does_not_pay_for_it_again(
    around: Callable[[Model], Model], raw: bool
) -> None:
    conversation, journal = Conversation(around), Journal("s")
    assert await conversation.ask(journal, raw=raw) == PAID
    journal.begin_attempt()
    assert await conversation.ask(journal, raw=raw) == AGAIN
    assert len(conversation.sent) == 2


async def test_without_a_journal_each_is_paid() -> None:
    conversation = Conversation(WrapperModel)
    for _ in range(2):
        assert await conversation.ask() == PAID
    assert len(conversation.sent) == 4
