"""Leases in a ledger's database: one holder at a time, signs of life, and what becomes of the
dead.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fastroai.database.engine import Database, database_url
from fastroai.errors import LedgerUnavailableError
from fastroai.leases.heartbeat import Heartbeat, Lease
from fastroai.leases.table import LeaseRecord, LeaseRequest, LeaseTable, MemoryTable, SqlTable

HOUR = 3_600_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LeaseTable]:
    if request.param == "memory":
        yield MemoryTable()
        return
    name = "postgres_url" if request.param == "postgresql" else None
    url = request.getfixturevalue(name) if name else f"sqlite:///{tmp_path / 'ledger.db'}"
    sql = SqlTable(Database(database_url(url), writes=True))
    yield sql
    sql.close()


@pytest.fixture
def heartbeat(table: LeaseTable) -> Iterator[Heartbeat]:
    running = Heartbeat(table)
    yield running
    running.stop(10)


def claim(seconds: float = 60, name: str = "work") -> LeaseRequest:
    return LeaseRequest(kind="run_key", name=name, seconds=seconds, pipeline="p", run_key="k")


def test_one_holds_it_and_the_other_is_told_who(table: LeaseTable) -> None:
    mine, theirs = claim(), replace(claim(), host="elsewhere", pid=7)
    assert table.take(theirs) is None
    holding = table.take(mine)
    assert isinstance(holding, LeaseRecord)
    assert holding.claim == theirs
    assert holding.is_alive
    assert [held.claim for held in table.holdings("run_key")] == [theirs]
    assert table.take(claim(name="other work")) is None
    assert table.take(replace(mine, kind="flow_run")) is None


def test_what_was_given_up_is_free(table: LeaseTable) -> None:
    first, second = claim(), claim()
    table.take(first)
    table.release(second.token)
    assert table.take(second) is not None
    table.release(first.token)
    assert table.take(second) is None
    table.release(first.token)
    assert [holding.claim.token for holding in table.holdings("run_key")] == [second.token]


def test_to_take_ones_own_again_is_harmless(table: LeaseTable) -> None:
    mine = claim()
    assert table.take(mine) is None
    assert table.take(mine) is None


def test_what_a_silent_holder_had_is_taken_and_its_next_sign_of_life_tells_it(
    table: LeaseTable,
) -> None:
    silent, speaking, next_one = claim(0.001), claim(name="mine"), claim()
    table.take(silent)
    table.take(speaking)
    assert wait_for(lambda: table.take(next_one) is None)
    assert table.renew([silent.token, speaking.token]) == {silent.token}
    assert table.renew([next_one.token]) == set()


def test_a_silent_holder_whose_lease_nobody_took_still_has_it(table: LeaseTable) -> None:
    silent = claim(0.001)
    table.take(silent)
    assert wait_for(lambda: not table.holdings("run_key")[0].is_alive)
    assert table.renew([silent.token]) == set()


@pytest.mark.parametrize("shift", [-HOUR, HOUR])
def test_a_clock_that_was_set_does_not_keep_the_dead_alive(url: str, shift: int) -> None:
    database = Database(database_url(url), writes=True)
    table = SqlTable(database)
    table.take(claim())
    moved = text("UPDATE fastroai_leases SET renewed_at = renewed_at + :shift")
    database.run(lambda connection: connection.execute(moved, {"shift": shift}))
    assert not table.holdings("run_key")[0].is_alive
    assert table.take(claim()) is None
    table.close()


def test_of_four_processes_one_gets_it(url: str) -> None:
    database = Database(database_url(url), writes=True)
    database.prepare()
    database.close()
    context = get_context("spawn")
    ready, results = context.Barrier(4), context.Queue()
    others = [context.Process(target=take_at_once, args=(url, ready, results)) for _ in range(4)]
    for other in others:
        other.start()
    taken = [results.get(timeout=120) for _ in others]
    for other in others:
        other.join()
    assert [sum(round_) for round_ in zip(*taken, strict=True)] == [1] * ROUNDS


ROUNDS = 25


def take_at_once(url: str, ready: Any, results: Any) -> None:
    table = SqlTable(Database(database_url(url), writes=True))
    taken = []
    for number in range(ROUNDS):
        ready.wait(60)
        taken.append(table.take(claim(name=f"work {number}")) is None)
    table.close()
    results.put(taken)


async def test_a_heartbeat_keeps_a_lease_while_the_event_loop_is_busy(
    heartbeat: Heartbeat, table: LeaseTable
) -> None:
    lease = await asyncio.wrap_future(heartbeat.take(claim(1), lambda: None))
    assert isinstance(lease, Lease)
    before = lease.seen
    assert wait_for(lambda: lease.seen > before)  # blocks this loop
    assert lease.is_certain
    await asyncio.wrap_future(heartbeat.release(lease.claim.token))
    assert await asyncio.wrap_future(heartbeat.holdings("run_key")) == []


async def test_a_heartbeat_hears_of_a_loss_and_is_asked_for_it(
    heartbeat: Heartbeat, table: LeaseTable
) -> None:
    lost = threading.Event()
    lease = await asyncio.wrap_future(heartbeat.take(claim(), lost.set))
    kept = await asyncio.wrap_future(heartbeat.take(claim(name="kept"), lambda: None))
    assert isinstance(lease, Lease)
    assert isinstance(kept, Lease)
    await asyncio.to_thread(table.release, lease.claim.token)
    await asyncio.to_thread(table.take, claim())
    await asyncio.wrap_future(heartbeat.confirm())
    assert lost.is_set()
    assert lease.lost
    assert not lease.is_certain
    assert not kept.lost


async def test_a_database_that_is_gone_is_an_error_and_no_loss(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    heartbeat = Heartbeat(
        SqlTable(Database(database_url(f"sqlite:///{folder / 'ledger.db'}"), writes=True))
    )
    lease = await asyncio.wrap_future(heartbeat.take(claim(), lambda: None))
    assert isinstance(lease, Lease)
    folder.rename(tmp_path / "away")
    folder.touch()
    with pytest.raises(LedgerUnavailableError):
        await asyncio.wrap_future(heartbeat.confirm())
    assert not lease.lost
    folder.unlink()
    (tmp_path / "away").rename(folder)
    await asyncio.wrap_future(heartbeat.confirm())
    assert not lease.lost
    heartbeat.stop(10)


def wait_for(condition: Any) -> bool:
    """Wait, without an event loop, until something is so."""
    waiting = threading.Event()
    for _ in range(3000):
        if condition():
            return True
        waiting.wait(0.01)
    return False
