"""The Prefect server that is started for this process alone if no other is set."""

from __future__ import annotations

import asyncio
import atexit
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
import prefect
from prefect.settings import (
    PREFECT_HOME,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

from ...environment import process_environment
from ...errors import ExecutorUnavailableError
from ...redaction import redact

STARTUP_SECONDS = 120
CHECK_EVERY = 0.1


async def start_temporary_server(*, for_a_run: bool = True) -> None:
    """Start it, unless it runs. It ends with this process, or when the wait for it is cancelled.

    `SubprocessASGIServer.start` would block the event loop, and try for ever with a database that
    can't be used; so only its bookkeeping is used, by which Prefect's clients find the server.

    Args:
        for_a_run: Whether what needs it could also be done without any server.

    Raises:
        ExecutorUnavailableError: It can't be started. Contains the server's own error.
    """
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise ExecutorUnavailableError(
            "No Prefect server is set and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is off. Nothing was "
            f"run or spent. To go on, {_otherwise(for_a_run)}."
        )
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.running:
        return
    sys.stderr.write(
        "fastroai: no Prefect server is set, so a temporary one is started (about 10 s). To skip "
        f"the wait, {_otherwise(for_a_run)}.\n"
    )
    sys.stderr.flush()
    server.running = True
    server.port = server.find_available_port()
    # It serves all runs of this process, and only the interpreter knows when the last has ended.
    atexit.register(server.stop)
    try:
        with tempfile.TemporaryFile() as log:
            server.server_process = launch(server.port, log)
            await wait_until_it_answers(server.server_process, f"{server.api_url}/health", log)
    except BaseException as error:
        # In a thread, because it waits for the process to end; shielded, because it must.
        await asyncio.shield(asyncio.to_thread(server.stop))
        if not isinstance(error, Exception):
            raise
        raise ExecutorUnavailableError(
            f"The temporary Prefect server did not start: {redact(str(error))}. Its files are in "
            f"PREFECT_HOME={str(PREFECT_HOME.value())!r}. Nothing was run or spent. To go on, "
            f"{_otherwise(for_a_run)}."
        ) from error


def _otherwise(for_a_run: bool) -> str:
    """What to do instead, where a temporary server can't be had or takes too long."""
    in_process = ", or run in process with FASTROAI_EXECUTOR=memory" if for_a_run else ""
    return f"set PREFECT_API_URL to a running server (`{server_command()}`){in_process}"


def server_command() -> str:
    """What starts a server that stays, as it can be typed here: of a virtual environment that is
    not active, the command is not on the PATH.
    """
    command = Path(sys.executable).with_name("prefect")
    if shutil.which("prefect") or not command.exists():
        return "prefect server start"
    here = Path.cwd()
    shown = command.relative_to(here) if command.is_relative_to(here) else command
    return f"{shlex.quote(str(shown))} server start"


def launch(port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    options = f"--factory prefect.server.api.server:create_app --port {port}"
    quiet = "--host 127.0.0.1 --log-level error --lifespan on"
    folder = str(prefect.__module_path__.parent)
    command = [sys.executable, "-m", "uvicorn", *options.split(), *quiet.split()]
    with _interrupts_blocked():
        return subprocess.Popen(
            [*command, "--app-dir", folder],
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )


def server_environment() -> dict[str, str]:
    """This process's environment and Prefect's settings, without analytics unless they are set."""
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
    """Keep Ctrl-C from a process that is started here: it has to record how runs end by it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Wait for a server.

    Raises:
        RuntimeError: Its process ended, or it did not answer in time.
    """
    # On a fresh or busy machine Prefect's own 20 s are not always enough.
    seconds = max(STARTUP_SECONDS, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                raise RuntimeError(f"it ended with exit code {code}: {last_error(log)}")
            with suppress(httpx.TransportError):
                if (await client.get(url)).is_success:
                    return
            await asyncio.sleep(CHECK_EVERY)
    raise RuntimeError(f"it did not answer within {seconds:g} s")


def last_error(log: IO[bytes]) -> str:
    """The error that a process wrote last, else its last lines."""
    log.seek(0)
    lines = [line.decode(errors="replace").strip() for line in log]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return " | ".join(filter(None, errors[-1:] or lines[-3:])) or "no output"
