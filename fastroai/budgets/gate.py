"""Admits requests under standing budgets, in the transactions that write a ledger's entries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from secrets import token_hex
from typing import Final, Literal

from ..database.engine import Database
from ..database.statements import Outdated, Statements
from ..database.values import Row, microseconds
from ..errors import CostBudgetExceededError
from ..ledger.entries import LedgerEntry
from ..ledger.store.mapping import intent_row
from ..ledger.store.writer import INTENTS, OUTCOMES, Decided, Write
from .account import Account, Charge, Kind, Verdict, charge_of
from .accounts_table import Accounts, Charges, Key, OpenCharge
from .budget import Budget
from .refusals import refusal, why_refused
from .signals import BudgetSignal, emit, share_reached

NOTICE: Final = 0.2
"""Seconds after which a process that knows of no budgets looks whether there are some now."""
LEASE = 30.0
"""Seconds without a heartbeat after which what a process holds becomes unknown."""
BEATS_PER_LEASE: Final = 3
SHORTEST_POLL: Final = 0.01
LONGEST_POLL: Final = 1.0
"""Seconds between looks at what other processes have settled, while requests wait."""

DOUBTS: Final = 20
"""Transactions in which accounts are locked after one that found one changed by others."""

Covering = list[tuple[Budget, Key]]


class ChargesChanged(Exception):
    """What was known of an account is no longer so; the transaction is to be tried again."""


@dataclass(slots=True)
class _Request:
    """A request that is to be admitted."""

    write: Write
    entry: LedgerEntry
    covering: Covering
    revision: int | None
    waits: bool = False


class BudgetGate:
    """What a ledger's writer asks before it writes. Used by its thread only.

    Args:
        clock: Seconds that never go back.
        ledger: As of `refusal`.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, ledger: str | None = None
    ) -> None:
        self.clock = clock
        self.ledger = ledger
        self.token = token_hex(8)
        self.budgets: dict[str, Budget] = {}
        self.waiting: list[_Request] = []
        self.held: dict[str, Charges] = {}
        """What this process holds, by the entry's id."""
        self.revision: int | None = None
        self._left: dict[Key, Account] = {}
        """The accounts of the last transaction, as it left them."""
        self._doubts = 0
        self._looked_at = self._beaten_at = self._watched_at = self._polled_at = float("-inf")
        self._pause = SHORTEST_POLL
        self._seen: object = None
        self._beats: dict[str, tuple[int | None, float]] = {}
        self.is_wrong = False
        """Whether others have changed what it holds: they took it for dead."""
        self._windows: dict[tuple[str, str], tuple[datetime, datetime, int]] = {}

    @property
    def has_budgets(self) -> bool:
        """Whether there are budgets, as far as is known. In any thread."""
        return bool(self.budgets)

    def is_needed(self, statements: Statements) -> bool:
        """Whether there are budgets, as far as was looked lately, or now: in the transaction that
        writes, as it is open anyway.
        """
        if self.budgets or self.waiting:
            return True
        # The time after what this transaction may have waited for.
        if (now := self.clock()) - self._looked_at >= NOTICE:
            self._refresh(Accounts(statements))
            self._looked_at = now
        return bool(self.budgets)

    def timeout(self) -> float | None:
        """Seconds after which `is_due` may be so without anything to write; None: never."""
        if self.waiting:
            return max(0.0, self._polled_at + self._pause - self.clock())
        return max(0.0, self._beat_at() - self.clock()) if self.held else None

    def is_due(self, database: Database) -> bool:
        """Whether to write although there is nothing to: those who wait may fit now, or the
        heartbeat is due.
        """
        now = self.clock()
        if self.is_beat_due():
            return True
        if not self.waiting or now < self._polled_at + self._pause:
            return False
        self._polled_at = now
        seen, dead = database.transact(self._look)
        for token in dead:
            database.transact(partial(_leave, token=token))
            del self._beats[token]
        is_new = bool(dead) or seen != self._seen
        self._seen = seen
        self._pause = SHORTEST_POLL if is_new else min(2 * self._pause, LONGEST_POLL)
        return is_new or any(request.write.is_left for request in self.waiting)

    def is_beat_due(self) -> bool:
        """Whether others may soon take this process for dead."""
        return bool(self.held) and self.clock() >= self._beat_at()

    def _beat_at(self) -> float:
        return self._beaten_at + LEASE / BEATS_PER_LEASE

    def _look(self, statements: Statements) -> tuple[object, list[str]]:
        """What others may have changed of what is waited for; and which of them are dead."""
        accounts = Accounts(statements)
        at = datetime.now(UTC)
        # Also of windows that begin now.
        budgets = {budget.name: budget for one in self.waiting for budget, _ in one.covering}
        keys = {(name, self._since(budget, at)) for name, budget in budgets.items()}
        dead: list[str] = []
        if self.clock() - self._watched_at >= min(1.0, LEASE / BEATS_PER_LEASE):
            self._watched_at = self.clock()
            dead = self._watch(accounts.beats(keys))
        return (keys, *accounts.read(keys)), dead

    def _watch(self, beats: Mapping[str, int | None]) -> list[str]:
        """Who had no heartbeat for longer than a lease, as long as it was watched."""
        now, dead = self.clock(), []
        for token, beat in beats.items():
            known = self._beats.get(token)
            if token == self.token or known is None or known[0] != beat:
                self._beats[token] = beat, now
            elif now - known[1] > LEASE:
                dead.append(token)
        return dead

    def _refresh(self, accounts: Accounts) -> None:
        revision = accounts.revision()
        if revision != self.revision:
            self.budgets = accounts.budgets()
            self.revision = revision

    def covering(self, entry: LedgerEntry, at: datetime) -> Covering:
        """The budgets that an entry is in the scope of, with the window in which it is sent."""
        return [
            (budget, (name, self._since(budget, at)))
            for name, budget in self.budgets.items()
            if budget.covers(entry)
        ]

    def covering_now(self, request: _Request, now: datetime) -> Covering:
        """The same for one that waits; mostly it is as it was."""
        is_same = request.revision == self.revision and all(
            self._since(budget, now) == since for budget, (_, since) in request.covering
        )
        return request.covering if is_same else self.covering(request.entry, now)

    def _since(self, budget: Budget, at: datetime) -> int:
        known = self._windows.get((budget.window, budget.zone))
        if known is None or not known[0] <= at < known[1]:
            start, end = budget.window_of(at)
            known = start, end, microseconds(start)
            self._windows[budget.window, budget.zone] = known
        return known[2]

    def write(self, statements: Statements, batch: Sequence[Write]) -> Decided:
        """Count a batch and admit what fits, in the caller's transaction.

        Nothing of this gate changes before `committed`.

        Returns:
            What is written now, and what the caller has to answer once it is committed.
        """
        if statements.is_postgres and (assumed := self._assuming(statements, batch)) is not None:
            return assumed
        accounts = Accounts(statements)
        while True:
            decided = _Pass(self, accounts, batch)
            # With the accounts, so that a server is not asked twice.
            if accounts.lock(decided.keys) == self.revision:
                return decided.decided()
            self._refresh(accounts)

    def _assuming(self, statements: Statements, batch: Sequence[Write]) -> Decided | None:
        """The same as if nobody else changed the account, for which a server is asked once; where
        somebody did, the transaction ends as `Outdated`. None: that can't be assumed.
        """
        accounts = Accounts(statements)
        decided = _Pass(self, accounts, batch)
        # Several might be locked in another order than by others, which then wait for each other.
        if self._doubts or len(decided.keys) != 1 or not decided.keys <= self._left.keys():
            return None
        [key] = decided.keys
        accounts.assume(key, self._left[key], self.revision)
        try:
            return decided.decided()
        except Outdated:  # nothing is changed, and what was found is not known to be so
            return None

    def doubt(self) -> None:
        """Others change the accounts, too: for a while they are locked."""
        self._doubts = DOUBTS

    def committed(self, decided: Decided) -> None:
        """Take over what was decided, now that it is in the database."""
        if not isinstance(decided, _Decided):
            return  # without this gate
        self._left = decided.accounts
        self._doubts = max(0, self._doubts - 1)
        if len(decided.waiting) > len(self.waiting):
            self._pause, self._polled_at, self._seen = SHORTEST_POLL, self.clock(), None
        self.waiting = decided.waiting
        self.held |= decided.admitted
        for entry_id in decided.settled:
            self.held.pop(entry_id, None)
        if decided.has_beaten:
            self._beaten_at = self.clock()
        for signal in decided.signals:
            emit(signal)

    def give_up(self) -> list[Write]:
        """Those who wait; they do no longer."""
        waiting, self.waiting = self.waiting, []
        return [request.write for request in waiting]

    def leave(self, database: Database) -> None:
        """Have what this process still holds be unknown from now on: it ends."""
        if self.held:
            self.held.clear()
            database.transact(partial(_leave, token=self.token))


