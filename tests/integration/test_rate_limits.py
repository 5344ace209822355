"""Rate limits that several processes share, at a provider that keeps count."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Embedder

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.database.engine import database_url, open_database
from fastroai.ledger.store import open_store
from fastroai.provider_limits import ProviderLimit
from fastroai.rate_limits import LIMITERS, Amounts, RateLimiter
from fastroai.rate_limits.ledger_pools import LedgerPools
from fastroai.rate_limits.turns import Turn, Waiting
from fastroai.testing import fixed_prices
from fastroai.usage import EntryState
from tests.support import forked
from tests.support.limited_provider import Counted, LimitedProvider, limited_provider

REPOSITORY = Path(__file__).parents[2]
ONE = Amounts.of(0, 0)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_ledger"))
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(autouse=True)
def forget_limiters() -> Iterator[None]:
    yield
    LIMITERS.clear()


@asynccontextmanager
async def limiters(
    url: str, count: int, lease: float = 30, **limits: Any
) -> AsyncIterator[list[RateLimiter]]:
    """As many processes would have, with connections of their own."""
    await (await open_store(url)).close()
    made = []
    for _ in range(count):
        database = open_database(database_url(url), writes=True, keeps=False)
        limiter = RateLimiter(LedgerPools(database), lease=lease)
        limiter.configure({"acme": ProviderLimit(**limits)}, {})
        made.append(limiter)
    yield made
    for limiter in made:
        await asyncio.to_thread(limiter.dispatcher.close_at_exit)


async def take(limiter: RateLimiter) -> Turn:
    """In a task of its own: who has a turn does not wait for another."""
    return await asyncio.create_task(limiter.take(("acme",), "run", lambda: ONE, Waiting(0)))


@pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True
)
async def test_processes_share_a_pace_and_none_starves(url: str) -> None:
    async with limiters(url, 3, requests_per_minute=6000) as shared:
        began, given = time.monotonic(), [0, 0, 0]

        async def ask(index: int) -> None:
            while time.monotonic() < began + 1:
                shared[index].settle(await take(shared[index]), ONE)
                given[index] += 1

        # The first has fifty times as many that wait.
        await asyncio.gather(*(ask(0) for _ in range(100)), *(ask(n) for n in (1, 2, 1, 2)))
        took = time.monotonic() - began
    # 100 a second, 95 % of it, and the share of 1.5 seconds at once.
    assert sum(given) <= 95 * took + 95 * 1.5 + 3
    assert sum(given) >= 95
    # Each waits for half a second, as turns are given ahead, and then looks again.
    assert min(given) >= 2


async def test_processes_share_slots_and_what_one_leaves_another_gets(url: str) -> None:
    async with limiters(url, 2, concurrency=2) as (first, second):
        held = [await take(first), await take(second)]
        waiting = asyncio.create_task(take(second))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        first.settle(held[0], ONE)
        async with asyncio.timeout(5):
            held.append(await waiting)
        for turn in held[1:]:
            second.settle(turn, ONE)


@contextmanager
def senders(url: str, base_url: str, limits: str, *arguments: object) -> Iterator[Any]:
    """Processes that wait for a line before they send, one for each call of what is given."""
    environment = os.environ | {
        "FASTROAI_LEDGER_URL": url,
        "FASTROAI_RATE_LIMITS": limits,
        "FASTROAI_LEASE_SECONDS": "1",
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "unused",
    }

    given = list(map(str, arguments))
    with ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[Any]:
            process = forked.Popen(
                [sys.executable, "-m", "tests.support.limited_senders", name, *given],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.stdin.close)
            stack.callback(process.kill)
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def send_from_four(url: str, window: float, limits: tuple[int, int], seconds: float) -> Counted:
    """What a provider counts that four processes send to at once."""
    requests, tokens = limits
    said = f"openai rpm={requests} tpm={tokens}"
    with (
        limited_provider(requests, tokens, window, 0.1) as provider,
        senders(url, provider.base_url, said, 16, seconds, window) as start,
    ):
        processes = [start(f"p{number}") for number in range(4)]
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answered = [json.loads(process.stdout.readline()) for process in processes]
        counted = provider.end()
    assert sum(answered) == len(counted.arrivals)
    assert min(answered) >= 0.5 * sum(answered) / 4
    return counted


def used_of(counted: Counted, limits: tuple[int, int], window: float, after: float = 0) -> float:
    """The share of the tighter limit that was used, so long after the first request, until the
    last.
    """
    begin, end = counted.arrivals[0] + after, counted.arrivals[-1]
    requests, tokens = counted.used(begin, end)
    windows = (end - begin) / window
    return max(requests / limits[0], tokens / limits[1]) / windows


def test_four_processes_use_a_limit_and_are_hardly_refused(tmp_path: Path) -> None:
    limits, window = (75, 12_400), 3.0
    counted = send_from_four(f"sqlite:///{tmp_path}/ledger.db", window, limits, 2 * window)
    # Until the first answers, each process expects too much of its requests; and on a busy machine
    # a tenth of a second is much of so short a window. Without limits it would be 9 of 10.
    assert used_of(counted, limits, window, after=2) >= 0.7
    assert len(counted.refused) <= 0.1 * len(counted.arrivals)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_four_processes_use_600_requests_and_100000_tokens_a_minute(url: str) -> None:
    limits, window = (600, 100_000), 60.0
    counted = send_from_four(url, window, limits, 2 * window)
    assert used_of(counted, limits, window) >= 0.9
    assert len(counted.refused) <= 0.01 * len(counted.arrivals)


def test_what_a_killed_process_had_under_way_is_free_within_a_lease(tmp_path: Path) -> None:
    with (
        limited_provider(1000, 1_000_000, 60, 30) as provider,
        senders(
            f"sqlite:///{tmp_path}/ledger.db", provider.base_url, "openai concurrency=2", 2, 60, 60
        ) as start,
    ):
        first, second = start("first"), start("second")
        first.stdin.write("\n")
        first.stdin.flush()
        wait_until(lambda: slots(tmp_path / "ledger.db") == 2)
        second.stdin.write("\n")
        second.stdin.flush()
        wait_until(lambda: len(holders(tmp_path / "ledger.db")) == 2)
        os.kill(first.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until(lambda: [row[1:] for row in holders(tmp_path / "ledger.db")] == [(2, 0)])
        assert time.monotonic() - killed_at < 1 + 1.5  # a lease, and until somebody looks
        os.kill(second.pid, signal.SIGKILL)


def holders(path: Path) -> list[tuple[str, int, int]]:
    """Who is in a pool of a ledger: its token, what it has under way, and what waits."""
    import sqlite3

    try:
        with sqlite3.connect(path) as connection:
            return connection.execute(
                "SELECT token, slots, waiting FROM fastroai_rate_holders WHERE pool = 'openai'"
            ).fetchall()
    except sqlite3.OperationalError:  # not there yet
        return []


def slots(path: Path) -> int:
    return sum(row[1] for row in holders(path))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any
) -> AsyncIterator[LimitedProvider]:
    """A provider in this loop, that OpenAI's clients made here use."""
    async with AsyncExitStack() as stack:
        provider = LimitedProvider(*arguments, **options)
        port = await stack.enter_async_context(provider.serving())
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        yield provider


