"""What a step sends to a provider past all meters is noticed, and said."""

from __future__ import annotations

import json
import logging
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
import websockets.client
import websockets.exceptions
import websockets.sync.client
import websockets.uri
from openai import AsyncOpenAI, OpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import Pipeline, StepContext, step
from tests.support.provider import KEY, LoopbackProvider

HOST = "api.openai.com"


def answer(request: httpx.Request) -> httpx.Response:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    return httpx.Response(200, json={"data": data, "input_tokens": 3}, request=request)


def client() -> AsyncOpenAI:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return AsyncOpenAI(api_key="k", http_client=http)


def sync_client() -> OpenAI:
    return OpenAI(api_key="k", http_client=httpx.Client(transport=httpx.MockTransport(answer)))


async def unmetered_of(ask: Any) -> dict[str, dict[str, int]]:
    @step
    async def it(context: StepContext[None]) -> str:
        sent = ask()
        if sent is not None:
            await sent
        return "x"

    result = await Pipeline("past", {"it": it}, executor="memory").execute({}, None)
    return result.unmetered


def by_the_sync_sdk() -> None:
    sync_client().embeddings.create(input="a", model="text-embedding-3-small")


async def by_the_sdk() -> None:
    sdk = client()
    for _ in range(2):
        await sdk.embeddings.create(input="a", model="text-embedding-3-small")


async def by_http() -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    await http.post("https://api.anthropic.com/v1/messages", json={})


async def test_requests_of_an_sdk_are_counted_by_step_and_host() -> None:
    assert await unmetered_of(by_the_sdk) == {"it": {HOST: 2}}


async def test_so_are_those_of_a_sync_sdk() -> None:
    assert await unmetered_of(by_the_sync_sdk) == {"it": {HOST: 1}}


async def test_so_are_those_of_no_sdk() -> None:
    assert await unmetered_of(by_http) == {"it": {"api.anthropic.com": 1}}


async def test_it_is_told_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastroai"):
        await unmetered_of(by_the_sdk)
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if HOST in line and "'it'" in line]) == 1


FREE = [
    "https://api.anthropic.com/v1/messages/count_tokens",
    "https://api.openai.com/v1/responses/resp_1/cancel",
    "https://api.cohere.com/v1/tokenize",
    "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash:countTokens",
    "https://us-east5-aiplatform.googleapis.com/v1/publishers/anthropic/models/count-tokens:rawPredict",
    "https://example.com/v1/messages",
]


async def test_what_is_free_or_for_no_provider_is_nothing_to_tell() -> None:
    async def ask() -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        for url in FREE:
            await http.post(url, json={})
        await http.get("https://api.openai.com/v1/models")

    assert await unmetered_of(ask) == {}


async def test_what_is_metered_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackProvider() as provider:
        host = f"127.0.0.1:{provider.port}"
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({host: "openai"}))
        at = OpenAIProvider(base_url=f"http://{host}/v1", api_key=KEY)
        agent = Agent(OpenAIChatModel("gpt-5-mini", provider=at))

        async def both() -> None:
            await agent.run("it: metered")
            messages: Any = [{"role": "user", "content": "it: not metered"}]
            await at.client.chat.completions.create(model="gpt-5-mini", messages=messages)

        assert await unmetered_of(both) == {"it": {"127.0.0.1": 1}}


async def by_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession(base_url=url) as session:
        body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200
        async with session.get("/v1/batches", headers=headers):
            pass


async def by_a_socket_of_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.ws_connect(f"{url}/v1/batches/none")


async def by_a_socket(url: str) -> None:
    with pytest.raises(websockets.exceptions.InvalidHandshake):
        await websockets.connect(url.replace("http", "ws") + "/v1/batches/none?of=it")


def by_a_sync_socket(url: str) -> None:
    with pytest.raises(websockets.exceptions.InvalidHandshake):
        websockets.sync.client.connect(url.replace("http", "ws") + "/v1/batches/none")


@pytest.mark.parametrize("ask", [by_aiohttp, by_a_socket_of_aiohttp, by_a_socket, by_a_sync_socket])
async def test_other_clients_are_noticed_too(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackProvider() as provider:
        host = f"127.0.0.1:{provider.port}"
        assert await unmetered_of(lambda: ask(f"http://{host}")) == {}
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({host: "openai"}))
        assert await unmetered_of(lambda: ask(f"http://{host}")) == {"it": {"127.0.0.1": 1}}


async def test_a_socket_to_a_provider_s_own_host_is_known_by_that() -> None:
    async def ask() -> None:
        # As both of the library's clients do before they shake hands.
        protocol = websockets.client.ClientProtocol(
            websockets.uri.parse_uri("wss://api.openai.com/v1/realtime?model=gpt-realtime")
        )
        protocol.connect()

    assert await unmetered_of(ask) == {"it": {HOST: 1}}