def _stage(write: Write) -> int:
    """How much is known of an entry: 1 its final outcome, 0 that nobody knows, -1 nothing yet."""
    return -1 if write.outcome is None else int(write.outcome["final"])


def _leave(statements: Statements, token: str) -> None:
    Accounts(statements).leave(token)


@dataclass(slots=True)
class _Decided(Decided):
    waiting: list[_Request] = field(default_factory=list)
    admitted: dict[str, Charges] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    accounts: dict[Key, Account] = field(default_factory=dict)
    signals: list[BudgetSignal] = field(default_factory=list)
    has_beaten: bool = False


class _Pass:
    """One transaction: what is to be decided in it, and what was."""

    def __init__(self, gate: BudgetGate, accounts: Accounts, batch: Sequence[Write]) -> None:
        self._gate = gate
        self._accounts = accounts
        self._result = _Decided()
        self._booked: list[tuple[Write, LedgerEntry, Covering]] = []
        self._requests: list[_Request] = []
        self._now = now = datetime.now(UTC)
        for request in gate.waiting:
            covering = gate.covering_now(request, now)
            self._requests.append(
                _Request(request.write, request.entry, covering, gate.revision, waits=True)
            )
        for write in batch:
            if write.entry is not None:
                self._sort(write, write.entry)
        self.keys = {key for _, key in self._all_covering()}

    def _sort(self, write: Write, entry: LedgerEntry) -> None:
        covering = self._gate.covering(entry, entry.sent_at)
        if write.is_request:
            self._requests.append(_Request(write, entry, covering, self._gate.revision))
        else:
            self._booked.append((write, entry, covering))

    def decided(self) -> _Decided:
        """What is to be answered, now that it is written."""
        gate, accounts, result = self._gate, self._accounts, self._result
        accounts.open(self.keys, gate.budgets)
        before = {key: account.settled for key, account in accounts.locked.items()}
        self._book()
        self._tell(before)
        self._admit()
        if gate.is_beat_due() or (result.admitted and not gate.held):
            accounts.beat(gate.token)
            result.has_beaten = True
        rows = (INTENTS, result.intents), (OUTCOMES, result.outcomes)
        self._gate.is_wrong = not accounts.write(*rows)
        if self._gate.is_wrong:
            raise ChargesChanged("Others have changed what this process holds; it is read again.")
        result.accounts = accounts.locked
        return result

    def _all_covering(self) -> Iterator[tuple[Budget, Key]]:
        for _, _, covering in self._booked:
            yield from covering
        for request in self._requests:
            yield from request.covering

    def _book(self) -> None:
        """Count what needs no leave: outcomes, and what was sent already."""
        others = self._release_held()
        charges, finals = self._accounts.known_of([entry.id for _, entry, c in others if c])
        for write, entry, covering in others:
            known = charges.get(entry.id, {})
            # Of several outcomes the first counts, but one that is final comes after one that is
            # not.
            if _stage(write) <= finals.get(entry.id, -1 if known else -2):
                continue
            finals[entry.id] = _stage(write)
            charges[entry.id] = self._charge(entry, covering, known, is_final=_stage(write) == 1)

    def _release_held(self) -> list[tuple[Write, LedgerEntry, Covering]]:
        """Count final outcomes of what this process holds, as it knows that; the rest of what is
        booked.
        """
        held = {} if self._gate.is_wrong else dict(self._gate.held)
        others = []
        for write, entry, covering in self._booked:
            self._write(write, entry)
            mine = held.pop(entry.id, None)
            if mine is None or _stage(write) < 1 or mine.keys() != {key for _, key in covering}:
                others.append((write, entry, covering))
                continue
            for budget, key in covering:
                charge = charge_of(entry, budget)
                now = None if charge is None else OpenCharge(charge)
                self._accounts.release(entry.id, key, mine[key], now)
        return others

    def _write(self, write: Write, entry: LedgerEntry) -> None:
        self._result.answers[write] = None
        if write.intent is not None:
            self._result.intents.append(write.intent)
        if write.outcome is not None:
            self._result.outcomes.append(write.outcome)
            self._result.settled.add(entry.id)

    def _charge(
        self, entry: LedgerEntry, covering: Covering, known: Charges, *, is_final: bool
    ) -> Charges:
        now: Charges = {}
        for budget, key in covering:
            charge = charge_of(entry, budget)
            if charge is not None and charge.kind is Kind.HELD:
                charge = Charge(Kind.UNKNOWN, charge.usd)  # nobody of whom is known waits for it
            counted = None if charge is None else OpenCharge(charge)
            self._accounts.change(entry.id, key, known.get(key), counted)
            if counted is not None and not is_final:
                self._accounts.keep(entry.id, key, counted)
                now[key] = counted
        return now

    def _admit(self) -> None:
        """Decide requests in their order; who waits is not passed by who came later."""
        blocked: set[Key] = set()
        result = self._result
        for request in self._requests:
            write = request.write
            if write.is_left:
                continue
            verdict = self._verdict(request, blocked)
            if isinstance(verdict, CostBudgetExceededError):
                result.answers[write] = verdict
            elif verdict is Verdict.WAITS:
                blocked.update(key for b, key in request.covering if b.strength == "reserved")
                result.waiting.append(request)
            else:
                result.intents.append(self._hold(request))
                result.answers[write] = None

    def _verdict(self, request: _Request, blocked: set[Key]) -> Verdict | CostBudgetExceededError:
        entry, waits = request.entry, False
        if entry.simulated:
            return Verdict.ADMITTED
        for budget, key in request.covering:
            if budget.has_downgraded(entry):
                continue
            account = self._accounts.locked[key]
            verdict = account.verdict(budget, budget.bound_of(entry))
            if verdict is Verdict.REFUSED:
                return self._refuse(budget, account, entry)
            is_behind = budget.strength == "reserved" and key in blocked
            waits = waits or verdict is Verdict.WAITS or is_behind
        return Verdict.WAITS if waits else Verdict.ADMITTED

    def _refuse(
        self, budget: Budget, account: Account, entry: LedgerEntry
    ) -> CostBudgetExceededError:
        self._result.signals.append(_signal("exceeded", budget, account, entry))
        reason = why_refused(budget, budget.bound_of(entry))
        step_id = entry.attribution.step_id
        ledger = self._gate.ledger
        return refusal(
            budget, "standing", budget.name, account, step_id, reason=reason, ledger=ledger
        )

    def _hold(self, request: _Request) -> Row:
        """Count what a request can cost at most; its row."""
        entry = request.entry
        for budget, key in request.covering:
            if (charge := charge_of(entry, budget)) is not None:
                held = OpenCharge(charge, self._gate.token)
                self._accounts.change(entry.id, key, None, held)
                self._accounts.keep(entry.id, key, held)
                self._result.admitted.setdefault(entry.id, {})[key] = held
        if request.waits:
            # It is sent now, and not when it began to wait.
            entry = replace(entry, sent_at=self._now)
            self._result.sent_at[request.write] = entry.sent_at
            return intent_row(entry)
        assert request.write.intent is not None
        return request.write.intent

    def _tell(self, before: dict[Key, Decimal]) -> None:
        """Say which shares of their limits are reached now."""
        for _, entry, covering in self._booked:
            for budget, key in covering:
                account = self._accounts.locked[key]
                share = share_reached(budget, before[key], account)
                before[key] = account.settled
                if share is not None:
                    self._result.signals.append(_signal("warning", budget, account, entry, share))


def _signal(
    kind: Literal["warning", "exceeded"],
    budget: Budget,
    account: Account,
    entry: LedgerEntry,
    share: Decimal | None = None,
) -> BudgetSignal:
    return BudgetSignal(
        kind=kind,
        scope="standing",
        budget=budget,
        name=budget.name,
        spent=account.spent,
        held=account.held,
        unknown=account.unknown,
        share=share,
        at=entry.attribution,
    )
