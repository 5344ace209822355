"""A real Prefect server that a test kills and starts again, with the same address and database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support import forked
from tests.support.prefect_server import IN_USED_HOME, prefect_settings, used_home

START_TIMEOUT = 120.0


class RestartableServer:
    """Runs on SQLite in a folder.

    Args:
        home: Its `PREFECT_HOME`.
        shows_ui: Whether it has its two UIs, at `/` and at `/v2`.
    """

    def __init__(self, home: Path, *, shows_ui: bool = False) -> None:
        self._home = home
        self._shows_ui = shows_ui
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self._process: forked.Popen | None = None

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def group(self) -> int:
        """Id of its process group."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it where it does not run, have it go on where it rests, and wait until it
        answers.
        """
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGCONT)
            if self._answers():
                return
        self.kill()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        environment |= IN_USED_HOME | {
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": str(self._shows_ui).lower(),
            "PREFECT_SERVER_UI_API_URL": self.url,
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

    def rest(self) -> None:
        """Have it wait for the next test: idle, it takes a fortieth of a core."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGSTOP)

    def kill(self) -> None:
        """End it without a word, if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="session")
def one_restartable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestartableServer]:
    """The server of all tests that stop one, or need what the shared one has not, one by one."""
    server = RestartableServer(tmp_path_factory.mktemp("server") / "home")
    yield server
    server.kill()


@pytest.fixture
def restartable_server(
    one_restartable_server: RestartableServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RestartableServer]:
    """A running server, which Prefect's settings name; a test may stop it, and all that it has is
    still there for the next one.
    """
    server = one_restartable_server
    server.start()
    _forget_events_worker()
    with prefect_settings(server.url, tmp_path / "results", monkeypatch, logs=True):
        yield server
    _forget_events_worker()
    server.rest()


def _forget_events_worker() -> None:
    """Prefect sends the events of a process to the server that it met first; this is another."""
    from prefect.events.worker import EventsWorker

    for key, service in list(EventsWorker._instances.items()):
        if isinstance(service, EventsWorker):
            del EventsWorker._instances[key]
