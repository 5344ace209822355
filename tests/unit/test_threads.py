"""Threads that a step starts by itself: what they send is in its run's books."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from pydantic_ai import Agent

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.ledger.ledger import Ledger
from fastroai.testing import ScriptedModel

NUMBERS = range(3)

Ask = Callable[[Any], Any]


def raw_agent(model: ScriptedModel) -> Ask:
    agent = Agent(model)
    return lambda number: agent.run_sync(f"q{number}").output


def own_agent(model: ScriptedModel) -> Ask:
    agent = FastroAgent(model=model)
    return lambda number: asyncio.run(agent.run(f"q{number}")).output


def by_pool(ask: Ask) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, NUMBERS))


def by_threads(ask: Ask) -> None:
    threads = [threading.Thread(target=ask, args=(number,)) for number in NUMBERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_timers(ask: Ask) -> None:
    timers = [threading.Timer(0.001, ask, args=(number,)) for number in NUMBERS]
    for timer in timers:
        timer.start()
    for timer in timers:
        timer.join()


def by_thread_pool(ask: Ask) -> None:
    with ThreadPool(2) as pool:
        pool.map(ask, NUMBERS)


def by_threads_of_threads(ask: Ask) -> None:
    thread = threading.Thread(target=by_pool, args=(ask,))
    thread.start()
    thread.join()


def by_executor_of_a_loop(ask: Ask) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, ask, number) for number in NUMBERS))

    asyncio.run(main())


WAYS = [
    by_pool,
    by_threads,
    by_timers,
    by_thread_pool,
    by_threads_of_threads,
    by_executor_of_a_loop,
]


def asking(way: Callable[[Ask], None], ask: Ask) -> Pipeline[Any, Any, Any]:
    @step
    def it(context: StepContext[None]) -> str:
        way(ask)
        return "x"

    return Pipeline("threads", {"it": it}, executor="memory")


@pytest.mark.parametrize("kind", [raw_agent, own_agent])
@pytest.mark.parametrize("way", WAYS)
async def test_what_a_thread_sends_is_booked_to_its_step(
    way: Callable[[Ask], None], kind: Callable[[ScriptedModel], Ask]
) -> None:
    result = await asking(way, kind(ScriptedModel("Hi", repeat=True))).execute({}, None)
    assert [entry.attribution.step_id for entry in result.entries] == ["it"] * len(NUMBERS)


async def test_runs_that_share_a_pool_keep_their_books_apart() -> None:
    ask = raw_agent(ScriptedModel("Hi", repeat=True))
    with ThreadPoolExecutor(3) as pool:
        pipeline = asking(lambda ask: list(pool.map(ask, NUMBERS)), ask)  # type: ignore[arg-type,return-value]
        results = await asyncio.gather(*(pipeline.execute({}, None) for _ in range(5)))
        pool.submit(ask, "of no run").result()
    for result in results:
        assert {entry.attribution.run_id for entry in result.entries} == {result.run_id}
        assert len(result.entries) == len(NUMBERS)


async def test_a_thread_that_outlives_its_run_books_nothing_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", "sqlite:///ledger.db")
    ask = raw_agent(ScriptedModel("Hi", repeat=True))
    asked: queue.Queue[tuple[Any, asyncio.Future[Any]] | None] = queue.Queue()
    worker: list[threading.Thread] = []

    def serve() -> None:
        while (item := asked.get()) is not None:
            question, answered = item
            answered.get_loop().call_soon_threadsafe(answered.set_result, ask(question))

    async def ask_the_worker() -> None:
        answered = asyncio.get_running_loop().create_future()
        asked.put(("q", answered))
        await answered

    @step
    async def it(context: StepContext[None]) -> str:
        if not worker:
            worker.append(threading.Thread(target=serve))
            worker[0].start()
        await ask_the_worker()
        return "x"

    pipeline = Pipeline("threads", {"it": it}, executor="memory")
    first = await pipeline.execute({}, None)
    second = await pipeline.execute({}, None)
    asked.put(None)
    worker[0].join()
    assert [entry.attribution.run_id for entry in first.entries] == [first.run_id]
    assert second.entries == ()
    async with Ledger.open("sqlite:///ledger.db") as ledger:
        booked = [entry.attribution.run_id for entry in await ledger.entries()]
    assert sorted(booked, key=str) == sorted([first.run_id, None], key=str)


async def test_what_a_pool_does_after_its_run_is_not_booked_to_that() -> None:
    go_on = threading.Event()
    ask = raw_agent(ScriptedModel("Hi", repeat=True))
    late: list[Future[Any]] = []

    def ask_late() -> None:
        go_on.wait(10)
        ask("late")

    with ThreadPoolExecutor(1) as pool:

        @step
        def it(context: StepContext[None]) -> str:
            late.append(pool.submit(ask_late))
            return "x"

        result = await Pipeline("late", {"it": it}, executor="memory").execute({}, None)
        recorded = len(result.entries)
        go_on.set()
        await asyncio.wrap_future(late[0])
    assert (recorded, result.entries) == (0, ())


@pytest.mark.parametrize(
    "hand_out",
    [
        lambda pool, ask: pool.map(ask, NUMBERS),
        lambda pool, ask: list(pool.imap_unordered(ask, NUMBERS)),
        lambda pool, ask: [pool.apply(ask, (number,)) for number in NUMBERS],
        lambda pool, ask: pool.starmap_async(ask, [(number,) for number in NUMBERS]).get(),
    ],
)
async def test_a_pool_of_before_works_for_the_step_that_hands_it_work(
    hand_out: Callable[[ThreadPool, Ask], Any],
) -> None:
    ask = raw_agent(ScriptedModel(*"abc"))
    with ThreadPool(2) as pool:
        result = await asking(lambda ask: hand_out(pool, ask), ask).execute({}, None)
    assert [entry.attribution.step_id for entry in result.entries] == ["it"] * 3
