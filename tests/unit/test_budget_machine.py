"""Whatever happens in whatever order, a reserved budget is not passed and nothing leaks from it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fastroai.budgets import gate as gates
from fastroai.budgets.account import Account
from fastroai.budgets.accounts_table import Accounts, Key
from fastroai.budgets.budget import Budget
from fastroai.budgets.gate import BudgetGate
from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Statements
from fastroai.errors import CostBudgetExceededError
from fastroai.ledger.entries import EntryState, LedgerEntry
from fastroai.ledger.store.writer import Decided, Write
from tests.support.examples import examples

LIMIT = Decimal(1)
HOURS = [datetime(2026, 3, 29, hour, 59, 59, tzinfo=UTC) for hour in range(3)]


class Process:
    """What a writer does with its gate, without a thread."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop, clock: Any) -> None:
        self._database = database
        self._loop = loop
        self.gate = BudgetGate(clock)

    def write(self, *writes: Write) -> Decided:
        def work(statements: Statements) -> Decided:
            return self.gate.write(statements, writes)

        try:
            decided = self._database.transact(work)
        except gates.ChargesChanged:  # a writer tries each transaction twice
            decided = self._database.transact(work)
        self.gate.committed(decided)
        return decided

    def ask(self, entry: LedgerEntry) -> Decided:
        return self.write(Write.of(entry, intent=True, waiter=self._loop.create_future()))

    def settle(self, entry: LedgerEntry) -> Decided:
        return self.write(Write.of(entry, intent=True))


amounts = st.integers(1, 60).map(lambda n: Decimal(n).scaleb(-2) + Decimal(n).scaleb(-15))
shares = st.integers(0, 7).map(lambda n: Decimal(n) / 7)


class BudgetMachine(RuleBasedStateMachine):
    """Two processes, a budget per hour and one in total."""

    sent = Bundle("sent")
    settled = Bundle("settled")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.loop = asyncio.new_event_loop()
        self.database = Database(database_url(f"memory://{uuid4()}"), writes=True)
        self.database.prepare()
        self.budgets = {
            "hour": Budget(name="hour", usd=LIMIT, strength="reserved", window="hour"),
            "all": Budget(name="all", usd=2 * LIMIT, strength="reserved"),
        }
        for budget in self.budgets.values():
            self.define(budget)
        self.processes = [self.start() for _ in range(2)]
        self.waiting: dict[str, LedgerEntry] = {}

    def start(self) -> Process:
        return Process(self.database, self.loop, lambda: self.now)

    def define(self, budget: Budget) -> None:
        self.database.transact(lambda statements: Accounts(statements).define(budget))

    def teardown(self) -> None:
        for process in self.processes:
            process.gate.give_up()
        self.loop.close()
        cast(Any, self.database)._backend._connection.close()

    @rule(target=sent, bound=amounts, hour=st.sampled_from(HOURS), which=st.integers(0, 1))
    def reserve(self, bound: Decimal, hour: datetime, which: int) -> Any:
        process = self.processes[which]
        entry = LedgerEntry(upper_bound_usd=bound, sent_at=hour, model_asked="openai:m")
        waited = len(process.gate.waiting)
        decided = process.ask(entry)
        [mine] = [answer for write, answer in decided.answers.items() if write.entry is entry] or [
            "waits"
        ]
        if len(process.gate.waiting) > waited and mine == "waits":
            # Nobody waits for long in this test: it would be sent at another hour.
            process.gate.waiting.pop()
        if mine is None:
            return entry, which
        if isinstance(mine, CostBudgetExceededError):
            self.must_not_fit(entry)
        return None

    def must_not_fit(self, entry: LedgerEntry) -> None:
        """No request is refused that would fit beside what is spent and unknown."""
        assert entry.upper_bound_usd is not None
        found = self.accounts()
        fits = [
            found.get(self.key(budget, entry), Account()).settled + entry.upper_bound_usd
            <= budget.usd
            for budget in self.budgets.values()
        ]
        assert not all(fits)

    @rule(target=settled, one=consumes(sent), share=shares, other=st.booleans())
    def settle(self, one: Any, share: Decimal, other: bool) -> Any:
        if one is None:
            return None
        entry, which = one
        cost = entry.upper_bound_usd * share
        outcome = entry.settled(EntryState.CHARGED, cost_usd=cost)
        self.processes[which ^ other].settle(outcome)
        return outcome, which

    @rule(one=sent, which=st.integers(0, 1))
    def lose(self, one: Any, which: int) -> None:
        """Its outcome is unknown, for now."""
        if one is not None:
            self.processes[which].settle(one[0].settled(EntryState.UNSETTLED, error="timed out"))

    @rule(one=consumes(sent), which=st.integers(0, 1))
    def refuse(self, one: Any, which: int) -> None:
        if one is not None:
            self.processes[which].settle(one[0].settled(EntryState.REFUSED))

    @rule(one=settled, which=st.integers(0, 1))
    def tell_again(self, one: Any, which: int) -> None:
        if one is not None:
            again = replace(one[0], cost_usd=Decimal(9))
            self.processes[which].settle(again)

    @rule(one=settled, which=st.integers(0, 1))
    def replay(self, one: Any, which: int) -> None:
        if one is not None:
            self.processes[which].settle(one[0].replayed(one[0].attribution))

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """A process dies; others find it dead when they have waited for a lease."""
        dead = self.processes[which].gate.token
        self.processes[which] = self.start()
        self.database.transact(lambda statements: Accounts(statements).leave(dead))

    @rule(name=st.sampled_from(["hour", "all"]), by=amounts)
    def raise_limit(self, name: str, by: Decimal) -> None:
        budget = self.budgets[name]
        self.budgets[name] = replace(budget, usd=budget.usd + by)
        self.define(self.budgets[name])

    @rule(seconds=st.floats(0, 2 * gates.LEASE))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def settle_all(self) -> None:
        """What is held then is of nobody."""
        self.database.transact(self._settle_all)
        assert all(account.held == 0 for account in self.accounts().values())

    def _settle_all(self, statements: Statements) -> None:
        accounts = Accounts(statements)
        accounts.lock(self.accounts_of(statements))
        accounts.sweep([process.gate.token for process in self.processes])
        accounts.write()

    def key(self, budget: Budget, entry: LedgerEntry) -> Key:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        since = budget.window_of(entry.sent_at)[0] - epoch
        return budget.name, since // timedelta(microseconds=1)

    def accounts_of(self, statements: Statements) -> dict[Key, Account]:
        keys = [
            self.key(budget, LedgerEntry(sent_at=hour))
            for budget in self.budgets.values()
            for hour in HOURS
        ]
        return Accounts(statements).read(set(keys))[0]

    def accounts(self) -> dict[Key, Account]:
        return self.database.transact(self.accounts_of)

    @invariant()
    def no_limit_is_passed(self) -> None:
        for (name, _), account in self.accounts().items():
            assert account.settled + account.held <= self.budgets[name].usd
            assert min(account.spent, account.held, account.unknown) >= 0

    @rule()
    def the_accounts_are_what_the_entries_say(self) -> None:
        self.database.transact(self._compare)

    def _compare(self, statements: Statements) -> None:
        found = self.accounts_of(statements)
        accounts = Accounts(statements)
        accounts.lock(found)
        for key in found:
            accounts.recount(key, self.budgets[key[0]])
        counted = {key: accounts.locked[key] for key in found}
        accounts.write()
        assert counted == found


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = examples(50, stateful_step_count=30)
