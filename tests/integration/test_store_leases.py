"""Leases in a ledger's database: one holder at a time, heartbeats, and what becomes of the dead."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from fastroai.database.engine import Database, database_url, open_database
from fastroai.errors import LedgerUnavailableError, RunLeaseError
from fastroai.leases.heartbeat import Heartbeat, Lease
from fastroai.leases.run_lease import GuardedStore, HeldLease
from fastroai.leases.table import LeaseRecord, LeaseRequest, LeaseTable
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import open_store
from tests.support import forked

HOUR = 3_600_000_000
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_ledger"))


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LeaseTable]:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_ledger")
    if request.param == "memory":
        url = f"memory://{uuid4()}"
    opened = LeaseTable(open_database(database_url(url), writes=True))
    yield opened
    opened.close()


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


def test_what_a_silent_holder_had_is_taken_and_its_next_heartbeat_tells_it(
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


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Machine:
    """A process's view of the leases: its connection, its clock, and its wall clock."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.wall = 1_800_000_000_000_000
        self.table = LeaseTable(
            Database(database_url(url), writes=True),
            clock=clock,
            wall_clock=lambda: self.wall + int(clock() * 1e6),
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machines(url: str, clock: Clock) -> Iterator[tuple[Machine, Machine]]:
    both = Machine(url, clock), Machine(url, clock)
    yield both
    for machine in both:
        machine.table.close()


def move_clocks(machine: Machine, others: Machine, shift: int) -> None:
    """Set the wall clock of one machine, or of the server that both ask for the time."""
    machine.wall += shift
    if "postgresql" in machine.table.database.name:
        # What it wrote before looks to be from another time now.
        moved = text("UPDATE fastroai_leases SET renewed_at = renewed_at - :shift")
        others.table.database.run(lambda connection: connection.execute(moved, {"shift": shift}))


@pytest.mark.parametrize("shift", [-HOUR, HOUR])
@pytest.mark.parametrize("moved", ["holder", "waiter"])
def test_a_clock_that_is_set_takes_no_lease_of_the_living(
    machines: tuple[Machine, Machine], clock: Clock, shift: int, moved: str
) -> None:
    holder, waiter = machines
    held, wanted = claim(30), claim(30)
    assert holder.table.take(held) is None
    assert waiter.table.take(wanted) is not None
    move_clocks(holder if moved == "holder" else waiter, waiter, shift)
    for _ in range(12):
        assert waiter.table.take(wanted) is not None
        clock.seconds += 9
        assert waiter.table.take(wanted) is not None
        assert holder.table.renew([held.token]) == set()
    assert waiter.table.take(wanted) is not None


@pytest.mark.parametrize("shift", [-HOUR, 0, HOUR])
def test_a_dead_holders_lease_is_taken_within_a_lease_whatever_the_clock_says(
    machines: tuple[Machine, Machine], clock: Clock, shift: int
) -> None:
    holder, waiter = machines
    held, wanted = claim(30), claim(30)
    assert holder.table.take(held) is None
    assert waiter.table.take(wanted) is not None
    move_clocks(waiter, waiter, shift)
    # The move itself may look like a heartbeat.
    assert waiter.table.take(wanted) is not None
    clock.seconds += 30
    assert waiter.table.take(wanted) is not None
    clock.seconds += 0.1
    assert waiter.table.take(wanted) is None
    assert holder.table.renew([held.token]) == {held.token}


def test_a_heartbeat_shows_although_the_wall_clock_stands_still(
    machines: tuple[Machine, Machine], clock: Clock
) -> None:
    holder, waiter = machines
    held, wanted = claim(30), claim(30)
    holder.table.take(held)
    for _ in range(3):
        assert waiter.table.take(wanted) is not None
        clock.seconds += 20
        holder.wall = waiter.wall = holder.wall - 20_000_000
        holder.table.renew([held.token])


def test_of_two_that_watched_a_holder_die_one_gets_its_lease(
    url: str, machines: tuple[Machine, Machine], clock: Clock
) -> None:
    holder, first = machines
    second = Machine(url, clock)
    holder.table.take(claim(30))
    mine, theirs = claim(30), claim(30)
    assert first.table.take(mine) is not None
    assert second.table.take(theirs) is not None
    clock.seconds += 31
    assert first.table.take(mine) is None
    found = second.table.take(theirs)
    assert found is not None
    assert found.claim.token == mine.token
    second.table.close()


def test_what_a_process_of_this_machine_left_long_ago_is_taken_at_once(url: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    clock = Clock()
    there, here = Machine(url, clock), Machine(url, clock)
    there.table.take(replace(claim(30), pid=child.pid))
    assert here.table.take(claim(30)) is not None  # it may just not have beaten yet
    move_clocks(here, here, HOUR)
    assert here.table.take(claim(30)) is None
    there.table.take(replace(claim(30, name="elsewhere"), pid=child.pid, host="elsewhere"))
    move_clocks(here, here, HOUR)
    assert here.table.take(claim(30, name="elsewhere")) is not None
    there.table.close()
    here.table.close()


def test_a_holder_of_the_version_before_is_seen_to_live(url: str, clock: Clock) -> None:
    holder, waiter = Machine(url, clock), Machine(url, clock)
    held, wanted = claim(30), claim(30)
    holder.table.take(held)
    old_way = text("UPDATE fastroai_leases SET renewed_at = :now")
    for number in range(4):
        assert waiter.table.take(wanted) is not None
        clock.seconds += 20
        values = {"now": holder.wall + 20_000_000 * number}
        holder.table.database.run(
            lambda connection, values=values: connection.execute(old_way, values)
        )
    holder.table.close()
    waiter.table.close()


def test_of_four_processes_one_gets_it(url: str) -> None:
    database = Database(database_url(url), writes=True)
    database.prepare()
    database.close()
    program = f"from {__name__} import four_at_once; four_at_once({url!r})"
    command = [sys.executable, "-c", program]
    done = forked.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150)
    taken = json.loads(done.stdout)
    assert [sum(round_) for round_ in zip(*taken, strict=True)] == [1] * ROUNDS


ROUNDS = 25


def four_at_once(url: str) -> None:
    """In a process that has one thread only: it is forked."""
    context = get_context("fork")
    ready, results = context.Barrier(4), context.Queue()
    others = [context.Process(target=take_at_once, args=(url, ready, results)) for _ in range(4)]
    for other in others:
        other.start()
    sys.stdout.write(json.dumps([results.get(timeout=120) for _ in others]))
    for other in others:
        other.join()


def take_at_once(url: str, ready: Any, results: Any) -> None:
    table = LeaseTable(Database(database_url(url), writes=True))
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
        LeaseTable(Database(database_url(f"sqlite:///{folder / 'ledger.db'}"), writes=True))
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


async def test_a_request_that_a_lost_lease_refuses_has_its_intent_and_its_outcome_booked(
    url: str, heartbeat: Heartbeat
) -> None:
    lease = await asyncio.wrap_future(heartbeat.take(claim(), lambda: None))
    assert isinstance(lease, Lease)
    store = await open_store(url)
    held = HeldLease(heartbeat, lease, "the run", required=True)
    recorder = RequestRecorder(GuardedStore(store, (held,)))
    sent, refused = LedgerEntry(), LedgerEntry()
    await recorder.intend(sent)
    lease.lose()
    with pytest.raises(RunLeaseError):
        await recorder.intend(refused)
    await recorder.flush()

    assert await store.entries(LedgerFilter()) == list(recorder.entries)
    assert [entry.state for entry in recorder.entries] == [
        EntryState.UNSETTLED,
        EntryState.REFUSED,
    ]
    assert recorder.entries[1].error == "Not sent: RunLeaseError while it was booked."
    await store.close()
