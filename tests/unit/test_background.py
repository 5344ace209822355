"""OpenAI's background mode: a look whether the answer is there is no request."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import httpx2 as httpx
import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelRequest
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.replay.journal import Journal

TEXT = {"type": "output_text", "text": "Hello", "annotations": []}
MESSAGE = {"type": "message", "id": "m_1", "role": "assistant", "status": "completed"}
USAGE = {
    "input_tokens": 1000,
    "output_tokens": 100,
    "total_tokens": 1100,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
DONE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-5-mini-2025-08-07",
    "status": "completed",
    "output": [MESSAGE | {"content": [TEXT]}],
    "usage": USAGE,
    "background": True,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
QUEUED = DONE | {"status": "queued", "output": [], "usage": None}
CHARGED = "charged 0.00045"


@pytest.fixture(autouse=True)
def _looks_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda seconds: sleep(0))


class Sent:
    """A model that answers from memory; counts what creates an answer, and what looks for one."""

    def __init__(self, *looks: dict[str, Any], number: int = 1) -> None:
        self.methods: list[str] = []
        self.id = f"resp_{number}"
        self.looks = list(looks)
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        client = AsyncOpenAI(api_key="k", http_client=http, max_retries=0)
        self.model = OpenAIResponsesModel(
            "gpt-5-mini",
            provider=OpenAIProvider(openai_client=client),
            settings=OpenAIResponsesModelSettings(openai_background=True),
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.methods.append(request.method)
        if request.method == "POST":
            return httpx.Response(200, json=QUEUED | {"id": self.id}, request=request)
        body = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return httpx.Response(200, json=body, request=request)


def told(ledger: RequestRecorder) -> list[str]:
    return [f"{entry.state.value} {entry.cost_usd}" for entry in ledger.entries]


async def test_looks_are_no_entries_and_a_further_attempt_does_not_ask_again() -> None:
    sent, ledger, journal = Sent(QUEUED, DONE), RequestRecorder(), Journal("s")
    for _ in range(2):
        journal.begin_attempt()
        with DispatchScope(ledger, journal=journal):
            assert (await Agent(sent.model).run("Hi")).output == "Hello"
    assert told(ledger) == [CHARGED, "replayed 0.00045"]
    assert sent.methods == ["POST", "GET", "GET"]


async def test_one_that_is_asked_and_looked_for_by_hand_is_one_entry() -> None:
    sent, ledger = Sent(DONE), RequestRecorder()
    asked: list[ModelMessage] = [ModelRequest.user_text_prompt("Hi")]
    with DispatchScope(ledger):
        queued = await sent.model.request(asked, None, ModelRequestParameters())
        await sent.model.request([*asked, queued], None, ModelRequestParameters())
    assert told(ledger) == [CHARGED]


async def test_one_that_is_left_stays_unsettled() -> None:
    sent, ledger = Sent(QUEUED), RequestRecorder()
    with DispatchScope(ledger):
        asking = asyncio.create_task(Agent(sent.model).run("Hi"))
        while len(sent.methods) < 3:  # noqa: ASYNC110  # no event tells of a look
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert [entry.state.value for entry in ledger.entries] == ["unsettled"]


async def test_jobs_that_nobody_looks_at_again_are_forgotten_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: dict[Any, Any] = {}
    monkeypatch.setattr("fastroai.metering.model._jobs", jobs)
    monkeypatch.setattr("fastroai.metering.model._MOST_JOBS", 2)
    asked: list[ModelMessage] = [ModelRequest.user_text_prompt("Hi")]
    queued: list[ModelMessage] = []
    models, ledger = [Sent(DONE, number=number).model for number in range(5)], RequestRecorder()
    with DispatchScope(ledger):
        for model in models:
            queued.append(await model.request(asked, None, ModelRequestParameters()))
        assert len(jobs) == 2
        await models[-1].request([*asked, queued[-1]], None, ModelRequestParameters())
    assert [entry.state.value for entry in ledger.entries] == ["unsettled"] * 4 + ["charged"]