def asking(count: int, retries: int) -> Pipeline[None, dict[str, object], None]:
    """A step that asks so often at once."""
    agent: FastroAgent[str] = FastroAgent(
        model="openai-chat:gpt-5-mini", max_retries=retries, cost_calculator=fixed_prices()
    )

    @step
    async def ask(context: StepContext[None]) -> None:
        await asyncio.gather(*(context.run(agent, f"question {n}") for n in range(count)))

    return Pipeline("asking", {"ask": ask}, executor="memory")


async def test_what_answers_say_slows_down_before_the_provider_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, 3000, 100_000_000, 60.0, 0.0, tells=True) as provider:
        # Others have sent so much in the last minute, at an even pace.
        provider._recent.extend((n * 60 / 2850 - 60, 0) for n in range(2850))
        began = time.monotonic()
        for _ in range(2):
            await asking(100, retries=0).execute({})
        took = time.monotonic() - began
    assert provider.counted.refused == []
    # 150 were left, and 47.5 come back each second.
    assert took >= (200 - 150) / 47.5 - 0.2


async def test_after_a_refusal_nothing_is_sent_for_as_long_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, 5, 1_000_000, 0.8, 0.0) as provider:
        counted = provider.counted
        await asking(5, retries=0).execute({})
        refused = asyncio.create_task(asking(1, retries=3).execute({}))
        async with asyncio.timeout(5):
            while not counted.refused:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        # Of another run, in the time for which nothing may be sent.
        await asking(1, retries=0).execute({})
        states = [entry.state for entry in (await refused).entries]
    assert states == [EntryState.REFUSED, EntryState.CHARGED]
    assert len(counted.refused) == 1
    assert min(counted.arrivals[-2:]) >= counted.arrivals[0] + 0.8


async def test_direct_requests_streams_and_embeddings_wait_as_well(
    monkeypatch: pytest.MonkeyPatch, provider: Any
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", "openai concurrency=1")
    agent: FastroAgent[str] = FastroAgent(
        model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices()
    )

    @step
    async def ask(context: StepContext[None]) -> None:
        async def streamed() -> None:
            async for _ in agent.run_stream("streamed"):
                pass

        embedder = Embedder("openai:text-embedding-3-small")
        whole = [agent.agent.run("raw"), context.run(agent, "asked")]
        await asyncio.gather(streamed(), embedder.embed_query("embedded"), *whole)

    result = await Pipeline("p", {"ask": ask}, executor="memory").execute({})
    entries = sorted(result.entries, key=lambda entry: entry.sent_at)
    assert len(entries) == 4
    for before, after in pairwise(entries):
        assert before.settled_at <= after.sent_at
