"""A PostgreSQL server of the tests' own: its data folder, a free port of the loopback, a user
without privileges.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.forked import SHARED_DIR

_WAIT = 60.0


class PostgresServer:
    """PostgreSQL in a new data folder; it can be stopped and started again.

    Args:
        fsync: Whether commits are on disk when they return, as in production; tests of anything
            else don't wait for it.

    Attributes:
        folder: All it wrote, until it is closed.
    """

    def __init__(self, *, fsync: bool = False) -> None:
        self._bin = _binaries()
        self._as = _unprivileged_user()
        self._fsync = "on" if fsync else "off"
        self.folder = Path(tempfile.mkdtemp(prefix="fastroai-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._template: str | None = None
        self.port = _free_port()
        try:
            if "user" in self._as:
                shutil.chown(self.folder, self._as["user"])
            # With its owner, which `shutil.copytree` does not copy.
            subprocess.run(["cp", "-a", self._made_once(), self._data], check=True)
            self.start()
        except BaseException:
            self.close()
            raise

    def _made_once(self) -> Path:
        """A data folder as `initdb` makes it, which takes a second, for all servers of a run."""
        shared = Path(os.environ.get(SHARED_DIR, self.folder))  # which benchmarks have not
        made = shared / "postgres-data"
        with (shared / f"{made.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                making = self.folder / "made"
                options = ("-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync")
                self._run("initdb", "-D", str(making), *options)
                shutil.move(making, made)
        return made

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": self._fsync,
            "max_connections": "50",
            # Compiling a query takes longer than any query here.
            "jit": "off",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *arguments],
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline = time.monotonic() + _WAIT
        while subprocess.run(
            [self._bin / "pg_isready", *self._address], capture_output=True
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """Disconnect everyone and stop."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)  # "fast"
            process.wait(_WAIT)

    def close(self) -> None:
        """Stop it and remove all it wrote."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self, *options: str) -> str:
        """The URL of an empty database, or as `createdb` makes it with these options."""
        name = f"t{uuid4().hex}"
        self._run("createdb", *self._address, "-U", "tests", *options, name)
        return f"postgresql://tests@127.0.0.1:{self.port}/{name}"

    def new_ledger(self) -> str:
        """The URL of a database with the ledger's tables and nothing in them: a copy of one where
        they were made, which takes longer.
        """
        # Prefect's server, which is in this module's process, too, needs nothing of ours.
        from fastroai.database.engine import Database, database_url

        if self._template is None:
            made = self.new_database()
            database = Database(database_url(made), writes=True)
            database.prepare()
            database.close()
            self._template = made.rpartition("/")[2]
        return self.new_database("-T", self._template)

    def by_socket(self, url: str) -> str:
        """The URL of a database by the socket in the folder, which takes a fifth less of the
        processor than TCP.
        """
        name = url.rpartition("/")[2]
        return f"postgresql://tests@/{name}?host={self.folder}&port={self.port}"

    @property
    def _address(self) -> tuple[str, ...]:
        return "-h", "127.0.0.1", "-p", str(self.port)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], capture_output=True, text=True, cwd="/", **self._as
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests that ask for it."""
    try:
        _binaries()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_ledger(postgres_server: PostgresServer) -> str:
    """An empty ledger."""
    return postgres_server.new_ledger()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty database."""
    return postgres_server.new_database()


def _binaries() -> Path:
    found = [
        path
        for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if (path / "initdb").exists()
    ]
    if found:
        return found[-1]
    if (initdb := shutil.which("initdb")) and shutil.which("postgres"):
        return Path(initdb).resolve().parent
    raise FileNotFoundError(
        "PostgreSQL's server is not installed here (Debian: apt-get install -y postgresql)."
    )


def _unprivileged_user() -> dict[str, Any]:
    """Arguments for a process: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": name, "group": user.pw_gid, "extra_groups": []}
    raise FileNotFoundError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
