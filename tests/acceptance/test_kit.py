"""From an empty folder with only pip to a scheduled run: `init`, `run`, `pytest`, `up`, `deploy`,
`doctor`, `down`, as the new project's README says.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastroai.kit.processes import Process, family
from fastroai.kit.stack import down
from fastroai.kit.stack_state import StackFolder
from tests.acceptance.conftest import REPOSITORY

PATIENCE = 240.0
QUESTION = 'question="When do parcels arrive?"'

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@dataclass
class Shell:
    """A shell in a folder; it notes each command and how long it took."""

    folder: Path
    home: Path
    path: str = os.environ["PATH"]
    variables: dict[str, str] = field(default_factory=dict)
    done: list[tuple[str, float]] = field(default_factory=list)

    def run(self, command: str, *, code: int = 0) -> str:
        started = time.monotonic()
        ran = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        self.done.append((command, time.monotonic() - started))
        assert ran.returncode == code, f"{command}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def environment(self) -> dict[str, str]:
        # Nothing of these tests' own, as on a machine where nobody has set or stored anything.
        kept = {k: v for k, v in os.environ.items() if k in ("LANG", "SSL_CERT_DIR")}
        home = self.home
        home.mkdir(exist_ok=True)
        return kept | {"PATH": self.path, "HOME": str(home)} | self.variables

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


def test_only_with_pip_a_project_is_made_run_tested_deployed_and_ended(
    projects: Path, pip_variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    pip_variables.pop("SSL_CERT_FILE", None)  # of these tests
    shell = Shell(projects, projects / "home", variables=pip_variables)
    shell.run(f"{sys.executable} -m pip wheel -q --no-deps -w dist {REPOSITORY}")
    [wheel] = (projects / "dist").iterdir()
    shell.done.clear()

    shell.run(f"{sys.executable} -m venv venv")
    shell.path = f"{projects / 'venv' / 'bin'}:{shell.path}"
    constraints = REPOSITORY / "constraints.txt"
    shell.run(f"pip install -q --constraint {constraints} 'fastroai[local] @ file://{wheel}'")
    shell.variables = {}
    without_moto(shell)
    shell.run("fastroai init demo")
    shell.folder = projects / "demo"
    assert "SIMULATED" in shell.run(f"fastroai run deployments.entrypoints:support {QUESTION}")
    assert "3 passed" in shell.run("pytest -q")

    said = shell.run("fastroai up")
    assert re.search(r"run +\S+: Completed, 0\.\d+ USD", said), said
    assert "support/dev" in said
    shell.run(". .fastroai/env && fastroai doctor")
    shell.run(". .fastroai/env && prefect deploy --all")
    state = StackFolder(shell.folder).read()
    assert state is not None
    stored = objects(state.s3_url)

    shell.run(". .fastroai/env && prefect deployment schedule create support/dev --interval 10")
    run = scheduled_run(state.ui_url)
    shell.run(". .fastroai/env && prefect deployment schedule clear support/dev --accept-yes")
    assert objects(state.s3_url) > stored
    booked = shell.run(". .fastroai/env && fastroai costs --by run --json")
    assert run["id"] in booked
    # Nobody works on those of the other environments.
    failed = shell.run(". .fastroai/env && fastroai doctor", code=1)
    assert failed.count("failed ") == 2
    assert "demo-production" in failed

    assert "It runs already" in shell.run("fastroai up")
    assert StackFolder(shell.folder).read() == state
    shell.run("fastroai down")
    check_gone(list(state.processes), state.prefect_port, state.s3_port)
    print(f"\n{shell.report()}")  # noqa: T201  # the figures are the result of this test


def without_moto(shell: Shell) -> None:
    """Without the extra, the first command that needs it says what to install."""
    [moto] = shell.folder.glob("venv/lib/*/site-packages/moto")
    hidden = moto.rename(moto.with_name("hidden-moto"))
    said = shell.run("fastroai up 2>&1", code=1)
    assert "pip install 'fastroai[local]'" in said
    assert not (shell.folder / ".fastroai").exists()
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
    shell = Shell(projects, projects / "home")
    shell.run(f"{python} init demo")
    folder = StackFolder(projects / "demo")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastroai", "up"],
        cwd=folder.project,
        env=shell.environment() | {"PYTHONPATH": str(REPOSITORY)},
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
