"""Measuring process: what counting model requests costs.

One JSON command a line, one JSON answer a line.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from pydantic_ai.usage import RequestUsage
from sqlalchemy.dialects import postgresql

from benchmarks.plain_agents import plain_agent
from fastroai import FastroAgent
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import open_store
from fastroai.ledger.store.mapping import intent_row
from fastroai.ledger.store.schema import intents
from fastroai.metering.scope import DispatchScope
from fastroai.pricing.token_counts import TokenCounts
from fastroai.testing import ScriptedModel

USAGE = RequestUsage(input_tokens=1_200, output_tokens=180)
AT = Attribution(run_id="run", pipeline="benchmark", step_id="ask", dispatch=1)


async def each(count: int, work: Callable[[], Awaitable[Any]]) -> float:
    """Seconds for one, of several done one after the other."""
    started = time.perf_counter()
    for _ in range(count):
        await work()
    return (time.perf_counter() - started) / count


async def plain(count: int) -> float:
    agent = plain_agent(ScriptedModel("Hello!", usage=USAGE, repeat=True))
    return await each(count, lambda: agent.run("Hi"))


async def metered(count: int) -> float:
    agent: FastroAgent[str] = FastroAgent(model=ScriptedModel("Hello!", usage=USAGE, repeat=True))
    with DispatchScope(RequestRecorder(), AT):
        return await each(count, lambda: agent.run("Hi"))


async def booked(count: int, folder: Path, url: str, at_once: int = 1) -> float:
    """Intent and settlement of a request, the last one written when the time ends."""
    store = await open_store(url, outbox_folder=folder)

    async def book() -> None:
        entry = LedgerEntry(
            attribution=AT,
            agent="a",
            model_asked="openai:gpt-5-mini",
            provider_host="api.openai.com",
        )
        await store.intend(entry)
        store.settle(
            entry.settled(
                EntryState.CHARGED, tokens=TokenCounts(input_tokens=1_200, output_tokens=180)
            )
        )

    try:
        await book()
        await store.flush()
        started = time.perf_counter()
        await asyncio.gather(*(each(count // at_once, book) for _ in range(at_once)))
        await store.flush()
        return (time.perf_counter() - started) / count
    finally:
        await store.close()


def committed(count: int, folder: Path) -> float:
    """One row in one commit, by the driver alone, in a database set up like the ledger's."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    names = list(intent_row(LedgerEntry()))
    columns = ", ".join(f"{name} {intents.c[name].type}" for name in names)
    connection.execute(f"CREATE TABLE intents ({columns}, PRIMARY KEY (id))")
    insert = f"INSERT INTO intents ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    rows = [
        intent_row(LedgerEntry(attribution=AT, model_asked="openai:gpt-5-mini"))
        for _ in range(count)
    ]
    started = time.perf_counter()
    for row in rows:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(insert, [row[name] for name in names])
        connection.execute("COMMIT")
    took = time.perf_counter() - started
    connection.close()
    return took / count


async def committed_to_postgresql(count: int, url: str) -> float:
    """The same in PostgreSQL, by the driver that the ledger has."""
    connection = await asyncpg.connect(url)
    rows = [
        intent_row(LedgerEntry(attribution=AT, model_asked="openai:gpt-5-mini"))
        for _ in range(count)
    ]
    names = list(rows[0])
    types = postgresql.dialect()
    columns = ", ".join(f"{name} {intents.c[name].type.compile(types)}" for name in names)
    await connection.execute("DROP TABLE IF EXISTS bare")
    await connection.execute(f"CREATE TABLE bare ({columns}, PRIMARY KEY (id))")
    places = ", ".join(f"${number + 1}" for number in range(len(names)))
    insert = await connection.prepare(f"INSERT INTO bare ({', '.join(names)}) VALUES ({places})")
    started = time.perf_counter()
    for row in rows:
        await insert.fetch(*(row[name] for name in names))
    took = time.perf_counter() - started
    await connection.close()
    return took / count


def measure(subject: str, count: int, folder: Path, url: str) -> float:
    """Seconds for one of a subject.

    Args:
        url: Of a database of PostgreSQL.
    """
    gc.collect()  # else one clears away what another has left
    if subject == "committed":
        return committed(count, folder)
    ledger = f"sqlite:///{folder / 'ledger.db'}"
    way = {
        "plain": lambda: plain(count),
        "metered": lambda: metered(count),
        "booked": lambda: booked(count, folder, ledger),
        "shared": lambda: booked(count, folder, ledger, at_once=100),
        "pg-committed": lambda: committed_to_postgresql(count, url),
        "pg-booked": lambda: booked(count, folder, url),
        "pg-shared": lambda: booked(count, folder, url, at_once=100),
    }[subject]
    return asyncio.run(way())


def main() -> None:
    """Answer until there are no more commands. The argument: a database of PostgreSQL."""
    print(json.dumps({}), flush=True)  # noqa: T201  # the protocol of workers
    for line in sys.stdin:
        command = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(command["subject"], command["count"], Path(folder), sys.argv[1])
        print(json.dumps({"seconds": seconds}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
