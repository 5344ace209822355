"""Processes of `fastroai up`: kept only when it succeeds, ended exactly, never mistaken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastroai.errors import StackError
from fastroai.kit.processes import MARK, Process, end, family, start_of
from fastroai.kit.stack import Wanted, down, free_port, planned
from fastroai.kit.stack_state import StackFolder, StackState
from fastroai.kit.starting import Starting

ROOT = Path(__file__).parents[2]
PATIENCE = 10.0
SLEEPER = """
import subprocess, sys, time
if sys.argv[1:] == ["parent"]:
    # In a session of its own, as Prefect's workers start runs.
    subprocess.Popen([sys.executable, __file__], start_new_session=True)
print("started", flush=True)
time.sleep(300)
"""
STARTER = """
import os, signal, sys
from pathlib import Path
from fastroai.kit.stack_state import StackFolder, StackState
from fastroai.kit.starting import Starting

folder = StackFolder(Path.cwd())
folder.make()
starting = Starting(folder, StackState(1, 2), lambda said: None)
for name in ("one", "two"):
    starting.start(name, ["sleeper", "parent"], starting.environment())
for name in ("one", "two"):
    while folder.log(name).read_text().count("started") < 2:
        pass
if sys.argv[1] == "kept":
    starting.keep()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    yield tmp_path
    down(tmp_path)


def start(project: Path, how: str) -> StackState:
    """Start two services, each with a child, from a process that is then killed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{project}"}
    subprocess.run([sys.executable, "-c", STARTER, how], cwd=project, env=environment)
    state = StackFolder(project).read()
    assert state is not None
    return state


def gone(processes: list[Process] | tuple[Process, ...]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while family(processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_killed_half_way_it_leaves_nothing_running(project: Path):
    state = start(project, "killed")
    assert len(state.processes) == 2
    assert gone(state.processes)
    assert down(project) == ([], [])


def test_down_ends_what_was_kept_with_all_that_it_has_started(project: Path):
    state = start(project, "kept")
    assert len(family(state.processes)) == 4
    ended, killed = down(project)
    assert len(ended) == 4
    assert killed == []
    assert family(state.processes) == []
    assert StackFolder(project).read() is None
    assert down(project) == ([], [])


def test_a_process_that_got_the_id_of_an_ended_one_is_never_touched():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mistaken = Process("server", other.pid, "boot/1", "mark")
        assert not mistaken.is_alive
        mistaken.send(signal.SIGKILL)
        assert family([mistaken]) == []
        assert end([mistaken], PATIENCE) == []
        assert other.poll() is None
        other.communicate(b"\n")
    assert other.returncode == 0


def test_what_does_not_end_by_itself_is_killed():
    program = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {MARK: "deaf"},
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.read(1)
        process = Process("server", deaf.pid, start_of(deaf.pid) or "", "deaf")
        assert end([process], 0.2) == [process]
        assert deaf.wait(PATIENCE) == -signal.SIGKILL


def test_a_service_that_ends_is_reported_with_what_it_said_last(project: Path):
    folder = StackFolder(project)
    folder.make()
    starting = Starting(folder, StackState(1, 2), lambda said: None)
    environment = starting.environment(PYTHONPATH=str(ROOT))
    starting.start("server", ["no_such_module"], environment)
    starting.children["server"].wait(PATIENCE)
    with pytest.raises(StackError, match="No module named no_such_module"):
        starting.check()
    starting.give_up()
    starting.close()
    assert folder.read() is None


def test_two_commands_do_not_change_one_stack_at_once(project: Path):
    folder = StackFolder(project)
    folder.make()
    with folder.locked(), pytest.raises(StackError, match="is at work"):
        down(project)


def test_the_processes_of_a_stack_know_no_other_server(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PREFECT_API_KEY", "of the cloud")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql://production")
    monkeypatch.setenv("FASTROAI_LEDGER_URL", "postgresql://production")
    starting = Starting(StackFolder(project), StackState(4200, 4566), lambda said: None)
    environment = starting.environment()
    starting.close()
    assert "production" not in str(environment)
    assert "of the cloud" not in str(environment)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_ports_are_those_of_before_and_others_where_they_are_taken():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = planned(StackState(port, port), Wanted())
        assert port not in (found.prefect_port, found.s3_port)
        assert found.prefect_port != found.s3_port
        with pytest.raises(StackError, match=f"Port {port} is taken"):
            free_port(port, 4200)
    assert planned(StackState(port, 1), Wanted()).prefect_port == port


def test_the_shell_gets_the_variables_and_nobody_else_can_read_them(project: Path):
    folder = StackFolder(project)
    folder.make()
    file = folder.write_environment(StackState(4200, 4566))
    shown = subprocess.run(
        ["sh", "-c", f'. "{file}"; echo $PREFECT_API_URL $PREFECT_API_KEY'],
        env={"PREFECT_API_KEY": "of the cloud"},
        capture_output=True,
        text=True,
    )
    assert shown.stdout == "http://127.0.0.1:4200/api\n"
    assert file.stat().st_mode & 0o077 == 0
