"""Runs whose records are kept in the repository, as an earlier version wrote them.

`python -m tests.support.recorded_runs FOLDER`, under that version, writes the results and the
ledger as SQL. What is in here is part of their keys.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_ai.toolsets import FunctionToolset

from fastroai import BaseStep, FastroAgent, Pipeline, PipelineConfig, StepContext
from fastroai.errors import StepExecutionError
from fastroai.executors import PrefectExecutor
from fastroai.testing import ScriptedModel, ToolCall, fixed_prices

RUN_KEY = "2026-11"
LEDGER, RESULTS = "ledger.sql", "results"


class Invoice(BaseModel):
    """Stored in JSON by its type."""

    number: str
    total: Decimal
    at: datetime


@dataclass
class Summary:
    """Stored in its Python form: a set has no order in JSON."""

    words: set[str]
    lines: tuple[int, str]


INVOICE = Invoice(number="F-7", total=Decimal("10.50"), at=datetime(2026, 11, 1, tzinfo=UTC))
SUMMARY = Summary({"paid", "late"}, (3, "lines"))


class Extract(BaseStep[Any, Invoice]):
    """One request."""

    def __init__(self, agent: FastroAgent[str]) -> None:
        self.agent = agent

    async def execute(self, context: StepContext[Any]) -> Invoice:
        await context.run(self.agent, f"Read {context.get_input('document')}.")
        return INVOICE


class Summarise(BaseStep[Any, Summary]):
    """No request."""

    async def execute(self, context: StepContext[Any]) -> Summary:
        assert context.get_dependency("extract") == INVOICE
        return SUMMARY


class Research(BaseStep[Any, str]):
    """Two requests with a tool call between them, then whatever the caller's deps do."""

    def __init__(self, agent: FastroAgent[str]) -> None:
        self.agent = agent

    async def execute(self, context: StepContext[Any]) -> str:
        response = await context.run(self.agent, "What is the rate?")
        context.deps()
        return response.output


def look_up(currency: str) -> float:
    """The rate of a currency."""
    return 1.0


def agent(model: ScriptedModel, name: str) -> FastroAgent[str]:
    toolsets = [FunctionToolset([look_up], id="rates")] if name == "research" else []
    return FastroAgent(model=model, name=name, toolsets=toolsets, cost_calculator=fixed_prices())


def reused(model: ScriptedModel, results: Path) -> Pipeline[Any, Any, Any]:
    """Steps whose results are used by any run with the same input."""
    return Pipeline(
        "recorded results",
        {"extract": Extract(agent(model, "extract")), "summarise": Summarise()},
        {"summarise": ["extract"]},
        config=PipelineConfig(cache_policy="inputs"),
        executor=PrefectExecutor(result_storage=results),
    )


def resumed(model: ScriptedModel, results: Path) -> Pipeline[Any, Any, Any]:
    """A step whose requests are used by the next run of the same key."""
    return Pipeline(
        "recorded requests",
        {"research": Research(agent(model, "research"))},
        executor=PrefectExecutor(result_storage=results),
    )


def answers() -> ScriptedModel:
    return ScriptedModel(ToolCall("look_up", {"currency": "NOK"}, id="call-1"), "The rate is 1.")


def nothing() -> None:
    """What the deps of an undisturbed run do."""


def interrupt() -> None:
    raise ConnectionError("interrupted")


async def execute_reused(model: ScriptedModel, results: Path) -> Any:
    return await reused(model, results).execute({"document": "F-7"})


async def execute_resumed(model: ScriptedModel, results: Path, deps: Callable[[], None]) -> Any:
    return await resumed(model, results).execute({}, deps, run_key=RUN_KEY)


async def record(folder: Path) -> None:
    """Write plain results, compressed ones, and the requests of an interrupted run."""
    for compression in ("none", "gzip"):
        os.environ["FASTROAI_RESULT_COMPRESSION"] = compression
        await execute_reused(ScriptedModel("Read."), folder / RESULTS / compression)
        # The run with the key begins anew in the other folder.
        with suppress(StepExecutionError):
            await execute_resumed(answers(), folder / RESULTS / compression, interrupt)


def main(folder: Path) -> None:
    ledger = folder / "ledger.db"
    os.environ["FASTROAI_LEDGER_URL"] = f"sqlite:///{ledger}"
    asyncio.run(record(folder))
    with closing(sqlite3.connect(ledger)) as connection:
        (folder / LEDGER).write_text("\n".join(connection.iterdump()))
    for path in folder.glob("ledger.db*"):
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
