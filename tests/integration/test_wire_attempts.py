"""Real SDKs against a loopback server: each request that arrives has an entry, whoever sent it
again.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import boto3
import httpx2
import pytest
from anthropic import AsyncAnthropicBedrock
from botocore.config import Config
from google.genai import Client as GoogleClient
from google.genai.types import HttpOptions, HttpRetryOptions
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models import Model, create_async_httpx2_client
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.bedrock import BedrockProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.retries import AsyncHTTPX2TenacityTransport, RetryConfig
from tenacity import retry_if_exception_type, retry_if_result, stop_after_attempt

from fastroai import CostCalculator, FastroAgent
from fastroai.ledger.entries import LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.http_attempts import Send
from fastroai.metering.scope import DispatchScope
from tests.support.scripted_http import DROP, HANG, ScriptedHTTP

PRICES = CostCalculator(
    {
        name: {"input_per_mtok": 1.0, "output_per_mtok": 2.0}
        for name in (
            "gpt-5-mini",
            "claude-sonnet-4-5",
            "gemini-2.5-flash",
            "us.amazon.nova-micro-v1:0",
        )
    }
)
KEYS = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}


def boto_client(url: str, **retries: Any) -> Any:
    return boto3.client(
        "bedrock-runtime", endpoint_url=url, config=Config(retries=retries or None), **KEYS
    )


def openai_chat(url: str, **client: Any) -> Model:
    return OpenAIChatModel(
        "gpt-5-mini", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="k", **client)
    )


def openai_responses(url: str) -> Model:
    return OpenAIResponsesModel(
        "gpt-5-mini", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="k")
    )


def anthropic(url: str) -> Model:
    return AnthropicModel(
        "claude-sonnet-4-5", provider=AnthropicProvider(base_url=url, api_key="k")
    )


def anthropic_on_bedrock(url: str) -> Model:
    client = AsyncAnthropicBedrock(
        base_url=url, aws_access_key="k", aws_secret_key="s", aws_region="us-east-1"
    )
    return AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(anthropic_client=client))


def google(url: str) -> Model:
    return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(base_url=url, api_key="k"))


def google_that_retries(url: str) -> Model:
    retries = HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.01)
    client = GoogleClient(
        api_key="k", http_options=HttpOptions(base_url=url, retry_options=retries)
    )
    return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(client=client))


def bedrock(url: str) -> Model:
    client = boto_client(url, total_max_attempts=3, mode="standard")
    return BedrockConverseModel(
        "us.amazon.nova-micro-v1:0", provider=BedrockProvider(bedrock_client=client)
    )


def bedrock_of_old(url: str) -> Model:
    client = boto_client(url, max_attempts=1, mode="legacy")
    return BedrockConverseModel(
        "us.amazon.nova-micro-v1:0", provider=BedrockProvider(bedrock_client=client)
    )


ANSWERED = [
    openai_chat,
    openai_responses,
    anthropic,
    google,
    google_that_retries,
    bedrock,
    bedrock_of_old,
]


def retrying(
    *errors: type[Exception], attempts: int = 3, **options: Any
) -> AsyncHTTPX2TenacityTransport:
    """A user's own transport that sends again; a bad status is an error to it."""
    config = RetryConfig(
        retry=retry_if_exception_type(errors or httpx2.HTTPStatusError),
        stop=stop_after_attempt(attempts),
        reraise=True,
    )
    return AsyncHTTPX2TenacityTransport(
        config, **{"validate_response": lambda r: r.raise_for_status(), **options}
    )


def openai_through(transport: Any, url: str) -> Model:
    return openai_chat(url, http_client=create_async_httpx2_client(transport=transport))


def ready(model: Model, **options: Any) -> FastroAgent[Any]:
    return FastroAgent(agent=Agent(model), cost_calculator=PRICES, **options)


async def books_of(
    agent: FastroAgent[Any], ledger: RequestRecorder | None = None, **options: Any
) -> list[LedgerEntry]:
    """The entries of one run, whatever becomes of it."""
    ledger = RequestRecorder() if ledger is None else ledger
    with DispatchScope(ledger), suppress(ModelAPIError, httpx2.HTTPError):
        await agent.run("Hi", **options)
    return list(ledger.entries)


def states(entries: list[LedgerEntry]) -> list[str]:
    return [entry.state.value for entry in entries]


