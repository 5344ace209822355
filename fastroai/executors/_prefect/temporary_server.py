"""The Prefect server that is started for this process alone, where no other is set."""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import IO

import httpx
import prefect
from prefect.settings import (
    PREFECT_HOME,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

from ...errors import ExecutorUnavailableError
from ...settings import process_environment

NOTICE = (
    "fastroai: no Prefect server is set, so a temporary one is started (about 10 s). To skip the "
    "wait, set "
    "PREFECT_API_URL to a running server (`prefect server start`), or run in process with "
    "FASTROAI_EXECUTOR=memory.\n"
)

STARTUP_SECONDS = 120
CHECK_EVERY = 0.1
PORTS_TRIED = 3
LAST_LINES = 40
STDERR = 2

_WAYS_OUT = (
    "Nothing was run or spent. Set PREFECT_API_URL to a running server (`prefect server start`), "
    "or run in process with FASTROAI_EXECUTOR=memory."
)


async def start_temporary_server() -> None:
    """Start it, unless it runs. It ends with this process, and with the wait for it when that is
    cancelled.

    Raises:
        ExecutorUnavailableError: It can't be started; says what the server said.
    """
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise ExecutorUnavailableError(
            f"No Prefect server is set and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is off. {_WAYS_OUT}"
        )
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # one per process; Prefect's clients find it running
    if server.running:
        return
    sys.stderr.write(NOTICE)
    sys.stderr.flush()
    # On a fresh or busy machine Prefect's own 20 s are not always enough.
    patience = max(STARTUP_SECONDS, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    server.running = True
    atexit.register(server.stop)
    try:
        for attempt in range(1, PORTS_TRIED + 1):
            server.port = server.find_available_port()
            server.server_process = process = _launch(server.port)
            try:
                await _until_it_answers(process, f"{server.api_url}/health", patience)
                return
            except RuntimeError:
                # Another process may have taken the port meanwhile.
                if (
                    attempt == PORTS_TRIED
                    or process.poll() is None
                    or server.is_port_available(server.port)
                ):
                    raise
    except BaseException as error:
        # In a thread: it waits some seconds for the process to end, and must itself not be cut
        # short.
        await asyncio.shield(asyncio.to_thread(server.stop))
        if not isinstance(error, Exception):
            raise
        raise ExecutorUnavailableError(
            f"The temporary Prefect server did not start: {error}. Its files are in PREFECT_HOME="
            f"{str(PREFECT_HOME.value())!r}. {_WAYS_OUT}"
        ) from error


def _launch(port: int) -> _ServerProcess:
    """Start a server process, without interrupts from the terminal: it has to note how what they
    interrupt ends.
    """
    factory = [
        "--app-dir",
        str(prefect.__module_path__.parent),
        "--factory",
        "prefect.server.api.server:create_app",
    ]
    quiet = ["--log-level", "error", "--lifespan", "on"]
    with _interrupts_blocked():
        process = _ServerProcess(
            [
                sys.executable,
                "-m",
                "uvicorn",
                *factory,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                *quiet,
            ],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    process.listen()
    return process


def _environment() -> dict[str, str]:
    """That of this process and of Prefect's settings; nobody asked this server to phone home."""
    return {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **process_environment(),
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        **get_current_settings().to_environment_variables(exclude_unset=True),
    }


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let a process that is started here inherit that SIGINT does not reach it; this process gets
    it afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ServerProcess(subprocess.Popen[bytes]):
    """Keeps what the server says while it starts; what it says later goes to stderr."""

    def listen(self) -> None:
        """Begin to read."""
        assert self.stderr is not None
        self.ready = False
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._reader = Thread(
            target=self._read, args=[self.stderr], name="fastroai-prefect-server", daemon=True
        )
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):  # closed when this process ends
            for line in stream:
                self._lines.append(line)
                if self.ready:
                    # not sys.stderr, whose lock a daemon thread may hold when Python ends
                    os.write(STDERR, line)

    def said(self) -> str:
        """Once the process has ended: the error it names last, else its last lines."""
        self._reader.join(timeout=1)
        lines = [line.decode(errors="replace").strip() for line in tuple(self._lines)]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        return named[-1] if named else " | ".join(line for line in lines[-3:] if line) or "nothing"


async def _until_it_answers(process: _ServerProcess, url: str, patience: float) -> None:
    """Wait for a server.

    Raises:
        RuntimeError: Its process ended, or it did not answer in time.
    """
    deadline = time.monotonic() + patience
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                raise RuntimeError(f"it ended with exit code {code} and said: {process.said()}")
            with suppress(httpx.TransportError):
                if (await client.get(url)).is_success:
                    process.ready = True
                    return
            await asyncio.sleep(CHECK_EVERY)
    raise RuntimeError(f"it did not answer within {patience:g} s")
