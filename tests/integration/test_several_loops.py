"""One agent used from several threads, each with event loops of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent

from fastroai import FastroAgent
from fastroai.ledger.entries import LedgerEntry
from fastroai.ledger.ledger import Ledger
from fastroai.testing import fixed_prices
from tests.support.agreement import assert_agree
from tests.support.provider_process import ProviderProcess

THREADS, LOOPS, CALLS = 8, 3, 3


def asking(agent: FastroAgent[str], thread: int, **options: Any) -> list[str]:
    """Answers to three calls at once in each of three loops, one loop after the other."""

    async def calls(loop: int) -> list[str]:
        prompts = [f"{thread}-{loop}-{call}" for call in range(CALLS)]
        responses = await asyncio.gather(*(agent.run(prompt, **options) for prompt in prompts))
        return [response.output for response in responses]

    return [output for loop in range(LOOPS) for output in asyncio.run(calls(loop))]


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


def test_a_ready_made_model_in_two_loops_at_once_is_warned_of(
    provider: ProviderProcess, caplog: pytest.LogCaptureFixture
) -> None:
    agent = FastroAgent(agent=Agent("openai-chat:gpt-5-mini"), cost_calculator=fixed_prices())

    async def outer() -> None:
        await agent.run("here")
        assert "event loop" not in caplog.text
        with suppress(RuntimeError):  # of the connection that belongs to the other loop
            await asyncio.to_thread(asyncio.run, agent.run("there"))

    asyncio.run(outer())
    assert "openai" in caplog.text
    assert "event loop" in caplog.text
