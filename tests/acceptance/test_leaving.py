"""`fastroai run` that is interrupted, terminated, or left with a step's thread: it ends, and what
ended is noted.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE, REPOSITORY

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
    process = subprocess.Popen(
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
        # A shell has its background jobs ignore Ctrl-C, and what they start: these tests may be
        # one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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


@pytest.mark.timeout(2 * PATIENCE)
def test_ctrl_c_during_a_step_is_noted_by_the_temporary_server_with_what_was_spent(tmp_path: Path):
    home = tmp_path / "home"
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
    assert keys == {"costs-hanging", "costs-hanging--first", "costs-hanging--hangs"}


@pytest.mark.parametrize("executor", ["memory", "prefect"])
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


@pytest.mark.parametrize("executor", ["memory", "prefect"])
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
