"""Asks a model many times at once; driven by JSON lines.

`plain` is pydantic-ai's `Agent.run`, `ours` the step of a pipeline in memory that asks as often,
booked in a SQLite ledger, its answers recorded for further attempts. Both have the client that
pydantic-ai makes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks.answering import answer
from benchmarks.mapped_worker import Memory
from benchmarks.plain_agents import plain_agent
from fastroai import FastroAgent, Pipeline, StepConfig, StepContext, step
from fastroai.testing import fixed_prices

MODEL = "openai-chat:gpt-5-mini"


async def plain(requests: int) -> None:
    agent = plain_agent(MODEL)
    await asyncio.gather(*(agent.run(f"What does mill {n} do?") for n in range(requests)))


async def ours(requests: int) -> None:
    agent: FastroAgent[str] = FastroAgent(model=MODEL, cost_calculator=fixed_prices())

    @step
    async def ask(context: StepContext[Any]) -> int:
        asked = (context.run(agent, f"What does mill {n} do?") for n in range(requests))
        return len(await asyncio.gather(*asked))

    configs = {"ask": StepConfig(durable="request", retries=1)}
    pipeline: Any = Pipeline("in-flight", {"ask": ask}, step_configs=configs, executor="memory")
    await pipeline.execute({}, None)


def refused(ledger: Path) -> int:
    """Requests in a ledger that did not get as far as the provider, or that it refused."""
    with closing(sqlite3.connect(ledger)) as connection:
        counted = "SELECT count(*) FROM fastroai_outcomes WHERE state = 'refused'"
        return int(connection.execute(counted).fetchone()[0])


async def timed(ask: Callable[[int], Awaitable[None]], requests: int) -> dict[str, float]:
    started, used = perf_counter(), process_time()
    await ask(requests)
    return {"seconds": perf_counter() - started, "cpu": process_time() - used}


def measure(subject: str, requests: int, folder: Path) -> dict[str, float]:
    ledger = folder / "ledger.db"
    os.environ["FASTROAI_LEDGER_URL"] = f"sqlite:///{ledger}"
    gc.collect()
    with Memory() as memory:
        figures = asyncio.run(timed({"plain": plain, "ours": ours}[subject], requests))
    figures["bytes"] = memory.added
    figures["refused"] = refused(ledger) if subject == "ours" else 0
    return figures


def handle(command: dict[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return measure(command["subject"], command["requests"], Path(folder))


def main() -> None:
    answer(handle)


if __name__ == "__main__":
    main()
