"""An agent called by itself on the true OpenAI client: what its response says agrees with the
provider's invoice.

What becomes of pipelines' requests is compared in tests/acceptance/test_invoice.py.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from fastroai import FastroAgent
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.testing import fixed_prices
from tests.support.agreement import assert_agree, paired
from tests.support.provider import KEY, MODEL, Answer, Refuse
from tests.support.provider_process import ProviderProcess


@pytest.fixture(params=["openai", "openai-chat"])
def model(request: pytest.FixtureRequest) -> str:
    return f"{request.param}:gpt-5-mini"


def agent_on(model: str, **options: Any) -> FastroAgent[Any]:
    return FastroAgent(model=model, cost_calculator=fixed_prices(), **options)


async def books_of(run: Any) -> list[LedgerEntry]:
    """The entries of a run, whatever becomes of it."""
    ledger = RequestRecorder()
    with DispatchScope(ledger), suppress(ModelAPIError):
        await run
    return list(ledger.entries)


async def all_of(chunks: Any) -> str:
    return "".join([chunk.content async for chunk in chunks])


async def test_a_plain_answer(provider: ProviderProcess, model: str) -> None:
    provider.script("Hi", Answer("Hello!", input_tokens=100, output_tokens=10, cached_tokens=40))
    response = await agent_on(model).run("Hi")
    assert_agree(provider.lines, response.entries)
    assert response.output == "Hello!"
    assert response.model == MODEL
    assert response.cache_read_tokens == 40
    assert response.cost_usd == Decimal("0.000084")


async def test_a_tool_loop(provider: ProviderProcess, model: str) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    provider.script(
        "1 + 2", Answer(tool="add", args={"a": 1, "b": 2}), Answer("3", input_tokens=333)
    )
    response = await agent_on(model, toolsets=[FunctionToolset([add])]).run("1 + 2")
    assert_agree(provider.lines, response.entries)
    assert [call["args"] for call in response.tool_calls] == [{"a": 1, "b": 2}]
    assert response.request_count == 2


async def test_no_further_send_without_retries(provider: ProviderProcess, model: str) -> None:
    provider.script("busy", Refuse(429))
    entries = await books_of(agent_on(model, max_retries=0).run("busy"))
    assert_agree(provider.lines, entries)
    assert len(provider.lines) == 1


async def test_a_stream_to_its_end(provider: ProviderProcess, model: str) -> None:
    provider.script("Hi", Refuse(429), Answer("one two three"))
    *pieces, last = [chunk async for chunk in agent_on(model).run_stream("Hi")]
    assert [piece.content for piece in pieces] == ["one", " two", " three"]
    assert_agree(provider.lines, last.usage_data.entries)
    assert last.usage_data.cost_microcents == 180


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_names_no_usage_is_unpriced(
    provider: ProviderProcess, model: str, streamed: bool
) -> None:
    provider.script("Hi", Answer(reports_usage=False))
    agent = agent_on(model)
    entries = await books_of(all_of(agent.run_stream("Hi")) if streamed else agent.run("Hi"))
    [(line, entry)] = paired(provider.lines, entries)
    assert (entry.state, entry.cost_usd, entry.response_id) == (
        EntryState.UNPRICED,
        None,
        line.response_id,
    )


async def test_a_wrong_key_is_refused_once(
    provider: ProviderProcess, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ModelAuthenticationError, match="401"):
        await agent_on(model).run("Hi")
    assert [line.status for line in provider.lines] == [401]


class TestReadyAgent:
    """A client of the user's own would send twice more by itself: it is told not to, and we do."""

    def agent(self, provider: ProviderProcess, **options: Any) -> FastroAgent[Any]:
        own = OpenAIChatModel(
            "gpt-5-mini", provider=OpenAIProvider(base_url=provider.base_url, api_key=KEY)
        )
        return FastroAgent(agent=Agent(own), cost_calculator=fixed_prices(), **options)

    async def test_the_clients_own_retries_are_visible(self, provider: ProviderProcess) -> None:
        provider.script("busy", Refuse(500))
        entries = await books_of(self.agent(provider).run("busy"))
        assert_agree(provider.lines, entries)
        assert len(entries) == 3

    async def test_configured_retries_win(self, provider: ProviderProcess) -> None:
        provider.script("busy", Refuse(500))
        entries = await books_of(self.agent(provider, max_retries=1).run("busy"))
        assert_agree(provider.lines, entries)
        assert len(entries) == 2

    async def test_retries_of_the_settings_win(self, provider: ProviderProcess) -> None:
        provider.script("busy", Refuse(500))
        run = self.agent(provider, max_retries=1).run("busy", model_settings={"max_retries": 0})
        entries = await books_of(run)
        assert_agree(provider.lines, entries)
        assert len(provider.lines) == 1


async def test_nobody_listening_is_no_spend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProviderProcess(tmp_path / "invoice.jsonl") as provider:
        url = provider.base_url
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ledger = RequestRecorder()
    with DispatchScope(ledger), pytest.raises(ModelConnectionError):
        await agent_on("openai:gpt-5-mini", max_retries=0).run("Hi")
    (entry,) = ledger.entries
    assert entry.state is EntryState.REFUSED
    assert (entry.error or "").startswith("Not sent")


async def test_a_local_provider_is_not_billed_as_openai(provider: ProviderProcess) -> None:
    response = await FastroAgent(model="openai:gpt-5-mini").run("Hi")
    assert [entry.state.value for entry in response.entries] == ["unpriced"]
    assert response.cost_usd is None


def test_an_agent_goes_on_in_another_event_loop(provider: ProviderProcess, model: str) -> None:
    agent = agent_on(model)
    for _ in range(2):
        asyncio.run(agent.run("Hi"))
    assert len(provider.lines) == 2


async def test_a_refusal_keeps_what_the_provider_said(
    provider: ProviderProcess, model: str
) -> None:
    provider.script("bad", Refuse(400, code="context_length"))
    with pytest.raises(ModelHTTPError) as raised:
        await agent_on(model).run("bad")
    assert raised.value.status_code == 400
    assert len(provider.lines) == 1
