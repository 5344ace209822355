"""`fastroai run` that is interrupted, terminated, or left with a step's thread: it ends, and what
ended is noted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from fastroai.usage import Ledger, Totals
from tests.acceptance.conftest import PATIENCE, REPOSITORY
from tests.support import forked
from tests.support.behaviours import Hang
from tests.support.cost_table import read_cost_table
from tests.support.prefect_server import used_home
from tests.support.provider_process import ProviderProcess

FOR_EVER = 100
"""Seconds after which a command that was told to end counts as going on: what it waited for took
longer.
"""

PIPELINES = """
import asyncio
import threading

from fastroai import FastroAgent, Pipeline, step
from fastroai.testing import OfflineModel

agent = FastroAgent(model=OfflineModel(), name="asks")

@step
async def first(context):
    return (await context.run(agent, "a question")).output

@step
async def hangs(context):
    await asyncio.Event().wait()

@step
def blocks(context):
    threading.Event().wait()

@step(timeout=0.2)
def late(context):
    threading.Event().wait()

asks_provider = FastroAgent(model="openai:gpt-5-mini", name="asks-provider")

@step
async def asked(context):
    return (await context.run(asks_provider, "the first question")).output

@step
async def asked_again(context):
    return (await context.run(asks_provider, "the second question")).output

asking = Pipeline("asking", {"asked": asked, "asked_again": asked_again},
                  {"asked_again": ["asked"]})
hanging = Pipeline("hanging", {"first": first, "hangs": hangs}, {"hangs": ["first"]})
blocking = Pipeline("blocking", {"first": first, "blocks": blocks}, {"blocks": ["first"]})
timing_out = Pipeline("timing-out", {"late": late})
"""


class Running:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""

    def says(self, text: str) -> None:
        """Read on until it has said something."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if text in line:
                return
        pytest.fail(f"It never said {text!r}, but:\n{self.said}")

    def end(self) -> int:
        """Wait for it; gives its exit code."""
        _, rest = self.process.communicate(timeout=FOR_EVER)
        self.said += rest
        return self.process.returncode

    def interrupt(self) -> None:
        """What Ctrl-C does: the signal goes to all of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def left_nothing(self) -> bool:
        """Whether no process of the group is there any more."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


@contextmanager
def running(folder: Path, pipeline: str, *arguments: str, **environment: str) -> Iterator[Running]:
    (folder / "mine.py").write_text(PIPELINES)
    process = forked.Popen(
        [sys.executable, "-m", "fastroai.cli", "run", f"mine:{pipeline}", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "FASTROAI_LEDGER_URL": "sqlite:///ledger.db"}
        | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Running(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def rows(database: Path, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


async def total_of(database: Path) -> Totals:
    async with Ledger.open(f"sqlite:///{database}") as ledger:
        [total] = await ledger.totals()
        return total


@pytest.mark.timeout(2 * PATIENCE)
def test_ctrl_c_while_the_temporary_server_starts_ends_both(tmp_path: Path):
    with running(
        tmp_path, "hanging", FASTROAI_EXECUTOR="prefect", PREFECT_HOME=str(tmp_path / "home")
    ) as command:
        command.says("temporary one is started")
        command.interrupt()
        assert command.end() == 130, command.said
        assert "fastroai: interrupted." in command.said
        assert "Traceback" not in command.said
        assert command.left_nothing()


@pytest.mark.long
@pytest.mark.timeout(2 * PATIENCE)
def test_ctrl_c_during_a_step_is_noted_by_the_temporary_server_with_what_was_spent(tmp_path: Path):
    home = used_home(tmp_path / "home")
    with running(
        tmp_path, "hanging", FASTROAI_EXECUTOR="prefect", PREFECT_HOME=str(home)
    ) as command:
        command.says("start   hangs")
        command.interrupt()
        assert command.end() == 130, command.said
        assert "Traceback" not in command.said
        assert command.left_nothing()
    assert rows(home / "prefect.db", "SELECT state_type FROM flow_run") == [("CRASHED",)]
    keys = {key for (key,) in rows(home / "prefect.db", "SELECT key FROM artifact")}
    assert keys == {"costs-hanging", "costs-hanging--first"}


@pytest.mark.parametrize("executor", ["memory", pytest.param("prefect", marks=pytest.mark.long)])
def test_a_command_that_is_terminated_says_so_in_one_line(
    tmp_path: Path, executor: str, request: pytest.FixtureRequest
):
    if executor == "prefect":
        request.getfixturevalue("prefect_api")
    with running(tmp_path, "hanging", "--executor", executor) as command:
        command.says("start   hangs")
        command.process.terminate()
        assert command.end() == 143, command.said
        assert command.said.rstrip().endswith("fastroai: terminated.")
        assert "stopped hangs" in command.said
        assert "Traceback" not in command.said


@pytest.mark.parametrize(
    ("executor", "signal_", "code"),
    [
        ("memory", signal.SIGINT, 130),
        ("memory", signal.SIGTERM, 143),
        ("prefect", signal.SIGINT, 130),
        ("prefect", signal.SIGTERM, 143),
    ],
)
def test_a_run_that_is_stopped_says_what_it_spent_and_what_may_have_been_spent(
    tmp_path: Path,
    provider: ProviderProcess,
    executor: str,
    signal_: signal.Signals,
    code: int,
    request: pytest.FixtureRequest,
):
    if executor == "prefect":
        request.getfixturevalue("prefect_api")
    provider.script("the second question", Hang())
    hosts = json.dumps({provider.host: "openai"})
    with running(
        tmp_path, "asking", "--executor", executor, FASTROAI_PROVIDER_HOSTS=hosts
    ) as command:
        command.says("start   asked_again")
        provider.wait_until_it_hangs()
        command.process.send_signal(signal_)
        assert command.end() == code, command.said
    assert "Traceback" not in command.said
    table = read_cost_table(command.said)
    assert [key.split()[0] for key in table.lines] == ["asked", "asked_again"]
    booked = asyncio.run(total_of(tmp_path / "ledger.db"))
    assert (booked.charged, booked.unsettled) == (1, 1)
    assert table.usd == booked.cost_usd > 0
    assert re.search(r"Outcome unknown: step 'asked_again', openai:gpt-5-mini, .*", command.said)


@pytest.mark.parametrize("executor", ["memory", pytest.param("prefect", marks=pytest.mark.long)])
def test_ctrl_c_does_not_wait_for_a_thread_that_never_ends_and_the_ledger_is_written(
    tmp_path: Path, executor: str, request: pytest.FixtureRequest
):
    if executor == "prefect":
        request.getfixturevalue("prefect_api")
    with running(tmp_path, "blocking", "--executor", executor) as command:
        command.says("start   blocks")
        command.interrupt()
        assert command.end() == 130, command.said
        assert "fastroai: interrupted." in command.said
    states = rows(tmp_path / "ledger.db", "SELECT state FROM fastroai_outcomes")
    assert states == [("charged",)]
    assert not (tmp_path / "ledger.db-wal").exists()


def test_a_step_that_timed_out_in_a_thread_does_not_keep_the_command(tmp_path: Path):
    with running(tmp_path, "timing_out", "--executor", "memory") as command:
        assert command.end() == 1, command.said
        assert "timed out after 0.2s" in command.said
