"""One real Prefect server on loopback, started by the first test that needs it and shared by all
pytest workers.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support import forked
from tests.support.forked import SHARED_DIR
from tests.support.postgres import PostgresServer

START_TIMEOUT = 120.0
STOP_TIMEOUT = 10.0

_REPOSITORY = Path(__file__).parents[2]
_OWNER, _LOCK, _ADDRESS, _LOG = "owner", "lock", "address.json", "server.log"
_USED, _HOME = "used-home", "server-home"

_STARTED_ONCE = """
import asyncio
from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

async def main():
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)

asyncio.run(main())
"""

_SERVER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    # What no test asks for; each event would pass through it.
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
}

IN_USED_HOME = {
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
}
"""For a server in a home that one has run in before: two seconds of its start."""

# Two cores for all: a slow answer is better than a failed one. On SQLite, whose lock is waited for
# so long, it is better tried again.
_PATIENCE = {
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    # Beyond the pool, each query would open a connection of its own and close it.
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",
}


def own_shared_dir() -> Path:
    """Make the folder of this pytest run; for the controller, before its workers start."""
    folder = Path(tempfile.mkdtemp(prefix="fastroai-tests-"))
    (folder / _OWNER).write_text(str(os.getpid()))
    os.environ[SHARED_DIR] = str(folder)
    forked.write_python(folder)
    return folder


def release_shared_dir(folder: Path) -> None:
    """Stop the server if one was started, and remove the folder; for the controller, after its
    workers ended.
    """
    address = _read_address(folder)
    if address is not None:
        _stop(int(str(address["pid"])), Path(str(address["database"])))
        # Left there by a server that a test has killed.
        shutil.rmtree(str(address["database"]), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def server_url(folder: Path) -> str:
    """The API URL of the run's server, which is started when nobody did so yet."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address = _read_address(folder)
        if address is None:
            _start(folder)
            address = _read_address(folder)
    assert address is not None
    return str(address["url"])


def used_home(home: Path) -> Path:
    """Make a home of Prefect where a server has run before: making its tables and naming the blocks
    there are takes the longest of a start.
    """
    shared = Path(os.environ[SHARED_DIR])
    used = shared / _USED
    with (shared / f"{_USED}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not used.exists():
            environment = os.environ | {"PREFECT_HOME": str(used)}
            making = [sys.executable, "-c", _STARTED_ONCE]
            forked.run(making, kind=forked.SERVER, env=environment, check=True)
    return shutil.copytree(used, home)


@pytest.fixture(scope="session")
def prefect_server() -> str:
    """API URL of a real Prefect server with a database of its own."""
    return server_url(Path(os.environ[SHARED_DIR]))


@pytest.fixture
def logs_on_server() -> None:
    """What the runs of a test log is on the server, too."""


@pytest.fixture
def prefect_api(
    request: pytest.FixtureRequest,
    prefect_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A real Prefect server's API URL, set for this process and for those it starts; results go to
    the test's folder.

    A test that uses it runs pipelines under Prefect unless it says otherwise.
    """
    results, logs = tmp_path / "prefect-results", "logs_on_server" in request.fixturenames
    with prefect_settings(prefect_server, results, monkeypatch, logs=logs):
        yield prefect_server


@contextmanager
def prefect_settings(
    url: str, results: Path, monkeypatch: pytest.MonkeyPatch, *, logs: bool = False
) -> Iterator[None]:
    """Point Prefect at a server: in the environment, and in the settings it has already read.

    Args:
        logs: Whether runs send what they log, which few tests read and each would wait for.
    """
    from prefect.context import SettingsContext, get_settings_context

    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(results))
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", str(logs))
    context = get_settings_context()
    # Not `temporary_settings`, which reads all settings again: that takes a tenth of a second.
    api = context.settings.api.model_copy(update={"url": url})
    stored = context.settings.results.model_copy(update={"local_storage_path": results})
    to_api = context.settings.logging.to_api.model_copy(update={"enabled": logs})
    logging = context.settings.logging.model_copy(update={"to_api": to_api})
    changed = {"api": api, "results": stored, "logging": logging}
    settings = context.settings.model_copy(update=changed)
    with SettingsContext(profile=context.profile, settings=settings):
        yield


def _start(folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= _SERVER_ENVIRONMENT | {"PREFECT_HOME": str(folder / _HOME)}
    environment |= _PATIENCE
    with (folder / _LOG).open("wb") as log:
        # No fork: whoever has imported Prefect's server has chosen its database.
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.prefect_server", str(folder)],
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT
    while not _healthy(folder):
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            (folder / _ADDRESS).unlink(missing_ok=True)
            pytest.fail(
                f"The Prefect server did not start:\n{(folder / _LOG).read_text()[-4000:]}",
                pytrace=False,
            )
        time.sleep(0.02)


def _healthy(folder: Path) -> bool:
    address = _read_address(folder)
    if address is None:
        return False
    try:
        with urlopen(f"{address['url']}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _read_address(folder: Path) -> dict[str, object] | None:
    try:
        return json.loads((folder / _ADDRESS).read_text())
    except FileNotFoundError:
        return None


def _stop(pid: int, database: Path) -> None:
    """The server at once, as nobody needs what it would still do; its database so that it leaves
    nothing behind.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _ended(pid)
    with suppress(FileNotFoundError):
        postgres = int((database / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postgres, signal.SIGINT)  # "fast"
        _ended(postgres)


def _ended(pid: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        # Reaps it when it is a child of this process, which is so without xdist.
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _serve(folder: Path) -> None:
    """The server process: bind a free port, say where, and end no later than the pytest run that
    wanted it.
    """
    # uvicorn hands the signal on when it has stopped: then this process ends as any does, and its
    # database with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    owner = int((folder / _OWNER).read_text())
    with _database(folder) as database:
        threading.Thread(target=_die_with, args=(owner, folder), daemon=True).start()
        _listen(folder, database)


def _listen(folder: Path, database: Path) -> None:
    import uvicorn

    # It has memory enough, and answers each test once: to look for garbage takes a fiftieth of it.
    gc.set_threshold(100_000, 50, 50)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    partial = folder / f"{_ADDRESS}.partial"
    partial.write_text(json.dumps({"url": url, "pid": os.getpid(), "database": str(database)}))
    partial.rename(folder / _ADDRESS)
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _database(folder: Path) -> Iterator[Path]:
    """Start PostgreSQL for the server where it is installed, else leave it SQLite; gives the folder
    of the data.

    Under the load of a whole suite, Prefect's server on SQLite waits up to a minute for the lock,
    and answers nobody.
    """
    try:
        postgres = PostgresServer()
    except FileNotFoundError:
        yield folder
        return
    with closing(postgres):
        url = postgres.by_socket(postgres.new_database())
        url = url.replace("postgresql://", "postgresql+asyncpg://")
        os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
        yield postgres.folder


def _die_with(owner: int, folder: Path) -> None:
    while True:
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(1)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
