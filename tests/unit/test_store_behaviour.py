"""What a ledger's store does, in memory and in SQLite alike."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fastroai.database.engine import Database
from fastroai.errors import LedgerNotFoundError, LedgerUnavailableError
from fastroai.ledger.entries import Attribution
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import LedgerStore, open_store, shared_store
from fastroai.ledger.store.sql_store import SqlStore
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support import forked
from tests.support.ledger_entries import charged

ALL = LedgerFilter()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, url: str) -> AsyncIterator[LedgerStore]:
    found = await open_store(f"memory://{uuid4()}" if request.param == "memory" else url)
    yield found
    await found.close()


async def only(store: LedgerStore) -> LedgerEntry:
    await store.flush()
    [entry] = await store.entries(ALL)
    return entry


async def test_an_intent_without_an_outcome_is_unsettled(store: LedgerStore) -> None:
    intent = LedgerEntry(model_asked="openai:gpt-5-mini", upper_bound_usd=Decimal("0.01"))
    await store.intend(intent)
    assert await only(store) == intent
    assert intent.state is EntryState.UNSETTLED


async def test_an_outcome_settles_its_intent(store: LedgerStore) -> None:
    entry = charged()
    await store.intend(replace(entry, state=EntryState.UNSETTLED, settled_at=None, cost_usd=None))
    store.settle(entry)
    assert await only(store) == entry


async def test_an_entry_without_an_intent_is_booked_too(store: LedgerStore) -> None:
    paid = charged()
    replay = paid.replayed(Attribution(run_id="second"))
    store.settle(replay)
    assert await only(store) == replay


async def test_of_several_outcomes_the_first_counts(store: LedgerStore) -> None:
    entry = charged("0.5")
    store.settle(entry)
    store.settle(replace(entry, cost_usd=Decimal(9)))
    store.settle(entry.settled(EntryState.REFUSED))
    assert await only(store) == entry


async def test_an_unsettled_outcome_may_become_final_but_not_the_other_way_round(
    store: LedgerStore,
) -> None:
    intent = LedgerEntry()
    await store.intend(intent)
    store.settle(intent.settled(EntryState.UNSETTLED, error="timed out"))
    assert (await only(store)).error == "timed out"
    store.settle(intent.settled(EntryState.CHARGED, cost_usd=Decimal(1)))
    store.settle(intent.settled(EntryState.UNSETTLED, error="too late"))
    entry = await only(store)
    assert (entry.state, entry.cost_usd, entry.error) == (EntryState.CHARGED, 1, None)


async def test_entries_come_in_the_order_in_which_they_were_sent(store: LedgerStore) -> None:
    sent = [LedgerEntry() for _ in range(5)]
    for entry in reversed(sent):
        await store.intend(entry)
    assert [entry.sent_at for entry in await store.entries(ALL)] == sorted(
        entry.sent_at for entry in sent
    )


async def test_a_request_settles_while_its_task_is_cancelled(store: LedgerStore) -> None:
    intent, sent = LedgerEntry(), asyncio.Event()

    async def request() -> None:
        await store.intend(intent)
        sent.set()
        try:
            await asyncio.sleep(30)
        except BaseException as error:
            store.settle(intent.settled(EntryState.UNSETTLED, error=type(error).__name__))
            raise

    task = asyncio.create_task(request())
    await sent.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await only(store)).error == "CancelledError"


async def test_a_request_settles_while_the_garbage_collector_closes_its_generator(
    store: LedgerStore,
) -> None:
    intent = LedgerEntry()

    async def stream() -> AsyncGenerator[int]:
        await store.intend(intent)
        try:
            yield 1
        except GeneratorExit:
            store.settle(intent.settled(EntryState.UNSETTLED, error="left"))
            raise

    left = stream()
    await anext(left)
    del left
    gc.collect()
    for _ in range(5):  # the loop closes it in a task of its own
        await asyncio.sleep(0)
    assert (await only(store)).error == "left"


async def test_coroutines_share_commits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    transact = Database.transact

    def counted(self: Database, work: Any) -> Any:
        decided = transact(self, work)
        commits.append(len(decided.intents))
        return decided

    monkeypatch.setattr(Database, "transact", counted)
    store = await open_store(url)
    await asyncio.gather(*(store.intend(LedgerEntry()) for _ in range(200)))
    await store.close()
    assert sum(commits) == 200
    assert len(commits) < 20


async def test_an_entry_of_wrong_types_is_refused_and_disturbs_no_other(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(url)
    wrong: Any = "many"
    with pytest.raises(ValueError, match="many"):
        await store.intend(LedgerEntry(request_count=wrong))
    store.settle(charged(id="wrong", request_count=wrong))
    assert "id='wrong'" in caplog.text
    store.settle(charged(id="right"))
    assert (await only(store)).id == "right"
    await store.close()


async def test_what_comes_while_the_store_is_being_closed_is_written(url: str) -> None:
    store = await open_store(url)
    for number in range(30):
        closing = asyncio.create_task(store.close())
        for part in range(20):
            store.settle(charged(id=f"{number}-{part}"))
            await asyncio.sleep(0)
        await closing
    await store.flush()
    assert len(await store.entries(ALL)) == 600
    await store.close()


async def test_an_intent_that_is_cancelled_while_it_is_booked_was_not_sent(url: str) -> None:
    store = await open_store(url)
    task = asyncio.create_task(RequestRecorder(store).intend(LedgerEntry()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    entry = await only(store)
    assert (entry.state, entry.error) == (
        EntryState.REFUSED,
        "Not sent: CancelledError while it was booked.",
    )
    await store.close()


def test_one_store_serves_several_event_loops_and_threads(url: str) -> None:
    async def request(loops: str) -> None:
        store = await shared_store(url)
        for number in range(20):
            await store.intend(LedgerEntry(id=f"{loops}-{number}"))
            store.settle(charged(id=f"{loops}-{number}"))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(request(f"t{n}"))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def read() -> list[LedgerEntry]:
        store = await shared_store(url)
        assert store is await shared_store(url)
        await store.flush()
        return await store.entries(ALL)

    entries = asyncio.run(read())
    assert {entry.id for entry in entries} == {f"t{t}-{n}" for t in range(3) for n in range(20)}
    assert {entry.state for entry in entries} == {EntryState.CHARGED}


async def test_a_closed_store_opens_again_when_something_comes(url: str) -> None:
    store = await open_store(url)
    await store.close()
    store.settle(charged())
    assert await only(store)
    await store.close()


async def test_a_process_that_is_forked_off_writes_for_itself(url: str) -> None:
    store = await open_store(url)
    await store.intend(LedgerEntry(id="parent"))
    child = os.fork()
    if not child:
        signal.alarm(20)
        assert isinstance(store, SqlStore)
        store.settle(charged(id="child"))
        store.close_now()
        os._exit(0)
    assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
    store.settle(charged(id="parent"))
    await store.flush()
    assert {e.id: e.state for e in await store.entries(ALL)} == dict.fromkeys(
        ("parent", "child"), EntryState.CHARGED
    )
    await store.close()


def test_what_was_handed_over_is_written_when_the_process_ends(url: str) -> None:
    program = (
        "import asyncio, sys; from fastroai.ledger.store import shared_store\n"
        "from tests.support.ledger_entries import charged\n"
        "async def main():\n"
        "    store = await shared_store(sys.argv[1])\n"
        "    for number in range(50): store.settle(charged())\n"
        "asyncio.run(main())"
    )
    forked.run([sys.executable, "-c", program, url], check=True, cwd=Path(__file__).parents[2])
    [(count,)] = sqlite3.connect(url.removeprefix("sqlite:///")).execute(
        "SELECT count(*) FROM fastroai_outcomes"
    )
    assert count == 50


async def test_a_ledger_reads_what_a_run_wrote(url: str) -> None:
    store = await open_store(url)
    store.settle(charged("0.5", run_id="r", pipeline="p", step_id="s", tags={"team": "search"}))
    await store.close()
    async with Ledger.open(url) as ledger:
        [entry] = await ledger.entries(
            run_id="r", pipeline="p", step_id="s", tag="team=search", model="gpt-5-mini"
        )
        [totals] = await ledger.totals("step", until=entry.settled_at)
    assert entry.cost_usd == Decimal("0.5")
    assert (totals.key, totals.cost_usd, totals.share_priced) == ("p/s", Decimal("0.5"), 1.0)


async def test_the_url_of_a_ledger_comes_from_the_settings_else_it_is_the_users(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    async with Ledger.open() as ledger:
        await ledger.append(charged())
    assert (tmp_path / "home" / ".fastroai" / "ledger.db").exists()
    assert (tmp_path / "home" / ".fastroai").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    async with Ledger.open() as ledger:
        assert await ledger.entries() == []
    assert (tmp_path / "ledger.db").exists()


async def test_appending_the_same_again_is_harmless_and_something_else_is_refused(url: str) -> None:
    entry = charged("0.5")
    async with Ledger.open(url) as ledger:
        await ledger.append(LedgerEntry(id=entry.id))
        await ledger.append(entry)
        await ledger.append(entry)
        with pytest.raises(
            ValueError, match=r"charged at 0\.5 USD already; it can't become charged at 0\.7 USD"
        ):
            await ledger.append(replace(entry, cost_usd=Decimal("0.7")))
        assert [e.cost_usd for e in await ledger.entries()] == [Decimal("0.5")]


async def test_memory_is_one_ledger_for_the_process() -> None:
    entry = charged(run_id="in memory")
    async with Ledger.open("memory://") as ledger:
        await ledger.append(entry)
    async with Ledger.open("memory://") as ledger:
        assert await ledger.entries(run_id="in memory") == [entry]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "Allowed: sqlite:///path"),
        ("mysql://user:pw@host/db", "'mysql'"),
        ("sqlite://", "memory://"),
        ("sqlite:///:memory:", "memory://"),
    ],
)
async def test_a_url_that_names_no_ledger_is_refused(url: str, says: str) -> None:
    with pytest.raises(LedgerUnavailableError) as caught:
        await open_store(url)
    assert says in str(caught.value)
    assert "pw" not in str(caught.value)


def test_sqlalchemy_is_imported_only_when_a_ledger_is_opened() -> None:
    program = "import sys, fastroai, fastroai.usage; assert 'sqlalchemy' not in sys.modules"
    forked.run([sys.executable, "-c", program], kind=forked.BARE, check=True)


async def test_who_only_reads_makes_no_ledger(url: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerNotFoundError, match=f"no ledger in {url} yet"):
        async with Ledger.open(url, create=False):
            pass
    assert os.listdir(tmp_path) == []
    async with Ledger.open(url) as ledger:
        await ledger.append(charged("0.5"))
    async with Ledger.open(url, create=False) as ledger:
        assert (await ledger.totals())[0].cost_usd == Decimal("0.5")
