"""What a ledger keeps and says holds no secret, and its files are for their owner only."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import FastroAgent, Pipeline, StepExecutionError
from fastroai.database.engine import database_url, open_database
from fastroai.errors import LedgerUnavailableError
from fastroai.executors.in_memory import InMemoryExecutor
from fastroai.leases.heartbeat import Heartbeat
from fastroai.leases.table import LeaseRequest, LeaseTable
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import open_store
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.ledger_entries import charged
from tests.support.serving import serving

SECRET = "hidden-Zq7/no@form"


@pytest.fixture
def nobody() -> str:
    """Host and port at which nobody listens."""
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hidden@{}/books",
        "postgresql://me@{}/books?password=hidden",
        "postgresql://{}/books?user=me&password=hidden&sslmode=disable",
        "postgresql://{}/books?nonsense=1&password=hidden",
        "postgresql://{}/books?sslpassword=hidden",
        "postgresql://me:a@hidden@{}/books",
    ],
)
async def test_the_password_is_nowhere_to_be_seen(
    url: str, nobody: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LedgerUnavailableError) as caught:
        await open_store(url.format(nobody), outbox_folder=tmp_path)
    database = open_database(database_url(url.format(nobody)), writes=False)
    heartbeat = Heartbeat(LeaseTable(database))
    claim = LeaseRequest(kind="run_key", name="k", seconds=60)
    with pytest.raises(LedgerUnavailableError) as refused:
        heartbeat.take(claim, lambda: None).result()
    heartbeat.stop(5)
    texts = [database.name, caplog.text, "".join(map(repr, chain_of(caught.value)))]
    texts += [str(caught.value), str(refused.value)]
    assert [text for text in texts if "hidden" in text] == []
    assert "/books" in database.name


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def test_a_password_in_the_query_is_used(postgres_url: str) -> None:
    async with Ledger.open(f"{postgres_url}?password=hidden") as ledger:
        await ledger.append(charged("0.5"))
        assert len(await ledger.entries()) == 1


@pytest.mark.parametrize("port", ["abc", "54x2", "hidden"])
async def test_a_port_that_is_no_number_is_an_error_of_the_ledger(port: str) -> None:
    with pytest.raises(LedgerUnavailableError, match="port") as caught:
        await open_store(f"postgresql://me:hidden@host:{port}/books")
    assert "hidden" not in "".join(map(repr, chain_of(caught.value)))


async def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder, waiting = tmp_path / "a" / "b", tmp_path / "c" / "unwritten"
        store = await open_store(f"sqlite:///{folder / 'ledger.db'}", outbox_folder=waiting)
        await store.intend(LedgerEntry())
        blocked = tmp_path / "file"
        blocked.touch()
        late = await open_store(
            f"sqlite:///{blocked / 'ledger.db'}", required=False, outbox_folder=waiting
        )
        await late.intend(LedgerEntry())
        blocked.unlink()
        modes = modes_in(tmp_path)
        await store.close()
        await late.close()
    finally:
        os.umask(before)
    assert modes == {
        "": {0o700},
        ".db": {0o600},
        ".db-wal": {0o600},
        ".db-shm": {0o600},
        ".jsonl": {0o600},
    }


def modes_in(folder: Path) -> dict[str, set[int]]:
    """The modes of all files by suffix, and of folders."""
    found: dict[str, set[int]] = {}
    for path in folder.rglob("*"):
        found.setdefault(path.suffix, set()).add(stat.S_IMODE(path.stat().st_mode))
    return found


class Echo(BaseHTTPRequestHandler):
    """Refuses a request, and says which headers it had."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        pass

    def do_POST(self) -> None:  # the base class looks for this name
        key = self.headers["authorization"].removeprefix("Bearer ")
        message = f"You sent {key}; headers: {dict(self.headers)!r}"
        body = json.dumps({"error": {"message": message}}).encode()
        self.send_response(400)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def echo() -> Iterator[str]:
    with serving(Echo) as url:
        yield url


@pytest.mark.parametrize("key", [None, "odd.Key/with+chars=9", "sk-proj-abcdefghijklmnop"])
async def test_a_key_that_an_endpoint_echoes_is_not_kept(
    key: str | None, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: the key is that of the environment; else it is given in code only."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    if key is None:
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    sent = key or SECRET
    model = OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(base_url=echo, api_key=key))
    agent: FastroAgent[str] = FastroAgent(model=model)
    pipeline: Pipeline[None, str, str] = Pipeline(
        "echoed", {"ask": agent.as_step("hello")}, executor=InMemoryExecutor()
    )
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute("", None)
    async with Ledger.open(url) as ledger:
        [booked] = await ledger.entries()
    assert caught.value.partial_result is not None
    [given] = caught.value.partial_result.entries
    for entry in (booked, given):
        assert (entry.state, sent in str(entry.error)) == (EntryState.REFUSED, False)
        assert "You sent ***; headers:" in str(entry.error)
    assert sent.encode() not in content_of(tmp_path)


def content_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_a_secret_in_what_a_record_says_is_not_booked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", SECRET)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    store = await open_store(url)
    RequestRecorder(store).restate([LedgerEntry().settled(EntryState.REFUSED, error=SECRET)])
    await store.close()
    async with Ledger.open(url) as ledger:
        [entry] = await ledger.entries()
    assert entry.error == "***"
