"""Python processes that need not import: forked from one that did, and else as `subprocess` starts
them.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHARED_DIR = "FASTROAI_TESTS_SHARED_DIR"
"""Folder of one pytest run, inherited by all its processes: who owns the run, and where its servers
listen.
"""

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT = 120.0

FULL = "full"
"""All of fastroai has been imported, and what it imports when it runs."""
BARE = "bare"
"""pydantic-ai has been imported, and nothing of ours: for programs about what we import."""
SERVER = "server"
"""Prefect's server has been imported: for programs that are one."""


_PYTHON = """#!{python} -IS
import sys

sys.path.insert(0, {repository!r})
from tests.support.forked_python import main

main({folder!r})
"""


def python() -> Path:
    """A command for Python whose programs are forks, for those that start Python themselves."""
    return Path(os.environ[SHARED_DIR]) / "python"


def write_python(folder: Path) -> None:
    """Make that command; for the controller, before its workers start."""
    path = folder / "python"
    path.write_text(
        _PYTHON.format(python=sys.executable, repository=str(REPOSITORY), folder=str(folder))
    )
    path.chmod(0o755)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` for `[sys.executable, …]` with a script, `-m` or `-c`.

    The process is a fork, not a child: it has the hash seed of all forks, and ends by itself only.

    Args:
        kind: What has been imported when it begins.
        executable: What it finds as `sys.executable`. By default, what a full one starts is a fork
            too.
    """

    def __init__(self, args: list[str], *, kind: str = FULL, **options: Any) -> None:
        assert args[0] == sys.executable, f"{args[0]!r} is not this Python"
        self._kind = kind
        self._ending: socket.socket | None = None
        super().__init__(args, **options)

    def _execute_child(  # type: ignore[override]
        self,
        args: list[str],
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: Any,
        gid: Any,
        gids: Any,
        uid: Any,
        umask: Any,
        start_new_session: bool,
        *others: Any,
    ) -> None:
        request = {
            "args": [os.fspath(part) for part in args],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "new_session": bool(start_new_session),
            "executable": os.fspath(
                executable or (python() if self._kind == FULL else sys.executable)
            ),
        }
        streams = [
            given if given != -1 else inherited
            for given, inherited in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))
        ]
        content = json.dumps(request).encode()
        self._ending = _connect(self._kind)
        socket.send_fds(self._ending, [len(content).to_bytes(4, "big")], streams)
        self._ending.sendall(content)
        self.pid = int.from_bytes(_read(self._ending, 4), "big")
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended_within(0)

    def _wait(self, timeout: float | None) -> int | None:
        if self._ended_within(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def _ended_within(self, timeout: float | None) -> int | None:
        if self.returncode is not None or self._ending is None:
            return self.returncode
        if select.select([self._ending], [], [], timeout)[0]:
            self.returncode = int.from_bytes(_read(self._ending, 4), "big", signed=True)
            self._ending.close()
        return self.returncode


def run(args: list[str], *, kind: str = FULL, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` for `[sys.executable, …]`."""
    timeout = options.pop("timeout", None)
    check = options.pop("check", False)
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, kind=kind, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _connect(kind: str) -> socket.socket:
    """A connection to the process that is forked; it is started when nobody did so yet."""
    folder = Path(os.environ[SHARED_DIR])
    address = folder / f"forked-{kind}"
    connection = socket.socket(socket.AF_UNIX)
    with (folder / f"forked-{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _start(kind, folder, address)
    connection.connect(str(address))
    return connection


def _start(kind: str, folder: Path, address: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server", kind, str(folder)],
        cwd=REPOSITORY,
        # Of Prefect's settings only those that all tests have.
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API_URL")},
        stdin=subprocess.DEVNULL,
        # A pipe, whoever it is for: with a file, its forks would seek in what they write to.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    while not address.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"No process to fork from: {process.stdout.read()!r}")
        time.sleep(0.02)
    process.stdout.close()
    # It outlives this object, which would say so.
    process.returncode = 0


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise RuntimeError("The process that is forked has ended")
        content += part
    return content
