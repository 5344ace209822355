"""Processes that write to one ledger, to be run as `python -m tests.support.ledger_writers`; some
are killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from decimal import Decimal
from pathlib import Path

from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.store import LedgerStore, open_store
from fastroai.pricing.token_counts import TokenCounts

COST = Decimal("0.000123456789")


def entry(name: str) -> LedgerEntry:
    """An entry whose id says who wrote it."""
    return LedgerEntry(
        id=name,
        attribution=Attribution(run_id="shared", step_id=name),
        model_asked="openai:gpt-5-mini",
    )


def charged(sent: LedgerEntry) -> LedgerEntry:
    """It, answered."""
    return sent.settled(EntryState.CHARGED, cost_usd=COST, tokens=TokenCounts(input_tokens=3))


async def write(url: str, name: str, count: int, spill: Path) -> None:
    """Many coroutines, each with a request of its own."""
    store = await open_store(url, outbox_folder=spill)

    async def request(number: int) -> None:
        sent = entry(f"{name}-{number}")
        await store.intend(sent)
        await asyncio.sleep(random.uniform(0, 0.02))
        store.settle(charged(sent))

    await asyncio.gather(*(request(number) for number in range(count)))
    await store.close()


async def write_until_killed(url: str, name: str, spill: Path, out: int) -> None:
    """Requests without end, ten at a time; each intent and each flushed outcome is reported when it
    is committed.
    """
    store = await open_store(url, outbox_folder=spill)
    os.write(out, b'["ready", ""]\n')
    await asyncio.gather(*(_requests(store, f"{name}-{lane}", out) for lane in range(10)))


async def _requests(store: LedgerStore, name: str, out: int) -> None:
    number = 0
    while True:
        number += 1
        sent = entry(f"{name}-{number}")
        await store.intend(sent)
        os.write(out, (json.dumps(["intended", sent.id]) + "\n").encode())
        store.settle(charged(sent))
        if number % 3 == 0:
            await store.flush()
            os.write(out, (json.dumps(["settled", sent.id]) + "\n").encode())


def in_processes(url: str, processes: int, count: int, spill: Path) -> None:
    """Several processes at once."""
    children = []
    for number in range(processes):
        child = os.fork()
        if not child:
            asyncio.run(write(url, f"p{number}", count, spill))
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("A writer failed.")


def killed(url: str, kills: int, spill: Path) -> None:
    """Processes that are killed at random moments, one after the other; writes out what each had
    reported.
    """
    for number in range(kills):
        reading, out = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            asyncio.run(write_until_killed(url, f"k{number}", spill, out))
        os.close(out)
        with os.fdopen(reading) as reports:
            sys.stdout.write(reports.readline())
            time.sleep(random.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            # A line that was cut off was not reported.
            sys.stdout.writelines(line for line in reports if line.endswith("\n"))


if __name__ == "__main__":
    what, url, number, spill, *more = sys.argv[1:]
    if what == "killed":
        killed(url, int(number), Path(spill))
    else:
        in_processes(url, int(number), int(more[0]), Path(spill))
