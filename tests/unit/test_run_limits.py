"""Limits of a run: who waits, in which order, and who is refused."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from fastroai.budgets import Budget, BudgetSignal, RunLimits, listen
from fastroai.errors import CostBudgetExceededError
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry

AT = Attribution(run_id="run", pipeline="p", step_id="s")


def request(bound: str | None = "1", **fields: Any) -> LedgerEntry:
    usd = None if bound is None else Decimal(bound)
    return LedgerEntry(attribution=AT, model_asked="openai:m", upper_bound_usd=usd, **fields)


def charged(entry: LedgerEntry, usd: str) -> LedgerEntry:
    return entry.settled(EntryState.CHARGED, cost_usd=Decimal(usd))


def reserved(usd: str, **fields: Any) -> RunLimits:
    return RunLimits([Budget(usd=Decimal(usd), strength="reserved", **fields)], name="p")


async def admitted(limits: RunLimits, *entries: LedgerEntry) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(limits.admit(entry)) for entry in entries]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_who_waits_comes_in_order_as_holds_settle() -> None:
    limits, entries = reserved("2"), [request() for _ in range(4)]
    tasks = await admitted(limits, *entries)
    assert [task.done() for task in tasks] == [True, True, False, False]
    limits.note(charged(entries[0], "0.1"))
    await asyncio.sleep(0)
    # 0.1 is spent and 1 held: nobody fits before the other one settles.
    assert not tasks[2].done()
    limits.note(charged(entries[1], "0.1"))
    await tasks[2]
    assert not tasks[3].done()
    limits.note(charged(entries[2], "0.8"))
    await tasks[3]


async def test_a_smaller_request_does_not_pass_one_that_waits() -> None:
    limits = reserved("2")
    first, large, small = request("1.5"), request("1"), request("0.1")
    tasks = await admitted(limits, first, large, small)
    assert [task.done() for task in tasks] == [True, False, False]
    limits.note(charged(first, "0.5"))
    await asyncio.gather(*tasks)


async def test_a_request_that_does_not_fit_beside_what_is_spent_is_refused_at_once() -> None:
    limits, first = reserved("2"), request()
    await limits.admit(first)
    limits.note(charged(first, "1"))
    with pytest.raises(CostBudgetExceededError, match=r"can cost up to 1\.5 USD"):
        await limits.admit(request("1.5"))


async def test_who_waits_is_refused_once_too_much_is_spent() -> None:
    limits, first, second = reserved("1.5"), request(), request()
    tasks = await admitted(limits, first, second)
    limits.note(charged(first, "1"))
    with pytest.raises(CostBudgetExceededError):
        await tasks[1]


async def test_who_is_cancelled_while_it_waits_holds_nothing() -> None:
    limits, first, second, third = reserved("1"), request(), request(), request("0.2")
    tasks = await admitted(limits, first, second, third)
    tasks[1].cancel()
    limits.note(charged(first, "0.1"))
    await tasks[2]
    [limit] = limits.of_step("s")
    assert (limit.account.spent, limit.account.held) == (Decimal("0.1"), Decimal("0.2"))


async def test_a_request_is_not_made_to_wait_for_its_own_task() -> None:
    limits = reserved("1.5")
    await limits.admit(request())
    with pytest.raises(CostBudgetExceededError, match="by requests of those who wait"):
        await limits.admit(request())


async def test_one_outcome_counts_once_however_often_it_is_told() -> None:
    limits, entry = reserved("5"), request()
    await limits.admit(entry)
    for _ in range(3):
        limits.note(charged(entry, "0.5"))
    limits.note_earlier([charged(entry, "0.5")])
    [limit] = limits.of_step(None)
    assert (limit.account.spent, limit.account.held) == (Decimal("0.5"), 0)


async def test_what_an_earlier_execution_left_open_is_unknown() -> None:
    limits = reserved("3")
    limits.note_earlier([request("2")])
    with pytest.raises(CostBudgetExceededError) as caught:
        await limits.admit(request("1.5"))
    assert (caught.value.unknown, caught.value.held) == (2, 0)


async def test_settled_admits_below_the_limit_however_much_is_held() -> None:
    limits = RunLimits([Budget(usd=Decimal(1))])
    entries = [request("5") for _ in range(10)]
    await asyncio.gather(*map(limits.admit, entries))
    limits.note(charged(entries[0], "1"))
    with pytest.raises(CostBudgetExceededError):
        await limits.admit(request())


async def test_listeners_hear_each_share_once_and_of_each_refusal() -> None:
    heard: list[BudgetSignal] = []
    leave = listen(heard.append)
    try:
        limits = reserved("2", warn_at=(Decimal("0.5"), Decimal("0.9")))
        for cost in ("0.5", "0.6", "0.8"):
            entry = request("0.9")
            await limits.admit(entry)
            limits.note(charged(entry, cost))
        with pytest.raises(CostBudgetExceededError):
            await limits.admit(request())
    finally:
        leave()
    assert [(signal.kind, signal.share) for signal in heard] == [
        ("warning", Decimal("0.5")),
        ("warning", Decimal("0.9")),
        ("exceeded", None),
    ]
    assert heard[-1].spent == Decimal("1.9")


@pytest.mark.parametrize(
    "wrong",
    [
        {"usd": 2.5},
        {"usd": "-1"},
        {"usd": "NaN"},
        {"usd": "1", "window": "year"},
        {"usd": "1", "zone": "Mars/Olympus"},
        {"usd": "1", "strength": "firm"},
        {"usd": "1", "at_limit": "explode"},
    ],
    ids=str,
)
def test_a_budget_that_makes_no_sense_says_what_to_give(wrong: dict[str, Any]) -> None:
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=f"{name}="):
        Budget(**wrong)
