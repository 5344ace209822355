"""The true OpenAI client against a loopback provider: its invoice and our entries agree line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelAuthenticationError, ModelConnectionError, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from fastroai import FastroAgent
from fastroai.agent.metering import dispatch_scope
from fastroai.testing import fixed_prices
from fastroai.usage.ledger import EntryState, LedgerEntry, RunLedger, total_usd
from tests.support.provider import KEY, MODEL, Answer, Die, Hang, InvoiceLine, LoopbackProvider, Refuse

BILLED = {EntryState.CHARGED, EntryState.UNPRICED, EntryState.UNSETTLED}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackProvider]:
    with LoopbackProvider(tmp_path / "invoice.jsonl") as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


@pytest.fixture(params=["openai", "openai-chat"])
def model(request: pytest.FixtureRequest) -> str:
    return f"{request.param}:gpt-5-mini"


def agent_on(model: str, **options: Any) -> FastroAgent[Any]:
    return FastroAgent(model=model, cost_calculator=fixed_prices(), **options)


async def books_of(run: Any) -> list[LedgerEntry]:
    """The entries of a run, whatever becomes of it."""
    ledger = RunLedger()
    with dispatch_scope(ledger), suppress(ModelAPIError, TimeoutError, asyncio.CancelledError):
        await run
    return list(ledger.entries)


async def all_of(chunks: Any) -> str:
    return "".join([chunk.content async for chunk in chunks])


def agree(entries: list[LedgerEntry], provider: LoopbackProvider) -> None:
    """Each line has its entry and each entry its line; what was answered costs the same in both."""
    assert len(entries) == len(provider.lines)
    for entry, line in zip(entries, provider.lines, strict=True):
        assert entry.provider_host == provider.host
        assert (entry.state in BILLED) is line.billed
        if entry.state is EntryState.CHARGED:
            assert (entry.response_id, entry.model_answered) == (line.response_id, line.model)
            assert entry.cost_usd == price_of(line)
    charged = [line for entry, line in zip(entries, provider.lines, strict=True) if entry.cost_usd is not None]
    assert total_usd(entries) == sum(map(price_of, charged), Decimal(0))


def price_of(line: InvoiceLine) -> Decimal:
    """At one microcent for an input token, a tenth where cached, and two for an output token."""
    tenths = 10 * (line.input_tokens - line.cached_tokens) + line.cached_tokens + 20 * line.output_tokens
    return Decimal(tenths) / 10_000_000


async def test_a_plain_answer(provider: LoopbackProvider, model: str) -> None:
    provider.script("Hi", Answer("Hello!", input_tokens=100, output_tokens=10, cached_tokens=40))
    response = await agent_on(model).run("Hi")
    agree(list(response.entries), provider)
    assert response.output == "Hello!"
    assert response.model == MODEL
    assert response.cache_read_tokens == 40
    assert response.cost_usd == Decimal("0.000084")


async def test_a_tool_loop(provider: LoopbackProvider, model: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    provider.script("1 + 2", Answer(tool="add", args={"a": 1, "b": 2}), Answer("3", input_tokens=333))
    response = await agent_on(model, toolsets=[FunctionToolset([add])]).run("1 + 2")
    agree(list(response.entries), provider)
    assert [call["args"] for call in response.tool_calls] == [{"a": 1, "b": 2}]
    assert response.request_count == 2


async def test_an_output_that_must_be_asked_for_twice(provider: LoopbackProvider, model: str) -> None:
    class City(BaseModel):
        name: str

    bad = Answer(tool="final_result", args={"nom": "Oslo"})
    provider.script("City?", bad, Answer(tool="final_result", args={"name": "Oslo"}))
    response = await agent_on(model, output_type=City).run("City?")
    agree(list(response.entries), provider)
    assert response.output == City(name="Oslo")
    assert response.request_count == 2


async def test_refusals_before_an_answer(provider: LoopbackProvider, model: str) -> None:
    provider.script("busy", Refuse(429), Refuse(500), Answer("at last"))
    response = await agent_on(model).run("busy")
    agree(list(response.entries), provider)
    assert [entry.state.value for entry in response.entries] == ["refused", "refused", "charged"]


async def test_refusals_to_the_end(provider: LoopbackProvider, model: str) -> None:
    provider.script("busy", Refuse(503))
    entries = await books_of(agent_on(model, max_retries=2).run("busy"))
    agree(entries, provider)
    assert len(entries) == 3


async def test_no_further_send_without_retries(provider: LoopbackProvider, model: str) -> None:
    provider.script("busy", Refuse(429))
    agree(await books_of(agent_on(model, max_retries=0).run("busy")), provider)
    assert len(provider.lines) == 1


async def test_a_timeout_is_billed_and_unsettled(provider: LoopbackProvider, model: str) -> None:
    provider.script("slow", Hang())
    entries = await books_of(agent_on(model, timeout=0.2).run("slow"))
    agree(entries, provider)
    assert [entry.state.value for entry in entries] == ["unsettled"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_run_is_billed_and_unsettled(provider: LoopbackProvider, model: str, streamed: bool) -> None:
    provider.script("slow", Hang())
    agent = agent_on(model)
    books = asyncio.create_task(books_of(all_of(agent.run_stream("slow")) if streamed else agent.run("slow")))
    assert await asyncio.to_thread(provider.hanging.wait, 10)
    books.cancel()
    entries = await books
    agree(entries, provider)
    assert [entry.state.value for entry in entries] == ["unsettled"]


async def test_a_stream_to_its_end(provider: LoopbackProvider, model: str) -> None:
    provider.script("Hi", Refuse(429), Answer("one two three"))
    *pieces, last = [chunk async for chunk in agent_on(model).run_stream("Hi")]
    assert [piece.content for piece in pieces] == ["one", " two", " three"]
    agree(list(last.usage_data.entries), provider)
    assert last.usage_data.cost_microcents == 180


async def test_a_stream_that_is_left(provider: LoopbackProvider, model: str) -> None:
    async def leave() -> None:
        async with aclosing(agent_on(model).run_stream("Hi")) as chunks:
            async for _ in chunks:
                break

    provider.script("Hi", Answer("one two three"))
    entries = await books_of(leave())
    agree(entries, provider)
    assert [(entry.state.value, entry.cost_usd) for entry in entries] == [("unsettled", None)]


async def test_a_stream_that_breaks_off(provider: LoopbackProvider, model: str) -> None:
    provider.script("Hi", Die())
    entries = await books_of(all_of(agent_on(model).run_stream("Hi")))
    agree(entries, provider)
    assert [(entry.state.value, entry.cost_usd) for entry in entries] == [("unsettled", None)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_names_no_usage_is_unpriced(
    provider: LoopbackProvider, model: str, streamed: bool
) -> None:
    provider.script("Hi", Answer(reports_usage=False))
    agent = agent_on(model)
    entries = await books_of(all_of(agent.run_stream("Hi")) if streamed else agent.run("Hi"))
    agree(entries, provider)
    assert [(entry.state.value, entry.cost_usd) for entry in entries] == [("unpriced", None)]


async def test_a_wrong_key_is_refused_once(
    provider: LoopbackProvider, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ModelAuthenticationError, match="401"):
        await agent_on(model).run("Hi")
    assert [line.status for line in provider.lines] == [401]


async def test_fifty_runs_at_once(provider: LoopbackProvider, model: str) -> None:
    agent = agent_on(model)
    responses = await asyncio.gather(*(agent.run(f"Hi {number}") for number in range(50)))
    entries = sorted((entry for response in responses for entry in response.entries), key=lambda e: e.response_id or "")
    lines = sorted(provider.lines, key=lambda line: line.response_id or "")
    assert [entry.response_id for entry in entries] == [line.response_id for line in lines]
    assert total_usd(entries) == sum(map(price_of, lines), Decimal(0))


async def test_the_invoice_is_also_a_file(provider: LoopbackProvider, tmp_path: Path) -> None:
    await agent_on("openai:gpt-5-mini").run("Hi")
    (line,) = (tmp_path / "invoice.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "answered"


class TestReadyAgent:
    """A client of the user's own would send twice more by itself: it is told not to, and we do."""

    def agent(self, provider: LoopbackProvider, **options: Any) -> FastroAgent[Any]:
        own = OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(base_url=provider.base_url, api_key=KEY))
        return FastroAgent(agent=Agent(own), cost_calculator=fixed_prices(), **options)

    async def test_the_clients_own_retries_are_visible(self, provider: LoopbackProvider) -> None:
        provider.script("busy", Refuse(500))
        entries = await books_of(self.agent(provider).run("busy"))
        agree(entries, provider)
        assert len(entries) == 3

    async def test_configured_retries_win(self, provider: LoopbackProvider) -> None:
        provider.script("busy", Refuse(500))
        entries = await books_of(self.agent(provider, max_retries=1).run("busy"))
        agree(entries, provider)
        assert len(entries) == 2

    async def test_retries_of_the_settings_win(self, provider: LoopbackProvider) -> None:
        provider.script("busy", Refuse(500))
        run = self.agent(provider, max_retries=1).run("busy", model_settings={"max_retries": 0})
        agree(await books_of(run), provider)
        assert len(provider.lines) == 1


