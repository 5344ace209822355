"""A Prefect server of our own on loopback, gone without a trace afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .workers import ROOT, environment

START_SECONDS = 120
SETTLE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: the variables a client of it needs, and its process."""

    env: dict[str, str]
    pid: int

    def settle(self) -> None:
        """Wait until the server has worked off what earlier runs left in its queues.

        After a run of 60 tasks it is busy for two more seconds; the next figure would pay for the
        one before.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            before = self._cpu_seconds()
            if before is None:
                time.sleep(4)
                return
            time.sleep(0.5)
            if (self._cpu_seconds() or 0.0) - before < 0.06:
                return

    def cpu_seconds(self) -> float:
        """Processor time used so far; 0 where that can't be read."""
        return self._cpu_seconds() or 0.0

    def _cpu_seconds(self) -> float | None:
        """Processor time used so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def prefect_server(database: str | None = None) -> Iterator[Server]:
    """Start a server on a free port and stop it at the end, with all it stored.

    Args:
        database: URL of an empty database of PostgreSQL; None: it has SQLite.
    """
    with tempfile.TemporaryDirectory(prefix="fastroai-bench-", ignore_cleanup_errors=True) as home:
        port = free_port()
        quiet = {
            "PREFECT_HOME": home,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }
        stored = {}
        if database is not None:
            url = database.replace("postgresql://", "postgresql+asyncpg://")
            stored = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
        command = [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with (Path(home) / "server.log").open("w") as log:
            server = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment(ROOT, quiet | stored),
                start_new_session=True,
            )
            try:
                url = f"http://127.0.0.1:{port}/api"
                _wait_until_healthy(server, url, Path(home) / "server.log")
                # Not the ledger of whoever measures.
                ledger = {"FASTROAI_LEDGER_URL": f"sqlite:///{Path(home) / 'ledger.db'}"}
                yield Server({**quiet, **ledger, "PREFECT_API_URL": url}, server.pid)
            finally:
                _stop(server)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(
                f"the Prefect server ended with {server.returncode}:\n{log.read_text()[-2000:]}"
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(
        f"the Prefect server did not answer within {START_SECONDS} s:\n{log.read_text()[-2000:]}"
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
