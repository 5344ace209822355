"""A pipeline of three steps, of which the middle one waits for a file; `python -m
tests.support.gated_run KEY GATE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.errors import FastroAIError
from fastroai.testing import fixed_prices
from tests.support import forked
from tests.support.provider import InvoiceLine

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 150.0
"""Seconds after which a process counts as hanging."""


def pipeline() -> Pipeline[Any, Any, str]:
    """Asks `first`, waits until there is a file at the input's `gate`, asks `second`."""
    agent = FastroAgent(model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices())

    @step
    async def first(ctx: StepContext[Any]) -> str:
        return (await ctx.run(agent, "first")).output

    @step
    async def gate(ctx: StepContext[Any]) -> str:
        waited_for = Gate(ctx.get_input("gate"))
        waited_for.reach()
        while not waited_for.is_open:
            if ctx.get_input("busy"):
                time.sleep(0.01)  # noqa: ASYNC251  # the event loop is blocked
            else:
                await asyncio.sleep(0.01)
        return "open"

    @step
    async def second(ctx: StepContext[Any]) -> str:
        return (await ctx.run(agent, "second")).output

    steps = {"first": first, "gate": gate, "second": second}
    return Pipeline("gated", steps, {"gate": ["first"], "second": ["gate"]}, output_step="second")


class Gate:
    """A file that is there when the step may go on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def is_open(self) -> bool:
        return self.path.exists()

    @property
    def is_reached(self) -> bool:
        """Whether a run waits here: the result of the step before is stored."""
        return self.path.with_suffix(".reached").exists()

    def reach(self) -> None:
        """Say that a run waits here."""
        self.path.with_suffix(".reached").touch()

    def open(self) -> None:
        """Let the step go on."""
        self.path.touch()


class RunProcess:
    """That pipeline, executed in a process of its own, or in several that start at once.

    Args:
        folder: Where what it writes is kept.
        busy: Whether the event loop is blocked at the gate.
    """

    def __init__(
        self, run_key: str, gate: Gate, folder: Path, *, busy: bool = False, times: int = 1
    ) -> None:
        self.run_key = run_key
        self._log = folder / f"{time.monotonic_ns()}.log"
        arguments = [run_key, str(gate.path), str(times), *(["busy"] if busy else [])]
        with self._log.open("wb") as log:
            self.process = forked.Popen(
                [sys.executable, "-m", "tests.support.gated_run", *arguments],
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it wrote, errors too."""
        return self._log.read_text()

    async def says(self, text: str) -> None:
        """Wait until it wrote this."""
        await until(lambda: text in self.output or self.process.poll() is not None)
        assert text in self.output, self.output

    async def ended(self) -> dict[str, Any]:
        """Wait for its end, and read what it came to."""
        [report] = await self.all_ended(1)
        return report

    async def all_ended(self, times: int) -> list[dict[str, Any]]:
        """Wait for the end of all its processes, and read what each came to."""
        await until(lambda: self.process.poll() is not None)
        reports = [json.loads(line) for line in self.output.splitlines() if line.startswith('{"')]
        assert len(reports) == times, self.output
        return reports

    async def sleep(self) -> None:
        """Stop it until it is sent SIGCONT; not while it writes to its ledger in SQLite, whose lock
        it would keep from all others.
        """
        self.process.send_signal(signal.SIGSTOP)
        await until(lambda: _is_stopped(self.process.pid))
        while _is_locked(os.environ["FASTROAI_LEDGER_URL"]):
            self.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.02)
            await self.sleep()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()


def _is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def _is_locked(url: str) -> bool:
    """Whether somebody writes to a ledger in SQLite."""
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite":
        return False
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as ledger:
        try:
            ledger.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


async def until(condition: Any) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It never was.
    """
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # only another process knows
            await asyncio.sleep(0.02)


def prompts(lines: list[InvoiceLine]) -> list[str]:
    """What the provider was asked, in order."""
    return [line.prompt for line in lines]


async def main(run_key: str, gate: str, busy: bool) -> None:
    """Execute it and report in one line of JSON."""
    try:
        result = await pipeline().execute({"gate": gate, "busy": busy}, None, run_key=run_key)
    except FastroAIError as error:
        report = {"error": type(error).__name__, "said": str(error)}
    else:
        states = [entry.state for entry in result.entries]
        report = {"output": result.output, "states": states}
    sys.stdout.write(json.dumps(report) + "\n")


def in_processes(times: int, work: Any) -> None:
    """Run this in several processes at once, which import all that it needs only once."""
    children = []
    for _ in range(times):
        child = os.fork()
        if not child:
            asyncio.run(work())
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    run_key, path, times, *options = sys.argv[1:]
    work = partial(main, run_key, path, "busy" in options)
    if times == "1":
        asyncio.run(work())
    else:
        import_module("fastroai.executors.prefect")
        in_processes(int(times), work)
