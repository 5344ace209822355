"""What a user's model sends by itself is booked before it leaves; what it keeps is no request."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.testing import ScriptedModel
from tests.support.behaviours import Answer, Refuse
from tests.support.provider import KEY, LoopbackProvider


class Posts(Model):
    """Asks an API of OpenAI's kind without any SDK."""

    model_name = "gpt-5-mini"
    system = "openai"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.kept: ModelResponse | None = None
        self.keeps = False

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def post(self, prompt: str = "Hi") -> ModelResponse:
        body = {"model": self.model_name, "messages": [{"role": "user", "content": prompt}]}
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as http:
            answer = await http.post(f"{self.url}/v1/chat/completions", json=body)
        answer.raise_for_status()
        told = answer.json()
        usage = RequestUsage(
            input_tokens=told["usage"]["prompt_tokens"],
            output_tokens=told["usage"]["completion_tokens"],
        )
        return ModelResponse([TextPart("x")], usage=usage, model_name=told["model"])

    async def request(self, *args: Any) -> ModelResponse:
        if self.kept is None or not self.keeps:
            self.kept = await self.post()
        return self.kept


class PostsBeside(Posts):
    """Holds another model besides, which it asks first."""

    def __init__(self, url: str, *others: Model) -> None:
        super().__init__(url)
        self.others = others

    async def request(self, *args: Any) -> ModelResponse:
        for other in self.others:
            await other.request(*args)
        return await super().request(*args)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    with LoopbackProvider() as found:
        host = f"127.0.0.1:{found.port}"
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({host: "openai"}))
        yield found


def url_of(provider: LoopbackProvider) -> str:
    return f"http://127.0.0.1:{provider.port}"


async def books_of(model: Model, times: int = 1, error: Any = None) -> RequestRecorder:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        for _ in range(times):
            if error is None:
                await FastroAgent(model=model, max_retries=0).run("Hi")
                continue
            with pytest.raises(error):
                await FastroAgent(model=model, max_retries=0).run("Hi")
    return ledger


def states(ledger: RequestRecorder) -> list[str]:
    return [f"{entry.model_asked} {entry.state.value}" for entry in ledger.entries]


async def test_beside_one_that_it_holds(provider: LoopbackProvider) -> None:
    provider.script("Hi", Answer("Hello!"))
    ledger = await books_of(PostsBeside(url_of(provider), ScriptedModel("fine")))
    assert states(ledger) == ["scripted:gpt-5-mini charged", "openai:gpt-5-mini charged"]
    assert ledger.entries[1].cost_usd is not None
    assert ledger.unmetered == {}


async def test_it_is_booked_before_it_leaves(provider: LoopbackProvider) -> None:
    provider.script("Hi", Answer("Hello!"))
    ledger, seen = RequestRecorder(), []

    class Looks(PostsBeside):
        async def post(self, prompt: str = "Hi") -> ModelResponse:
            response = await super().post(prompt)
            seen.extend(states(ledger))
            return response

    with DispatchScope(ledger):
        await Agent(Looks(url_of(provider), ScriptedModel("fine"))).run("Hi")
    assert seen == ["scripted:gpt-5-mini charged", "openai:gpt-5-mini unsettled"]


async def test_a_failure_of_it_is_unsettled(provider: LoopbackProvider) -> None:
    provider.script("Hi", Refuse(500))
    model = PostsBeside(url_of(provider), ScriptedModel("fine"))
    ledger = await books_of(model, error=httpx.HTTPStatusError)
    assert states(ledger) == ["scripted:gpt-5-mini charged", "openai:gpt-5-mini unsettled"]


async def test_an_answer_that_it_keeps_is_no_request(provider: LoopbackProvider) -> None:
    provider.script("Hi", Answer("Hello!"))
    model = Posts(url_of(provider))
    model.keeps = True
    ledger = await books_of(model, times=3)
    assert [e.state.value for e in ledger.entries] == ["charged", "refused", "refused"]
    assert len(provider.invoice.lines) == 1
    beside = PostsBeside(url_of(provider), ScriptedModel("fine", repeat=True))
    beside.keeps = True
    ledger = await books_of(beside, times=2)
    assert sum(e.is_spend and e.provider == "openai" for e in ledger.entries) == 1


async def test_a_kept_answer_of_a_model_that_inherits_its_client(
    provider: LoopbackProvider,
) -> None:
    provider.script("Hi", Answer("Hello!"))

    class Cached(OpenAIChatModel):
        kept: ModelResponse | None = None

        async def request(self, *args: Any) -> ModelResponse:
            if self.kept is not None:
                return self.kept
            self.kept = await super().request(*args)
            return self.kept

    at = OpenAIProvider(base_url=f"{url_of(provider)}/v1", api_key=KEY)
    model = Cached("gpt-5-mini", provider=at)
    ledger = await books_of(model, times=3)
    assert [e.state.value for e in ledger.entries] == ["charged", "refused", "refused"]
    assert all(e.cost_usd is None for e in ledger.entries[1:])
    assert all("without sending" in str(e.error) for e in ledger.entries[1:])
