"""Budgets: the standing budgets of a ledger, set and read by any process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeVar

from ..database.engine import Database, database_url, open_database
from ..database.location import ledger_url
from ..database.statements import Statements
from ..database.values import microseconds
from ..ledger.entries import LedgerEntry
from ..ledger.store import flush_shared
from .account import Account
from .accounts_table import Accounts, Key
from .budget import Budget, amount

T = TypeVar("T")

NOTICED: Final = 0.3
"""Seconds after which every process that writes to the ledger knows of a new budget, and what it
wrote without is written.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """A standing budget and what there is of it in the window under way.

    Attributes:
        since: The first moment of the window.
        until: The first moment of the next one.
        spent: What requests have cost, in USD, exact.
        held: The most that requests in flight can cost.
        unknown: The most that requests can have cost of which nobody knows.
        left: What is neither.
    """

    budget: Budget
    since: datetime
    until: datetime
    spent: Decimal
    held: Decimal
    unknown: Decimal
    left: Decimal


class UnknownBudgetError(LookupError):
    """No standing budget has this name."""


class Budgets:
    """The standing budgets in a ledger's database. Open it with `Budgets.open`.

    Each call is one transaction; every process that sends requests knows of a change when it
    returns.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None = None) -> AsyncGenerator[Budgets]:
        """Open a ledger's budgets for the length of an `async with` block. The ledger is made if
        there is none.

        Args:
            url: As of `Ledger.open`.

        Raises:
            LedgerUnavailableError: It can't be opened, or brought up to date.
        """
        if url is None:
            url = ledger_url()
        await flush_shared(url)
        database = open_database(database_url(url), writes=True)
        try:
            await asyncio.to_thread(database.prepare)
            yield cls(database)
        finally:
            await asyncio.to_thread(database.close)

    async def set(self, budget: Budget) -> BudgetState:
        """Set a budget, or change the one of its name. What its window has spent already counts.

        Raises:
            ValueError: It has no name.
            LedgerUnavailableError: The database can't be changed.
        """
        if not budget.name:
            raise ValueError(f"A standing budget needs a name: {budget!r}.")
        is_counted = await self._run(lambda accounts: _define(accounts, budget))
        if not is_counted:
            # Whoever does not know of it yet still writes past it.
            await asyncio.sleep(NOTICED)
            await self._run(lambda accounts: _recount(accounts, budget))
        return await self.get(budget.name)

    async def raise_to(self, name: str, usd: Decimal | int | str) -> BudgetState:
        """Give a budget another limit, higher or lower. Requests that wait for it hear of it.

        Raises:
            UnknownBudgetError: There is none of this name.
            ValueError: It is no amount.
        """
        known = (await self.get(name)).budget
        return await self.set(replace(known, usd=amount("usd", usd)))

    async def remove(self, name: str) -> None:
        """Have a budget hold no longer.

        Raises:
            UnknownBudgetError: There is none of this name.
        """
        await self.get(name)
        await self._run(lambda accounts: accounts.undefine(name))

    async def list(self) -> list[BudgetState]:
        """All budgets by name, as they are now."""
        return await self._run(_states)

    async def get(self, name: str) -> BudgetState:
        """One budget as it is now.

        Raises:
            UnknownBudgetError: There is none of this name.
        """
        states = {state.budget.name: state for state in await self.list()}
        if name not in states:
            known = ", ".join(map(repr, states)) or "none"
            raise UnknownBudgetError(f"No budget has the name {name!r}. There are: {known}.")
        return states[name]

    async def recount(self, name: str) -> BudgetState:
        """Count a budget's window anew from the entries; it comes to the same, unless somebody
        wrote past it: a process of an earlier version, say.
        """
        budget = (await self.get(name)).budget
        await self._run(lambda accounts: _recount(accounts, budget))
        return await self.get(name)

    async def _run(self, work: Callable[[Accounts], T]) -> T:
        def run(statements: Statements) -> T:
            return work(Accounts(statements))

        try:
            return await asyncio.to_thread(self._database.transact, run)
        except Exception as error:
            raise self._database.unavailable(error) from error


async def states_for(entries: Iterable[LedgerEntry], url: str) -> list[BudgetState]:
    """The standing budgets of a ledger that some entries count in, as they are now.

    Raises:
        LedgerUnavailableError: It can't be read.
    """
    sent = tuple(entries)
    if not sent:
        return []
    async with Budgets.open(url) as budgets:
        states = await budgets.list()
    return [state for state in states if any(map(state.budget.covers, sent))]


def _define(accounts: Accounts, budget: Budget) -> bool:
    """Write a definition; whether what is counted of the one before holds for it, too."""
    known = accounts.budgets().get(budget.name)
    accounts.define(budget)
    if known is None or _counted(known) != _counted(budget):
        accounts.clear(budget.name)
        return False
    return True


def _counted(budget: Budget) -> Budget:
    """All by which entries are counted."""
    return replace(budget, usd=Decimal(0), warn_at=(), strength="settled", at_limit="fail")


def _recount(accounts: Accounts, budget: Budget) -> None:
    key = _key(budget, datetime.now(UTC))
    accounts.lock([key])
    accounts.open([key], {budget.name: budget})
    accounts.recount(key, budget)
    accounts.write()


def _states(accounts: Accounts) -> list[BudgetState]:
    at = datetime.now(UTC)
    known = accounts.budgets()
    keys = {_key(budget, at): budget for budget in known.values()}
    accounts.lock(keys)
    accounts.open(keys, known)
    found = [_state(budget, accounts.locked[key], at) for key, budget in keys.items()]
    accounts.write()
    return found


def _state(budget: Budget, account: Account, at: datetime) -> BudgetState:
    since, until = budget.window_of(at)
    return BudgetState(
        budget=budget,
        since=since,
        until=until,
        spent=account.spent,
        held=account.held,
        unknown=account.unknown,
        left=account.left(budget),
    )


def _key(budget: Budget, at: datetime) -> Key:
    return budget.name, microseconds(budget.window_of(at)[0])
