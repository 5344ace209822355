"""What every test gets: a scrubbed environment, a folder of its own, loopback only; servers when it
asks for them.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
from collections.abc import Generator, Iterator
from functools import partial
from itertools import chain, groupby, pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from execnet import XSpec
from hypothesis import settings

import tests.support.examples  # noqa: F401 (registers the profiles)
from tests.support import forked
from tests.support.forked import SHARED_DIR
from tests.support.postgres import postgres_ledger, postgres_server, postgres_url
from tests.support.prefect_server import (
    logs_on_server,
    own_shared_dir,
    prefect_api,
    prefect_server,
    release_shared_dir,
    server_url,
)
from tests.support.provider_process import provider, provider_process
from tests.support.restartable_server import one_restartable_server, restartable_server
from tests.support.s3 import s3, s3_server

pytest.register_assert_rewrite(
    "tests.support.agreement", "tests.acceptance.books", "tests.acceptance.killed_books"
)

settings.load_profile("sample")

__all__ = [
    "logs_on_server",
    "one_restartable_server",
    "postgres_ledger",
    "postgres_server",
    "postgres_url",
    "prefect_api",
    "prefect_server",
    "provider",
    "provider_process",
    "restartable_server",
    "s3",
    "s3_server",
]

_LONGEST_FIRST = ("acceptance", "integration")
_SCRUBBED_PREFIXES = ("FASTROAI_", "PREFECT_", "AWS_", "OPENAI_", "LOGFIRE_")
_KEPT = {SHARED_DIR}
_CERTIFICATE = str(Path(__file__).parent / "support" / "certificate.pem")


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        config.stash[_shared_dir] = own_shared_dir()
    os.environ.update(_quiet_environment())
    if _is_worker(config) or not config.getoption("numprocesses", None):
        # Not in pyproject.toml: whoever runs no test would import pydantic-ai for it.
        deprecated = "error::pydantic_ai.PydanticAIDeprecationWarning"
        config.addinivalue_line("filterwarnings", deprecated)
    elif config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        # All tests are run: while one process imports for the workers, another core is free.
        start = partial(server_url, config.stash[_shared_dir])
        Thread(target=start, daemon=True).start()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[XSpec]) -> None:
    """Workers are forks: what they import is imported once."""
    specs[:] = [XSpec(f"{spec}//python={forked.python()}") for spec in specs]


def pytest_unconfigure(config: pytest.Config) -> None:
    if _shared_dir in config.stash:
        release_shared_dir(config.stash[_shared_dir])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import without looking for garbage, a fifth of that time; what was imported stays, and is
    never looked through again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal out what takes long to all workers alike, to be run first: each gets an equal stretch of
    this list, and one that has nothing left takes from the end of another's.
    """
    kinds = groupby(sorted(items, key=_kind), _kind)  # a stable order, so that files stay together
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    shares = [_shares(list(tests), workers) for _, tests in kinds]
    stretches = zip(*shares, strict=True)
    items[:] = chain.from_iterable(chain.from_iterable(stretches))


def _kind(test: pytest.Item) -> int:
    folder = test.path.parent.name
    return _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else len(_LONGEST_FIRST)


def _shares(tests: list[pytest.Item], workers: int) -> list[list[pytest.Item]]:
    ends = [len(tests) * number // workers for number in range(workers + 1)]
    return [tests[start:end] for start, end in pairwise(ends)]


@pytest.fixture(autouse=True)
def clean_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No variable, `.env` or profile of the machine reaches a test; the executor is `memory` unless
    it has a server.
    """
    for name in os.environ:
        if name.startswith(_SCRUBBED_PREFIXES) and name not in _KEPT:
            monkeypatch.delenv(name)
    # Of the terminal that the tests were started from.
    for name in ("COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in _quiet_environment().items():
        monkeypatch.setenv(name, value)
    if "prefect_api" not in request.fixturenames:
        monkeypatch.setenv("FASTROAI_EXECUTOR", "memory")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def only_loopback() -> Iterator[None]:
    """Connections that leave this machine are refused, with the address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise ConnectionRefusedError(f"Tests reach loopback only, not {address!r}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


_shared_dir = pytest.StashKey[Path]()


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _quiet_environment() -> dict[str, str]:
    home = Path(os.environ[SHARED_DIR])
    return {
        "HOME": str(home / "home"),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(home / "prefect-home"),
        # Each client would first ask for a token, and the server say that it wants none.
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "LOGFIRE_SEND_TO_LOGFIRE": "false",
        # Each HTTP client reads all it trusts, which takes 40 ms with the usual file, and there are
        # thousands of clients here that speak to loopback only.
        "SSL_CERT_FILE": _CERTIFICATE,
        "PREFECT_API_SSL_CERT_FILE": _CERTIFICATE,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