@pytest.mark.parametrize("make", ANSWERED)
async def test_an_answer_is_one_entry(make: Callable[[str], Model]) -> None:
    with ScriptedHTTP(200) as server:
        entries = await books_of(ready(make(server.url)))
    assert len(server.arrived) == 1
    assert states(entries) == ["charged"]


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("make", ANSWERED)
async def test_what_an_sdk_would_send_again_is_booked_each_time(
    make: Callable[[str], Model], status: int
) -> None:
    with ScriptedHTTP(status, 200) as server:
        entries = await books_of(ready(make(server.url), max_retries=1))
    assert len(server.arrived) == 2
    assert states(entries) == ["refused", "charged"]


@pytest.mark.parametrize(
    ("make", "attempts"),
    [
        *((make, 3) for make in (openai_chat, openai_responses, anthropic, anthropic_on_bedrock)),
        *((google, 1), (google_that_retries, 3), (bedrock, 3), (bedrock_of_old, 2)),
    ],
)
async def test_a_ready_client_tries_as_often_as_it_would_and_each_time_is_booked(
    make: Callable[[str], Model], attempts: int
) -> None:
    with ScriptedHTTP(500) as server:
        entries = await books_of(ready(make(server.url)))
    assert len(server.arrived) == len(entries) == attempts
    assert set(states(entries)) == {"refused"}


@pytest.mark.parametrize("make", [*ANSWERED, anthropic_on_bedrock])
async def test_a_lost_connection_is_unsettled_each_time(make: Callable[[str], Model]) -> None:
    with ScriptedHTTP(DROP) as server:
        ledger = RequestRecorder()
        with DispatchScope(ledger), pytest.raises(Exception):  # noqa: B017, PT011 - each SDK has its own
            await ready(make(server.url)).run("Hi")
    assert len(server.arrived) == len(ledger.entries) >= 1
    assert set(states(list(ledger.entries))) == {"unsettled"}


@pytest.mark.parametrize(
    "make", [openai_chat, partial(openai_through, retrying()), bedrock, anthropic_on_bedrock]
)
async def test_each_attempt_is_booked_before_it_leaves(make: Callable[[str], Model]) -> None:
    ledger, booked = RequestRecorder(), []
    with ScriptedHTTP(500) as server:
        server.on_arrival = lambda: booked.append(len(ledger.entries))
        await books_of(ready(make(server.url)), ledger)
    assert len(booked) > 1
    assert booked == list(range(1, len(booked) + 1))


