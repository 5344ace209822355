"""One agent used from several threads, each with event loops of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.ledger.entries import LedgerEntry
from fastroai.ledger.ledger import Ledger
from fastroai.testing import fixed_prices
from tests.support.agreement import assert_agree
from tests.support.canned import CannedServer
from tests.support.provider import KEY
from tests.support.provider_process import ProviderProcess

THREADS, LOOPS, CALLS = 8, 3, 3


def asking(agent: FastroAgent[str], thread: int, loops: int = LOOPS, **options: Any) -> list[str]:
    """Answers to three calls at once in each of some loops, one loop after the other."""

    async def calls(loop: int) -> list[str]:
        prompts = [f"{thread}-{loop}-{call}" for call in range(CALLS)]
        responses = await asyncio.gather(*(agent.run(prompt, **options) for prompt in prompts))
        return [response.output for response in responses]

    return [output for loop in range(loops) for output in asyncio.run(calls(loop))]


async def entries_of(url: str) -> list[LedgerEntry]:
    async with Ledger.open(url) as ledger:
        return list(await ledger.entries())


@pytest.mark.parametrize("model", ["openai:gpt-5-mini", "openai-chat:gpt-5-mini"])
def test_all_calls_succeed_and_the_books_agree_with_the_invoice(
    provider: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    agent = FastroAgent(model=model, cost_calculator=fixed_prices())
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(lambda thread: asking(agent, thread), range(THREADS)))
    assert [len(outputs) for outputs in answers] == [LOOPS * CALLS] * THREADS
    assert len(provider.lines) == THREADS * LOOPS * CALLS
    assert_agree(provider.lines, asyncio.run(entries_of(url)))


def openai(provider: ProviderProcess, name: str = "gpt-5-mini") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=provider.base_url, api_key=KEY))


READY: dict[str, Callable[[ProviderProcess], FastroAgent[str]]] = {
    "a model": lambda provider: FastroAgent(model=openai(provider)),
    "a model behind wrappers": lambda provider: FastroAgent(model=WrapperModel(openai(provider))),
    "an agent": lambda provider: FastroAgent(agent=Agent(openai(provider))),
    "an agent by name": lambda _: FastroAgent(agent=Agent("openai-chat:gpt-5-mini")),
    "a fallback": lambda provider: FastroAgent(
        model=FallbackModel(openai(provider), openai(provider, "gpt-4.1-mini"))
    ),
}


@pytest.mark.parametrize("ready", READY.values(), ids=READY)
def test_ready_made_models_keep_each_answer(
    provider: ProviderProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ready: Callable[[ProviderProcess], FastroAgent[str]],
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    agent = ready(provider)
    agent.cost_calculator = fixed_prices()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda thread: asking(agent, thread, loops=2), range(4)))
    assert [len(outputs) for outputs in answers] == [2 * CALLS] * 4
    assert len(provider.lines) == 4 * 2 * CALLS
    assert_agree(provider.lines, asyncio.run(entries_of(url)))
    assert "event loop" not in caplog.text


def test_a_ready_made_model_of_anthropic_keeps_each_answer() -> None:
    answer = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    with CannedServer(answer) as server:
        provider = AnthropicProvider(base_url=server.url, api_key=KEY)
        agent: FastroAgent[str] = FastroAgent(
            model=AnthropicModel("claude-sonnet-4-6", provider=provider)
        )
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda thread: asking(agent, thread, loops=2), range(4)))
    assert answers == [["Hello"] * 2 * CALLS] * 4


def test_agents_of_pydantic_ai_in_the_threads_of_a_step(provider: ProviderProcess) -> None:
    agent = Agent(openai(provider))

    def ask(thread: int) -> list[str]:
        async def calls() -> list[str]:
            runs = await asyncio.gather(*(agent.run(f"{thread}-{call}") for call in range(CALLS)))
            return [run.output for run in runs]

        return asyncio.run(calls())

    @step
    async def ask_all(ctx: StepContext[None]) -> int:
        answers = await asyncio.gather(*(asyncio.to_thread(ask, thread) for thread in range(4)))
        return sum(map(len, answers))

    pipeline = Pipeline("threads", {"ask_all": ask_all}, executor="memory")
    result = asyncio.run(pipeline.execute({}, None))
    assert result.output == len(result.entries) == len(provider.lines) == 4 * CALLS
    assert {entry.response_id for entry in result.entries} == {
        line.response_id for line in provider.lines
    }


def test_a_client_closes_its_connections_in_each_loop(provider: ProviderProcess) -> None:
    client = httpx2.AsyncClient()
    agent: FastroAgent[str] = FastroAgent(
        model=OpenAIChatModel(
            "gpt-5-mini",
            provider=OpenAIProvider(base_url=provider.base_url, api_key=KEY, http_client=client),
        )
    )

    async def elsewhere(asked: threading.Event, closed: threading.Event) -> None:
        await agent.run("there")
        asked.set()
        await asyncio.to_thread(closed.wait)

    async def here() -> None:
        asked, closed = threading.Event(), threading.Event()
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere(asked, closed)))
        await asyncio.to_thread(asked.wait)
        await agent.run("here")
        await client.aclose()
        closed.set()
        await other

    asyncio.run(here())
    assert len(provider.lines) == 2


def test_a_client_whose_loops_cannot_be_kept_apart_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}],
    }
    answer["choices"][0]["message"]["content"] = "Hello"  # type: ignore[index]
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))
    client = httpx2.AsyncClient(transport=transport)
    model = OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(api_key=KEY, http_client=client))
    agent: FastroAgent[str] = FastroAgent(model=model)

    async def outer() -> None:
        await agent.run("here")
        assert "event loop" not in caplog.text
        await asyncio.to_thread(asyncio.run, agent.run("there"))

    asyncio.run(outer())
    assert "openai" in caplog.text
    assert "event loop" in caplog.text
