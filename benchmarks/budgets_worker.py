"""Measuring process: what a standing budget adds to booking a request, and what waiting costs.

Its arguments are the URLs of ledgers without and with a budget. One JSON command a line, one JSON
answer a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

from fastroai.budgets import Budget, Budgets
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.store import LedgerStore, open_store
from fastroai.pricing.token_counts import TokenCounts

AT = Attribution(run_id="run", pipeline="benchmark", step_id="ask", dispatch=1)
BOUND = Decimal("0.01")


def request() -> LedgerEntry:
    return LedgerEntry(
        attribution=AT,
        agent="a",
        model_asked="openai:gpt-5-mini",
        provider_host="api.openai.com",
        upper_bound_usd=BOUND,
    )


async def book(store: LedgerStore) -> None:
    entry = await store.intend(request())
    store.settle(
        entry.settled(
            EntryState.CHARGED,
            cost_usd=Decimal("0.000450"),
            tokens=TokenCounts(input_tokens=1_200, output_tokens=180),
        )
    )


async def booked(url: str, count: int, at_once: int) -> float:
    """Seconds for a request, several at once."""
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(url, outbox_folder=Path(folder))
        try:
            await book(store)
            await store.flush()
            started = time.perf_counter()
            for _ in range(count // at_once):
                await asyncio.gather(*(book(store) for _ in range(at_once)))
            await store.flush()
            return (time.perf_counter() - started) / count
        finally:
            await store.close()


async def waited(url: str, count: int, seconds: float) -> float:
    """The share of a processor that is taken while so many requests wait."""
    async with Budgets.open(url) as budgets:
        await budgets.set(Budget(name="full", usd=BOUND, strength="reserved", tag="team=full"))
    full = Attribution(tags={"team": "full"})
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(url, outbox_folder=Path(folder))
        entries = [LedgerEntry(attribution=full, upper_bound_usd=BOUND) for _ in range(count + 1)]
        await store.intend(entries[0])
        waiting = [asyncio.create_task(store.intend(entry)) for entry in entries[1:]]
        await asyncio.sleep(2)
        assert not any(task.done() for task in waiting)
        started, before = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        share = (time.process_time() - before) / (time.perf_counter() - started)
        for task in waiting:
            task.cancel()
        store.settle(entries[0].settled(EntryState.REFUSED))
        await store.close()
    async with Budgets.open(url) as budgets:
        await budgets.remove("full")
    return share


async def prepare(url: str) -> None:
    budget = Budget(name="all", usd=Decimal(10**9), strength="reserved", window="day")
    async with Budgets.open(url) as budgets:
        await budgets.set(budget)


def main() -> None:
    """Answer until there are no more commands."""
    without, limited = sys.argv[1:]
    asyncio.run(prepare(limited))
    print(json.dumps({}), flush=True)  # noqa: T201  # the protocol of workers
    for line in sys.stdin:
        command = json.loads(line)
        if command["subject"] == "waiting":
            answer = asyncio.run(waited(limited, command["count"], command["seconds"]))
        else:
            url = limited if command["subject"] == "limited" else without
            answer = asyncio.run(booked(url, command["count"], command["at_once"]))
        print(json.dumps({"figure": answer}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
