"""A ledger that can't be reached: nothing is sent unbooked, or all is booked later; nothing is
dropped.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sqlite3
from pathlib import Path

import pytest

from fastroai.errors import LedgerUnavailableError
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import LedgerStore, open_store
from fastroai.ledger.store.outbox import read_entries
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.ledger_entries import charged
from tests.support.postgres import PostgresServer

ALL = LedgerFilter()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'folder' / 'ledger.db'}"


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "unwritten"


def close_off(url: str) -> None:
    """Make the place of a ledger one where nothing can be: even root can't make a file in a
    file.
    """
    folder = Path(url.removeprefix("sqlite:///")).parent
    if folder.exists():
        folder.rename(folder.with_name("away"))
    folder.touch()


def open_up(url: str) -> None:
    folder = Path(url.removeprefix("sqlite:///")).parent
    folder.unlink()
    if folder.with_name("away").exists():
        folder.with_name("away").rename(folder)


def files(spill: Path) -> list[Path]:
    return list(spill.iterdir())


async def book(store: LedgerStore, name: str) -> None:
    await store.intend(LedgerEntry(id=name))
    store.settle(charged("0.5", id=name))


async def states(url: str) -> dict[str, EntryState]:
    async with Ledger.open(url) as ledger:
        return {entry.id: entry.state for entry in await ledger.entries()}


async def test_a_required_ledger_that_can_not_be_opened_is_an_error_that_names_it(
    url: str, spill: Path
) -> None:
    close_off(url)
    with pytest.raises(LedgerUnavailableError) as caught:
        await open_store(url, outbox_folder=spill)
    assert url in str(caught.value)
    assert "FASTROAI_LEDGER_REQUIRED=false" in str(caught.value)


async def test_the_password_of_a_ledger_is_not_shown(spill: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://me:hidden@127.0.0.1:{nobody.getsockname()[1]}/books"
        with pytest.raises(LedgerUnavailableError) as caught:
            await open_store(url, outbox_folder=spill)
    assert "hidden" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


async def test_a_required_ledger_that_goes_away_refuses_intents_and_keeps_outcomes(
    url: str, spill: Path
) -> None:
    store = await open_store(url, outbox_folder=spill)
    await store.intend(LedgerEntry(id="before"))
    close_off(url)
    with pytest.raises(LedgerUnavailableError):
        await RequestRecorder(store).intend(LedgerEntry(id="meanwhile"))
    store.settle(charged("0.5", id="before"))
    with pytest.raises(LedgerUnavailableError):
        await store.flush()
    open_up(url)
    await store.intend(LedgerEntry(id="after"))
    await store.close()
    assert await states(url) == {
        "before": EntryState.CHARGED,
        "meanwhile": EntryState.REFUSED,
        "after": EntryState.UNSETTLED,
    }
    assert files(spill) == []


async def test_a_ledger_that_is_not_required_books_later(url: str, spill: Path) -> None:
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=spill)
    for number in range(3):
        await book(store, f"first-{number}")
    [file] = files(spill)
    assert {entry.id for entry in read_entries(file)} >= {"first-0", "first-1", "first-2"}
    open_up(url)
    await book(store, "second")
    await store.flush()
    assert await states(url) == dict.fromkeys(
        ("first-0", "first-1", "first-2", "second"), EntryState.CHARGED
    )
    assert files(spill) == []
    await store.close()


async def test_a_flush_alone_finds_the_ledger_again_and_writes_what_was_kept(
    url: str, spill: Path
) -> None:
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=spill)
    await book(store, "kept")
    await store.flush()
    assert len(files(spill)) == 1
    open_up(url)
    await store.flush()
    assert await states(url) == {"kept": EntryState.CHARGED}
    await store.close()


async def test_entries_outlive_the_deletion_of_the_file_they_wait_in(url: str, spill: Path) -> None:
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=spill)
    await book(store, "waits")
    for file in files(spill):
        file.unlink()
    open_up(url)
    await book(store, "later")
    await store.flush()
    assert await states(url) == dict.fromkeys(("waits", "later"), EntryState.CHARGED)
    await store.close()


async def test_what_a_process_could_not_write_the_next_one_writes(url: str, spill: Path) -> None:
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=spill)
    await book(store, "kept")
    await store.close()
    assert len(files(spill)) == 1
    open_up(url)
    store = await open_store(url, outbox_folder=spill)
    await store.flush()
    assert await states(url) == {"kept": EntryState.CHARGED}
    assert files(spill) == []
    await store.close()


async def test_what_a_killed_process_had_kept_is_written_but_not_what_a_living_one_keeps(
    url: str, spill: Path
) -> None:
    close_off(url)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=keep_and_wait, args=(url, spill, ready))
    other.start()
    assert await asyncio.to_thread(ready.wait, 60)
    open_up(url)
    store = await open_store(url, outbox_folder=spill)
    await store.flush()
    assert await store.entries(ALL) == []
    await store.close()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    store = await open_store(url, outbox_folder=spill)
    await store.flush()
    assert {entry.id for entry in await store.entries(ALL)} == {"kept"}
    await store.close()


def keep_and_wait(url: str, spill: Path, ready: object) -> None:
    async def main() -> None:
        store = await open_store(url, required=False, outbox_folder=spill)
        await store.intend(LedgerEntry(id="kept"))
        ready.set()  # type: ignore[attr-defined]  # an event of multiprocessing
        # Nothing more is handed over, and the next try by itself is at least half a second away.
        os.kill(os.getpid(), signal.SIGSTOP)

    asyncio.run(main())


async def test_a_file_that_was_deleted_is_made_again(url: str, spill: Path) -> None:
    store = await open_store(url, outbox_folder=spill)
    await book(store, "old")
    await store.flush()
    for file in Path(url.removeprefix("sqlite:///")).parent.iterdir():
        file.unlink()
    await book(store, "new")
    await store.close()
    assert await states(url) == {"new": EntryState.CHARGED}


async def test_a_line_that_was_cut_off_spoils_no_other(url: str, spill: Path) -> None:
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=spill)
    await book(store, "one")
    await store.close()
    [file] = files(spill)
    with file.open("ab") as more:
        more.write(b'\n{"id": "cut o')
    open_up(url)
    store = await open_store(url, outbox_folder=spill)
    await store.flush()
    assert await states(url) == {"one": EntryState.CHARGED}
    await store.close()


async def test_entries_wait_in_memory_where_no_file_can_be_made(url: str, tmp_path: Path) -> None:
    (tmp_path / "blocked").touch()
    close_off(url)
    store = await open_store(url, required=False, outbox_folder=tmp_path / "blocked" / "unwritten")
    await book(store, "one")
    open_up(url)
    await store.flush()
    assert await states(url) == {"one": EntryState.CHARGED}
    await store.close()


async def test_another_writer_that_takes_its_time_is_waited_for(url: str, spill: Path) -> None:
    store = await open_store(url, outbox_folder=spill)
    other = sqlite3.connect(
        url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    intent = asyncio.create_task(store.intend(LedgerEntry(id="patient")))
    await asyncio.sleep(0.3)
    assert not intent.done()
    other.execute("COMMIT")
    await intent
    other.close()
    await store.close()
    assert await states(url) == {"patient": EntryState.UNSETTLED}


async def test_a_postgresql_server_that_restarts_is_found_again(
    spill: Path, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    store = await open_store(url, outbox_folder=spill)
    tolerant = await open_store(url, required=False, outbox_folder=spill)
    await book(store, "before")
    await store.flush()
    postgres_server.stop()
    with pytest.raises(LedgerUnavailableError):
        await RequestRecorder(store).intend(LedgerEntry(id="refused"))
    await book(tolerant, "kept")
    postgres_server.start()
    await book(store, "after")
    await store.close()
    await tolerant.close()
    assert await states(url) == {
        "before": EntryState.CHARGED,
        "refused": EntryState.REFUSED,
        "kept": EntryState.CHARGED,
        "after": EntryState.CHARGED,
    }


async def test_a_connection_that_broke_is_made_anew_without_anyone_noticing(
    postgres_url: str, spill: Path
) -> None:
    import asyncpg

    store = await open_store(postgres_url, outbox_folder=spill)
    await book(store, "before")
    await store.flush()
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    await admin.close()
    await book(store, "after")
    await store.close()
    assert await states(postgres_url) == dict.fromkeys(("before", "after"), EntryState.CHARGED)
