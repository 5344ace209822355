"""Standing budgets in a ledger: exact, seen by all who write to it, and never leaking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fastroai.budgets import Budget, Budgets, BudgetSignal, BudgetState, gate, listen
from fastroai.budgets.accounts_table import Accounts
from fastroai.budgets.standing import UnknownBudgetError
from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Statements
from fastroai.errors import CostBudgetExceededError, LedgerUnavailableError
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import LedgerStore, open_store
from fastroai.usage import Ledger

BOUND = Decimal("0.1")
COST = Decimal("0.01")
AT = Attribution(run_id="r", pipeline="p", step_id="s", tags={"team": "search"})


# A ledger in memory is SQLite by another connection: test_budget_machine.py and the tests of
# conformance run on one each time.
@pytest.fixture(params=["sqlite", "postgresql", pytest.param("memory", marks=pytest.mark.long)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_ledger"))
    name = tmp_path / "ledger.db"
    return f"sqlite:///{name}" if request.param == "sqlite" else f"memory://{name.as_posix()}"


@pytest.fixture
async def store(url: str, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    opened = await open_store(url, outbox_folder=tmp_path / "unwritten")
    yield opened
    await opened.close()


@pytest.fixture
async def budgets(url: str, store: LedgerStore) -> AsyncIterator[Budgets]:
    async with Budgets.open(url) as opened:
        yield opened


def reserved(usd: str = "1", **fields: Any) -> Budget:
    return Budget(name="all", usd=Decimal(usd), strength="reserved", **fields)


def request(bound: Decimal | None = BOUND, **fields: Any) -> LedgerEntry:
    fields = {"attribution": AT, "model_asked": "openai:m"} | fields
    return LedgerEntry(upper_bound_usd=bound, **fields)


def charged(entry: LedgerEntry, usd: Decimal = COST) -> LedgerEntry:
    return entry.settled(EntryState.CHARGED, cost_usd=usd)


async def ask(store: LedgerStore, usd: Decimal = COST, **fields: Any) -> LedgerEntry | None:
    """A request, answered in a moment; None: it was refused."""
    try:
        entry = await store.intend(request(**fields))
    except CostBudgetExceededError:
        return None
    await asyncio.sleep(0.001)
    store.settle(charged(entry, usd))
    return entry


async def amounts(budgets: Budgets, name: str = "all") -> tuple[Decimal, Decimal, Decimal]:
    """Spent, held and unknown; they are what the entries say."""
    state = await budgets.get(name)
    counted = await budgets.recount(name)
    assert (counted.spent, counted.held, counted.unknown) == (
        state.spent,
        state.held,
        state.unknown,
    )
    return state.spent, state.held, state.unknown


async def test_many_at_once_never_pass_the_budget_and_use_it_up(
    store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved())
    answered = await asyncio.gather(*(ask(store) for _ in range(180)))
    await store.flush()
    spent, held, unknown = await amounts(budgets)
    assert spent == COST * sum(one is not None for one in answered)
    assert 1 - BOUND < spent <= 1
    assert (held, unknown) == (0, 0)


async def test_two_stores_share_a_budget_and_wake_each_other(
    url: str, store: LedgerStore, budgets: Budgets, tmp_path: Path
) -> None:
    await budgets.set(reserved("0.15"))
    other = await open_store(url, outbox_folder=tmp_path / "other")
    first = await store.intend(request())
    waiting = asyncio.create_task(other.intend(request()))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    store.settle(charged(first))
    second = await waiting
    assert second.sent_at > first.sent_at + timedelta(seconds=0.09)
    other.settle(charged(second))
    await other.close()
    assert await amounts(budgets) == (2 * COST, 0, 0)


async def test_stores_that_take_turns_count_what_the_other_has_changed(
    url: str, store: LedgerStore, budgets: Budgets, tmp_path: Path
) -> None:
    await budgets.set(reserved("10"))
    other = await open_store(url, outbox_folder=tmp_path / "other")
    held = [await each.intend(request()) for each in (store, store, other, store, other, other)]
    assert await amounts(budgets) == (0, 6 * BOUND, 0)
    turns = gate.DOUBTS + 2
    for _ in range(turns):
        for each in (store, other):
            assert await ask(each) is not None
            await each.flush()
    for entry, each in zip(held, (store, store, other, store, other, other), strict=True):
        each.settle(charged(entry))
        await each.flush()
    await other.close()
    assert await amounts(budgets) == ((2 * turns + 6) * COST, 0, 0)


async def test_a_refused_request_is_not_in_the_books(
    url: str, store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved("0.05"))
    recorder = RequestRecorder(store)
    with pytest.raises(CostBudgetExceededError) as caught:
        await recorder.intend(request())
    error = caught.value
    assert (error.scope, error.name, error.limit, error.step_id) == (
        "standing",
        "all",
        Decimal("0.05"),
        "s",
    )
    assert "fastroai budgets raise " in str(error)
    assert recorder.entries == ()
    async with Ledger.open(url) as ledger:
        assert await ledger.entries() == []


async def test_settled_overshoots_by_what_is_in_flight_only(
    store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(Budget(name="all", usd=Decimal("0.05")))
    sent = await asyncio.gather(*(store.intend(request()) for _ in range(20)))
    for entry in sent:
        store.settle(charged(entry))
    await store.flush()
    with pytest.raises(CostBudgetExceededError):
        await store.intend(request())
    assert await amounts(budgets) == (20 * COST, 0, 0)


COVERED: tuple[dict[str, str], ...] = (
    {"pipeline": "p"},
    {"tag": "team=search"},
    {"tag": "team"},
    {"model": "m"},
    {"model": "openai:m"},
    {"pipeline": "p", "tag": "team=search", "model": "m"},
)
NOT_COVERED: tuple[dict[str, str], ...] = (
    {"pipeline": "q"},
    {"tag": "team=ads"},
    {"model": "other"},
    {"deployment": "f/d"},
)


async def test_a_budget_counts_what_is_in_its_scope(store: LedgerStore, budgets: Budgets) -> None:
    await ask(store)  # before there is a budget
    await store.flush()
    for scope in COVERED + NOT_COVERED:
        await budgets.set(replace(reserved(**scope), name=str(scope)))
    await ask(store)
    await store.flush()
    for scope in COVERED:
        assert await amounts(budgets, str(scope)) == (2 * COST, 0, 0), scope
    for scope in NOT_COVERED:
        assert await amounts(budgets, str(scope)) == (0, 0, 0), scope


async def test_all_budgets_of_a_request_must_admit_it(store: LedgerStore, budgets: Budgets) -> None:
    await budgets.set(reserved("9"))
    await budgets.set(replace(reserved("0.1", tag="team=search"), name="team"))
    await ask(store)
    await store.flush()
    with pytest.raises(CostBudgetExceededError, match="'team'"):
        await store.intend(request())
    other = replace(AT, tags={"team": "ads"})
    assert await ask(store, attribution=other) is not None


async def test_an_unknown_outcome_counts_for_its_bound_until_somebody_knows(
    url: str, store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved("0.15"))
    entry = await store.intend(request())
    store.settle(entry.settled(EntryState.UNSETTLED, error="timed out"))
    await store.flush()
    assert await amounts(budgets) == (0, 0, BOUND)
    with pytest.raises(CostBudgetExceededError) as caught:
        await store.intend(request())
    assert caught.value.unknown == BOUND
    async with Ledger.open(url) as ledger:  # as `reconcile` does
        await ledger.append(charged(entry))
    assert await amounts(budgets) == (COST, 0, 0)
    assert await ask(store) is not None


@pytest.mark.parametrize("state", [EntryState.REFUSED, EntryState.REPLAYED])
async def test_what_costs_nothing_holds_nothing(
    store: LedgerStore, budgets: Budgets, state: EntryState
) -> None:
    await budgets.set(reserved())
    entry = await store.intend(request())
    store.settle(entry.settled(state, cost_usd=COST))
    simulated = await store.intend(request(simulated=True))
    store.settle(charged(simulated, Decimal(99)))
    await store.flush()
    assert await amounts(budgets) == (0, 0, 0)


async def test_outcomes_that_are_told_again_count_once(
    store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved())
    entry = await store.intend(request())
    for outcome in (
        entry.settled(EntryState.UNSETTLED),
        charged(entry),
        charged(entry, Decimal("0.9")),
        entry.settled(EntryState.UNSETTLED),
    ):
        store.settle(outcome)
        await store.flush()
    assert await amounts(budgets) == (COST, 0, 0)


async def test_entries_that_need_no_intent_count(store: LedgerStore, budgets: Budgets) -> None:
    await budgets.set(reserved())
    store.settle(charged(request()))
    await store.flush()
    assert await amounts(budgets) == (COST, 0, 0)


async def test_a_raised_budget_lets_those_who_wait_go_on(
    store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved("0.1"))
    await store.intend(request())
    waiting = asyncio.create_task(store.intend(request()))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await budgets.raise_to("all", "0.2")
    await waiting


async def test_a_budget_holds_for_a_request_that_waited_for_its_transaction(
    url: str, store: LedgerStore
) -> None:
    """What its process knew before that, it must not go by."""
    if not url.startswith("sqlite"):
        pytest.skip("Only one transaction at a time writes to SQLite.")
    await store.intend(request())
    other, locked = Database(database_url(url), writes=True), threading.Event()

    def set_slowly(statements: Statements) -> None:
        locked.set()
        time.sleep(gate.NOTICE)
        Accounts(statements).define(reserved("0"))

    setting = asyncio.create_task(asyncio.to_thread(other.transact, set_slowly))
    await asyncio.to_thread(locked.wait)
    with pytest.raises(CostBudgetExceededError):
        await store.intend(request())
    await setting
    other.close()


async def test_a_removed_budget_holds_no_longer(store: LedgerStore, budgets: Budgets) -> None:
    await budgets.set(reserved("0"))
    assert await ask(store) is None
    await budgets.remove("all")
    assert await ask(store) is not None
    assert await budgets.list() == []
    with pytest.raises(UnknownBudgetError, match="'all'"):
        await budgets.get("all")


async def test_who_is_cancelled_while_it_waits_is_not_sent_and_holds_nothing(
    store: LedgerStore, budgets: Budgets
) -> None:
    await budgets.set(reserved("0.1"))
    first = await store.intend(request())
    recorder = RequestRecorder(store)
    waiting = asyncio.create_task(recorder.intend(request()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    store.settle(charged(first, Decimal(0)))
    assert await ask(store) is not None
    await store.flush()
    assert await amounts(budgets) == (COST, 0, 0)


async def test_what_a_closed_process_held_is_unknown(
    url: str, store: LedgerStore, budgets: Budgets, tmp_path: Path
) -> None:
    await budgets.set(reserved("0.15"))
    other = await open_store(url, outbox_folder=tmp_path / "other")
    await other.intend(request())
    await other.close()
    assert await amounts(budgets) == (0, 0, BOUND)
    with pytest.raises(CostBudgetExceededError):
        await store.intend(request())


async def test_a_process_without_a_heartbeat_blocks_others_for_no_longer_than_a_lease(
    url: str, store: LedgerStore, budgets: Budgets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gate, "LEASE", 0.3)
    await budgets.set(reserved("0.15"))
    dead = await open_store(url, outbox_folder=tmp_path / "dead")
    entry = await dead.intend(request())
    monkeypatch.setattr(gate.BudgetGate, "is_beat_due", lambda _: False)
    with pytest.raises(CostBudgetExceededError) as caught:
        await asyncio.wait_for(store.intend(request()), 20)
    assert (caught.value.unknown, caught.value.held) == (BOUND, 0)
    # It lives after all, and knows better.
    dead.settle(charged(entry))
    await dead.flush()
    assert await amounts(budgets) == (COST, 0, 0)
    await dead.close()


async def test_a_store_that_is_closed_answers_those_who_wait(
    url: str, budgets: Budgets, tmp_path: Path
) -> None:
    await budgets.set(reserved("0.1"))
    store = await open_store(url, outbox_folder=tmp_path / "closing")
    await store.intend(request())
    waiting = asyncio.create_task(store.intend(request()))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(LedgerUnavailableError, match="closed while requests waited"):
        await waiting


async def test_listeners_hear_of_shares_and_refusals(store: LedgerStore, budgets: Budgets) -> None:
    heard: list[BudgetSignal] = []
    leave = listen(heard.append)
    try:
        await budgets.set(reserved("0.1", warn_at=(Decimal("0.5"),)))
        await ask(store, Decimal("0.05"))
        await store.flush()
        assert await ask(store) is None
    finally:
        leave()
    assert [(one.kind, one.scope, one.name, one.share) for one in heard] == [
        ("warning", "standing", "all", Decimal("0.5")),
        ("exceeded", "standing", "all", None),
    ]
    assert heard[0].at == AT


async def test_a_request_counts_in_the_window_it_was_sent_in(
    store: LedgerStore, budgets: Budgets
) -> None:
    """One that is in flight while the window turns over is not of the new one."""
    await budgets.set(reserved(window="day", zone="Pacific/Auckland"))
    state = await budgets.get("all")
    before = await store.intend(request(sent_at=state.since - timedelta(microseconds=1)))
    first = await store.intend(request(sent_at=state.since))
    for entry in (before, first):
        store.settle(charged(entry))
    await store.flush()
    assert await amounts(budgets) == (COST, 0, 0)


async def test_a_state_says_its_window(budgets: Budgets) -> None:
    state: BudgetState = await budgets.set(reserved(window="month", zone="Europe/Berlin"))
    assert state.since <= datetime.now(UTC) < state.until
    assert state.left == 1