class TestBuiltClients:
    """Named as `provider:model`: they make one attempt, and `max_retries` further ones are
    fastroai's.
    """

    @pytest.fixture(
        params=[
            "openai:gpt-5-mini",
            "openai-chat:gpt-5-mini",
            "anthropic:claude-sonnet-4-5",
            "bedrock:x.y",
        ]
    )
    def model(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        with ScriptedHTTP(500) as running:
            for name, value in {
                "OPENAI_BASE_URL": f"{running.url}/v1",
                "OPENAI_API_KEY": "k",
                "ANTHROPIC_BASE_URL": running.url,
                "ANTHROPIC_API_KEY": "k",
                "AWS_ENDPOINT_URL": running.url,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "k",
                "AWS_SECRET_ACCESS_KEY": "s",
            }.items():
                monkeypatch.setenv(name, value)
            yield running

    @pytest.mark.parametrize("mode", ["legacy", "standard"])
    @pytest.mark.parametrize("retries", [0, 1])
    async def test_max_retries_is_the_number_of_further_entries(
        self,
        server: ScriptedHTTP,
        model: str,
        retries: int,
        mode: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_RETRY_MODE", mode)
        entries = await books_of(FastroAgent(model=model, max_retries=retries))
        assert states(entries) == ["refused"] * (retries + 1)
        assert len(server.arrived) == retries + 1
        assert all("client sent again" not in (entry.error or "") for entry in entries)

    async def test_retries_asked_for_with_a_run_are_not_the_sdks(
        self, server: ScriptedHTTP, model: str
    ) -> None:
        agent = FastroAgent(model=model, max_retries=0)
        entries = await books_of(agent, model_settings={"max_retries": 1})
        assert len(server.arrived) == len(entries) == 2

    async def test_there_are_at_most_max_retries_plus_one(
        self, server: ScriptedHTTP, model: str
    ) -> None:
        server.answers = [500, 200]
        entries = await books_of(FastroAgent(model=model, max_retries=2))
        assert len(server.arrived) == len(entries) == 2


async def test_retries_asked_for_with_a_model_are_not_the_sdks() -> None:
    with ScriptedHTTP(500) as server:
        model = OpenAIChatModel(
            "gpt-5-mini",
            provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key="k"),
            settings={"max_retries": 1},
        )
        entries = await books_of(ready(model))
    assert len(server.arrived) == len(entries) == 2


class TestTransports:
    """A ready agent whose HTTP transport sends again beneath the SDK."""

    async def test_refusals_before_an_answer(self) -> None:
        with ScriptedHTTP(500, 429, 200) as server:
            entries = await books_of(ready(openai_through(retrying(), server.url)))
        assert len(server.arrived) == 3
        assert states(entries) == ["refused", "refused", "charged"]
        assert entries[0].error == "HTTP 500; the client sent again by itself."

    async def test_refusals_to_the_end_stay_refusals_where_the_transport_raises_its_own_error(
        self,
    ) -> None:
        with ScriptedHTTP(429) as server:
            entries = await books_of(ready(openai_through(retrying(), server.url), max_retries=0))
        assert len(server.arrived) == 3
        assert states(entries) == ["refused"] * 3

    async def test_both_kinds_of_retries_together(self) -> None:
        config = RetryConfig(
            retry=retry_if_result(lambda response: response.status_code == 500),
            stop=stop_after_attempt(2),
            retry_error_callback=lambda state: state.outcome.result(),
        )
        transport = AsyncHTTPX2TenacityTransport(config)
        with ScriptedHTTP(500) as server:
            entries = await books_of(ready(openai_through(transport, server.url), max_retries=1))
        assert len(server.arrived) == len(entries) == 4

    async def test_a_lost_connection_before_an_answer(self) -> None:
        with ScriptedHTTP(DROP, 200) as server:
            entries = await books_of(
                ready(openai_through(retrying(httpx2.TransportError), server.url))
            )
        assert len(server.arrived) == 2
        assert states(entries) == ["unsettled", "charged"]

    async def test_a_timeout_before_an_answer(self) -> None:
        with ScriptedHTTP(HANG, 200) as server:
            agent = ready(
                openai_through(retrying(httpx2.TimeoutException), server.url), timeout=0.3
            )
            entries = await books_of(agent)
        assert len(server.arrived) == 2
        assert states(entries) == ["unsettled", "charged"]

    async def test_an_answer_that_the_transport_does_not_like_is_billed_all_the_same(self) -> None:
        liked = iter([False, True])

        def like(response: httpx2.Response) -> None:
            if not next(liked):
                raise httpx2.ReadError("Not liked")

        transport = retrying(httpx2.ReadError, validate_response=like)
        with ScriptedHTTP(200) as server:
            entries = await books_of(ready(openai_through(transport, server.url)))
        assert len(server.arrived) == 2
        assert states(entries) == ["unsettled", "charged"]

    async def test_a_stream(self) -> None:
        ledger = RequestRecorder()
        with ScriptedHTTP(500, 200) as server, DispatchScope(ledger):
            agent = ready(openai_through(retrying(), server.url))
            assert "".join([chunk.content async for chunk in agent.run_stream("Hi")]) == "Hi"
        assert len(server.arrived) == 2
        assert states(list(ledger.entries)) == ["refused", "charged"]

    async def test_a_connection_that_was_not_made_is_no_attempt(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        servers: list[ScriptedHTTP] = []
        transport = retrying(httpx2.ConnectError)
        transport.config["before_sleep"] = lambda _: servers.append(
            ScriptedHTTP(200, port=port).__enter__()
        )
        try:
            entries = await books_of(ready(openai_through(transport, f"http://127.0.0.1:{port}")))
        finally:
            for server in servers:
                server.__exit__()
        assert [len(server.arrived) for server in servers] == [1]
        assert states(entries) == ["charged"]

    async def test_a_connection_lost_after_a_send_is_not_taken_for_one_that_was_never_made(
        self,
    ) -> None:
        server = ScriptedHTTP(DROP)
        transport = retrying(httpx2.TransportError, attempts=2)
        transport.config["before_sleep"] = lambda _: server.__exit__()
        with server:
            entries = await books_of(ready(openai_through(transport, server.url), max_retries=0))
        assert len(server.arrived) == 1
        assert states(entries) == ["unsettled"]

    async def test_a_redirection(self) -> None:
        client = create_async_httpx2_client()
        client.follow_redirects = True
        with ScriptedHTTP(307, 200) as server:
            entries = await books_of(ready(openai_chat(server.url, http_client=client)))
        assert len(server.arrived) == 2
        assert states(entries) == ["refused", "charged"]

    async def test_one_that_tells_nothing_of_itself_counts_by_what_the_client_sends(self) -> None:
        answers = iter([500, 500, 200])
        body = {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hi"},
                    "finish_reason": "stop",
                }
            ]
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        whole = {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-5-mini",
            "usage": usage,
            **body,
        }
        transport = httpx2.MockTransport(lambda _: httpx2.Response(next(answers), json=whole))
        entries = await books_of(
            ready(openai_through(transport, "http://127.0.0.1:1"), max_retries=2)
        )
        assert states(entries) == ["refused", "refused", "charged"]


class TestTheClientOfSomebodyElse:
    async def test_it_is_asked_once_to_tell(self) -> None:
        client = create_async_httpx2_client()
        before = {event: list(hooks) for event, hooks in client.event_hooks.items()}
        with ScriptedHTTP(200) as server:
            agent = ready(openai_chat(server.url, http_client=client))
            for _ in range(3):
                await books_of(agent)
        assert {event: hooks[:-1] for event, hooks in client.event_hooks.items()} == before

    async def test_its_other_requests_are_not_booked(self) -> None:
        client = create_async_httpx2_client()
        ledger = RequestRecorder()
        with ScriptedHTTP(200) as server:
            agent = ready(openai_chat(server.url, http_client=client))
            others = [client.post(f"{server.url}/v1/chat/completions", json={}) for _ in range(5)]
            await asyncio.gather(books_of(agent, ledger), *others)
            await client.post(f"{server.url}/v1/chat/completions", json={})
        assert len(server.arrived) == 7
        assert states(list(ledger.entries)) == ["charged"]

    async def test_what_a_hook_of_its_owner_sends_elsewhere_is_not_booked(self) -> None:
        with ScriptedHTTP(200) as server, ScriptedHTTP(200) as tokens:

            async def renew(request: httpx2.Request) -> None:
                if str(request.url).startswith(server.url):
                    # By another name: the host of the model's provider is 127.0.0.1.
                    url = tokens.url.replace("127.0.0.1", "localhost")
                    await client.post(f"{url}/v1/chat/completions", json={})

            client = create_async_httpx2_client()
            client.event_hooks["request"].append(renew)
            entries = await books_of(ready(openai_chat(server.url, http_client=client)))
        assert (len(server.arrived), len(tokens.arrived)) == (1, 1)
        assert states(entries) == ["charged"]

    async def test_a_trace_of_its_owner_is_told_as_before(self) -> None:
        told: list[str] = []

        async def trace(event: str, info: dict[str, Any]) -> None:
            told.append(event)

        async def ask(request: httpx2.Request) -> None:
            request.extensions["trace"] = trace

        client = create_async_httpx2_client()
        client.event_hooks["request"].append(ask)
        with ScriptedHTTP(200) as server:
            await books_of(ready(openai_chat(server.url, http_client=client)))
        assert "http11.send_request_headers.started" in told

    async def test_it_keeps_nothing_of_a_call_alive(self) -> None:
        client = create_async_httpx2_client()
        # What earlier tests of this process left, such as jobs in the background, is theirs.
        earlier = [one for one in gc.get_objects() if type(one) is Send]
        with ScriptedHTTP(500, 200) as server:
            await books_of(ready(openai_chat(server.url, http_client=client)))
            gc.collect()
            alive = [one for one in gc.get_objects() if type(one) is Send]
            assert not {id(one) for one in alive} - {id(one) for one in earlier}

    async def test_calls_at_the_same_time_are_counted_apart(self) -> None:
        transport = retrying(attempts=2)
        with ScriptedHTTP(500) as server:
            agent = ready(openai_through(transport, server.url), max_retries=0)
            books = await asyncio.gather(*(books_of(agent) for _ in range(20)))
        assert len(server.arrived) == 40
        assert [states(entries) for entries in books] == [["refused", "refused"]] * 20


async def test_a_cancelled_call_of_boto_has_an_entry_for_each_attempt_it_still_makes() -> None:
    ledger, arrived = RequestRecorder(), asyncio.Event()
    loop = asyncio.get_running_loop()
    with ScriptedHTTP(500) as server, DispatchScope(ledger):
        server.on_arrival = lambda: loop.call_soon_threadsafe(arrived.set)
        run = asyncio.create_task(ready(bedrock(server.url)).run("Hi"))
        await arrived.wait()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        assert run.cancelled()
        assert len(server.arrived) == len(ledger.entries) >= 1


async def test_what_a_call_left_behind_is_not_sent_after_it_was_settled() -> None:
    class Forgetful(OpenAIChatModel):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            self.left_behind = asyncio.create_task(self.send_later())
            return await super().request(*args, **kwargs)

        async def send_later(self) -> None:
            await settled.wait()
            await self.client.chat.completions.create(model="gpt-5-mini", messages=[])

    settled = asyncio.Event()
    with ScriptedHTTP(200) as server:
        provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="k")
        model = Forgetful("gpt-5-mini", provider=provider)
        entries = await books_of(ready(model))
        settled.set()
        with pytest.raises(RuntimeError, match="was left meanwhile"):
            await model.left_behind
    assert len(server.arrived) == len(entries) == 1
