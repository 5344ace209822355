"""From an empty folder with only pip to a scheduled run, as docs/tutorial.md says; and what is left
of a stack that was stopped half way.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastroai.kit.processes import Process, family
from fastroai.kit.stack import down
from fastroai.kit.stack_state import StackFolder
from tests.acceptance.conftest import REPOSITORY

PATIENCE = 240.0
ENDED = "the command ended with "

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


class Shell:
    """A shell in a folder, on a machine where nobody has set or stored anything; it notes each
    command and how long it took.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.done: list[tuple[str, float]] = []
        home = folder / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "SSL_CERT_DIR")}
        self.environment = kept | {"HOME": str(home)} | variables
        self._process = subprocess.Popen(
            ["sh"],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, *, code: int = 0) -> str:
        """What the command writes."""
        written, read = self._process.stdin, self._process.stdout
        assert written is not None
        assert read is not None
        started = time.monotonic()
        written.write(f"{{ {command}\n}} </dev/null\nprintf '\\n{ENDED}%s\\n' $?\n")
        written.flush()
        lines: list[str] = []
        while not (line := read.readline()).startswith(ENDED):
            assert line, f"the shell ended at {command}\n{''.join(lines)}"
            lines.append(line)
        self.done.append((command, time.monotonic() - started))
        said = "".join(lines)
        assert int(line.removeprefix(ENDED)) == code, f"{command}\n{said}"
        return said

    def report(self) -> str:
        lines = [f"{seconds:6.1f} s  {command}" for command, seconds in self.done]
        together = sum(seconds for _, seconds in self.done)
        return "\n".join([*lines, f"{together / 60:6.1f} min for {len(lines)} commands"])


@pytest.fixture
def pip_variables() -> dict[str, str]:
    """What says where packages come from, and which certificates are trusted there."""
    names = ("PIP_", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return {k: v for k, v in os.environ.items() if k.upper().startswith(names)}


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Path]:
    """A folder for projects, whose stacks end with the test."""
    yield tmp_path
    for state in tmp_path.rglob(".fastroai"):
        down(state.parent)


def test_the_tutorial_leads_from_an_empty_folder_to_a_schedule(
    projects: Path, pip_variables: dict[str, str]
):
    pip_variables.pop("SSL_CERT_FILE", None)  # of these tests
    shell = Shell(projects, **pip_variables)
    shell.run(f"{sys.executable} -m pip wheel -q --no-deps -w dist {REPOSITORY}")
    [wheel] = (projects / "dist").iterdir()
    shell.done.clear()
    constraints = REPOSITORY / "constraints.txt"
    local = f"-q --constraint {constraints} 'fastroai[local] @ file://{wheel}'"
    commands = tutorial({"'fastroai[local]'": local, "--interval 60": "--interval 10"})
    up = commands.index("fastroai up")
    said = {command: shell.run(command) for command in commands[:up]}
    [ran] = [text for command, text in said.items() if command.startswith("fastroai run ")]
    assert "SIMULATED" in ran
    assert "3 passed" in said["pytest"]
    without_moto(shell, projects / "venv")

    started = shell.run("fastroai up")
    assert re.search(r"run +\S+: Completed, 0\.\d+ USD", started), started
    assert "support/dev" in started
    folder = StackFolder(projects / "demo")
    state = folder.read()
    assert state is not None
    stored = objects(state.s3_url)
    said |= {command: shell.run(command) for command in commands[up + 1 : -1]}
    assert "support/dev" in said["fastroai costs --by deployment"]
    run = scheduled_run(state.ui_url)
    shell.run("prefect deployment schedule clear support/dev --accept-yes")
    assert objects(state.s3_url) > stored
    assert run["id"] in shell.run("fastroai costs --by run --json")
    # Nobody works on those of the other environments.
    failed = shell.run("fastroai doctor", code=1)
    assert failed.count("failed ") == 2
    assert "demo-production" in failed

    assert "It runs already" in shell.run("fastroai up")
    assert folder.read() == state
    assert commands[-1] == "fastroai down"
    shell.run(commands[-1])
    check_gone(list(state.processes), state.prefect_port, state.s3_port)
    print(f"\n{shell.report()}")  # noqa: T201  # the figures are the result of this test


def tutorial(instead: dict[str, str]) -> list[str]:
    """The commands of docs/tutorial.md in their order, without remarks; some texts of them are
    replaced.
    """
    text = (REPOSITORY / "docs" / "tutorial.md").read_text()
    for written, meant in instead.items():
        assert written in text
        text = text.replace(written, meant)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def without_moto(shell: Shell, venv: Path) -> None:
    """Without the extra, the first command that needs it says what to install."""
    [moto] = venv.glob("lib/*/site-packages/moto")
    hidden = moto.rename(moto.with_name("hidden-moto"))
    said = shell.run("fastroai up", code=1)
    assert "pip install 'fastroai[local]'" in said
    assert list(venv.parent.glob("demo/.fastroai")) == []
    hidden.rename(moto)
    shell.done.pop()


def scheduled_run(ui_url: str) -> dict[str, Any]:
    """A run that the server's scheduler made and a worker completed."""
    wanted = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = asked(f"{ui_url}/api/flow_runs/filter", wanted)
        for run in found:
            if run["auto_scheduled"]:
                return dict(run)
        time.sleep(1)
    raise AssertionError("no scheduled run was completed")


def asked(url: str, content: object) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return list(json.load(answer))


def objects(s3_url: str) -> int:
    """How many objects the stack's bucket holds."""
    with urllib.request.urlopen(f"{s3_url}/fastroai?list-type=2") as answer:
        return int(answer.read().count(b"<Key>"))


def check_gone(processes: list[Process], *ports: int) -> None:
    assert family(processes) == []
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way_nothing_of_it_is_left_running(projects: Path, number: signal.Signals):
    python = f"PYTHONPATH={REPOSITORY} {sys.executable} -m fastroai"
    shell = Shell(projects)
    shell.run(f"{python} init demo")
    folder = StackFolder(projects / "demo")
    # A shell has its background jobs ignore it, and so all that these start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastroai", "up"],
        cwd=folder.project,
        env=shell.environment | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Deploying"):
            break
    state = folder.read()
    assert state is not None
    assert len(family(state.processes)) >= 3
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == {2: 130, 9: -9, 15: 143}[number]
    deadline = time.monotonic() + PATIENCE
    while number == signal.SIGKILL and family(state.processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    check_gone(list(state.processes), state.prefect_port, state.s3_port)