async def test_nobody_listening_is_no_spend(monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackProvider() as provider:
        url = provider.base_url
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ledger = RunLedger()
    with dispatch_scope(ledger), pytest.raises(ModelConnectionError):
        await agent_on("openai:gpt-5-mini", max_retries=0).run("Hi")
    (entry,) = ledger.entries
    assert entry.state is EntryState.REFUSED
    assert (entry.error or "").startswith("Not sent")


async def test_a_local_provider_is_not_billed_as_openai(provider: LoopbackProvider) -> None:
    response = await FastroAgent(model="openai:gpt-5-mini").run("Hi")
    assert [entry.state.value for entry in response.entries] == ["unpriced"]
    assert response.cost_usd is None


def test_an_agent_goes_on_in_another_event_loop(provider: LoopbackProvider, model: str) -> None:
    agent = agent_on(model)
    for _ in range(2):
        asyncio.run(agent.run("Hi"))
    assert len(provider.lines) == 2


async def test_a_refusal_keeps_what_the_provider_said(provider: LoopbackProvider, model: str) -> None:
    provider.script("bad", Refuse(400, code="context_length"))
    with pytest.raises(ModelHTTPError) as raised:
        await agent_on(model).run("bad")
    assert raised.value.status_code == 400
    assert len(provider.lines) == 1
