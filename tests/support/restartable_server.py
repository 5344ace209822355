"""A real Prefect server that a test kills and starts again, with the same address and database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support import forked
from tests.support.prefect_server import IN_USED_HOME, used_home

START_TIMEOUT = 120.0


class RestartableServer:
    """Runs on SQLite in a folder.

    Args:
        home: Its `PREFECT_HOME`.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self._process: forked.Popen | None = None

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        environment |= IN_USED_HOME | {
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
        }
        if not self._home.exists():
            used_home(self._home)
        command = "-m uvicorn --factory prefect.server.api.server:create_app --lifespan on"
        self._process = forked.Popen(
            [sys.executable, *command.split(), "--port", str(self._port), "--log-level", "error"],
            kind=forked.SERVER,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without a word, if it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False
