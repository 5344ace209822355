"""Accounts of standing budgets in a ledger's database, within one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any, Final

from sqlalchemy import func

from ..database.statements import Insert, Outdated, PostgresStatements, Statements
from ..database.values import Row, microseconds, moment
from ..ledger.entries import EntryState, LedgerEntry
from ..ledger.filters import LedgerFilter
from ..ledger.store.queries import select_entries
from ..ledger.store.schema import intents, outcomes
from ..ledger.store.summing import hold_sums
from ..ledger.store.totals import read_totals
from .account import Account, Charge, Kind, charge_of
from .budget import Budget, from_json, to_json

Key = tuple[str, int]
"""A budget's name, and the first moment of a window of it, as intents.sent_at."""

LONGEST_FLIGHT: Final = timedelta(hours=1)
"""How long a request without an outcome may have been sent, for it to be in flight when a budget
begins to count it.
"""

_REVISION = "SELECT revision FROM fastroai_budget_revisions"
_NEXT_REVISION = "UPDATE fastroai_budget_revisions SET revision = revision + 1"
_ACCOUNT = (
    f"SELECT budget, since, spent, held, unknown, ({_REVISION}) FROM fastroai_budget_accounts"
)
_OF_KEY = f"{_ACCOUNT} WHERE budget = ? AND since = ?"
_OF_KEYS = (
    f"{_ACCOUNT} AS a JOIN unnest(CAST(? AS TEXT[]), CAST(? AS BIGINT[])) AS k (name, at) "
    "ON a.budget = k.name AND a.since = k.at"
)
# In one order, so that no two transactions wait for each other.
_LOCKED = f"{_OF_KEYS} ORDER BY a.budget, a.since FOR UPDATE OF a"
_OPEN_ACCOUNT = (
    "INSERT INTO fastroai_budget_accounts (budget, since, spent, held, unknown) "
    "VALUES (?, ?, '0', '0', '0') ON CONFLICT DO NOTHING"
)
_CHARGE = "SELECT entry_id, budget, since, kind, usd, holder FROM fastroai_budget_charges"
_FINAL = "SELECT entry_id, '', 0, max(final), '', '' FROM fastroai_outcomes"
_HOLDERS = (
    "SELECT c.holder, max(h.beat) FROM fastroai_budget_charges AS c LEFT JOIN "
    "fastroai_budget_holders AS h ON h.token = c.holder "
    "WHERE c.kind = 0 AND c.budget = ? AND c.since = ? GROUP BY c.holder"
)
_BEAT = (
    "INSERT INTO fastroai_budget_holders (token, beat) VALUES (?, 1) "
    "ON CONFLICT (token) DO UPDATE SET beat = fastroai_budget_holders.beat + 1"
)
_SWEEP = (
    "UPDATE fastroai_budget_charges SET kind = 1 "
    "WHERE kind = 0 AND budget = ? AND since = ? AND holder = ? RETURNING usd"
)
_PUT = "INSERT INTO fastroai_budget_charges (entry_id, budget, since, kind, usd, holder) "
_OR_CHANGE = (
    "ON CONFLICT (entry_id, budget) DO UPDATE SET since = excluded.since, kind = excluded.kind, "
    "usd = excluded.usd, holder = excluded.holder"
)
_PUT_ONE = f"{_PUT} VALUES (?, ?, ?, ?, ?, ?) {_OR_CHANGE}"
_DROP_ONE = "DELETE FROM fastroai_budget_charges WHERE entry_id = ? AND budget = ?"
_DROP_HELD = f"{_DROP_ONE} AND kind = 0"
_WRITE_ONE = (
    "UPDATE fastroai_budget_accounts SET spent = ?, held = ?, unknown = ? "
    "WHERE budget = ? AND since = ?"
)
_WRITE_ALL = (
    """dropped AS (
    DELETE FROM fastroai_budget_charges AS c
    USING unnest(CAST(? AS TEXT[]), CAST(? AS TEXT[]), CAST(? AS SMALLINT[]))
        AS k (entry_id, budget, highest)
    WHERE c.entry_id = k.entry_id AND c.budget = k.budget AND c.kind <= k.highest
    RETURNING k.highest
)""",
    f"""put AS (
    {_PUT} SELECT * FROM unnest(CAST(? AS TEXT[]), CAST(? AS TEXT[]), CAST(? AS BIGINT[]),
        CAST(? AS SMALLINT[]), CAST(? AS TEXT[]), CAST(? AS TEXT[])) {_OR_CHANGE}
)""",
    """written AS (
    UPDATE fastroai_budget_accounts AS a SET spent = k.spent, held = k.held, unknown = k.unknown
    FROM unnest(CAST(? AS TEXT[]), CAST(? AS TEXT[]), CAST(? AS TEXT[]), CAST(? AS TEXT[]),
        CAST(? AS BIGINT[]), CAST(? AS TEXT[]), CAST(? AS TEXT[]), CAST(? AS TEXT[]))
        AS k (spent, held, unknown, budget, since, was_spent, was_held, was_unknown)
    WHERE a.budget = k.budget AND a.since = k.since AND (k.was_spent IS NULL OR
        (a.spent, a.held, a.unknown) = (k.was_spent, k.was_held, k.was_unknown))
    RETURNING 1
)""",
)
_COUNT_RELEASED = "SELECT count(*) FROM dropped WHERE highest = 0"
_AS_ASSUMED = (
    "(SELECT count(*) FROM written) = CAST(? AS BIGINT) "
    f"AND ({_COUNT_RELEASED}) = CAST(? AS BIGINT) AND ({_REVISION}) = CAST(? AS BIGINT)"
)
_NOT_ASSUMED = None, None, None


@dataclass(frozen=True, slots=True)
class OpenCharge:
    """What an account has of an entry without a final outcome, and who sent that."""

    charge: Charge
    holder: str = ""


Charges = dict[Key, OpenCharge]


class Accounts:
    """Reads accounts, locks them, and writes what changed of them once.

    Attributes:
        locked: The accounts that nobody else changes until the transaction ends, or else it is
            `Outdated`; by their key.
    """

    def __init__(self, statements: Statements) -> None:
        self._sql = statements
        self.locked: dict[Key, Account] = {}
        self._changed: dict[Key, None] = {}
        self._put: dict[tuple[str, Key], OpenCharge] = {}
        self._dropped: dict[tuple[str, Key], None] = {}
        self._released: list[tuple[str, Key]] = []
        self._assumed: dict[Key, tuple[str, str, str]] = {}
        self._assumed_revision: int | None = None

    def revision(self) -> int:
        """Another number after each change of a budget."""
        [(revision,)] = self._sql.rows(_REVISION)
        return int(revision)

    def budgets(self) -> dict[str, Budget]:
        """All that are set, by name."""
        rows = self._sql.rows("SELECT name, definition FROM fastroai_budgets ORDER BY name")
        return {name: from_json(definition) for name, definition in rows}

    def define(self, budget: Budget) -> None:
        """Set a budget, for all to know."""
        self._sql.run(
            "INSERT INTO fastroai_budgets (name, definition, changed_at) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, "
            "changed_at = excluded.changed_at",
            budget.name,
            to_json(budget),
            microseconds(datetime.now(UTC)),
        )
        self._sql.run(_NEXT_REVISION)

    def undefine(self, name: str) -> None:
        """Have a budget no longer."""
        self._sql.run("DELETE FROM fastroai_budgets WHERE name = ?", name)
        self._sql.run(_NEXT_REVISION)
        self.clear(name)

    def clear(self, name: str) -> None:
        """Forget what was counted of a budget."""
        self._sql.run("DELETE FROM fastroai_budget_accounts WHERE budget = ?", name)
        self._sql.run("DELETE FROM fastroai_budget_charges WHERE budget = ?", name)

    def read(self, keys: Collection[Key]) -> tuple[dict[Key, Account], int]:
        """Some accounts as they are, without a lock, but for those that were never counted; and
        the revision.
        """
        return self._read(sorted(keys), _OF_KEYS)

    def _read(self, keys: list[Key], all_at_once: str) -> tuple[dict[Key, Account], int]:
        if not keys:
            return {}, self.revision()
        if self._sql.is_postgres:
            rows = self._sql.rows(all_at_once, *columns_of(keys, 2))
        else:
            rows = list(chain.from_iterable(self._sql.rows(_OF_KEY, *key) for key in keys))
        found = {(row[0], row[1]): Account(*map(Decimal, row[2:5])) for row in rows}
        return found, int(rows[0][5]) if rows else self.revision()

    def lock(self, keys: Iterable[Key]) -> int:
        """Have some accounts to oneself, as far as they were ever counted; the revision."""
        wanted = sorted(set(keys) - self.locked.keys())
        found, revision = self._read(wanted, _LOCKED)
        self.locked |= found
        return revision

    def assume(self, key: Key, account: Account, revision: int | None) -> None:
        """Take an account as it was, without asking for it; `write` has that found out."""
        self.locked[key] = replace(account)
        self._assumed[key] = _texts(account)
        self._assumed_revision = revision

    def open(self, keys: Iterable[Key], known: Mapping[str, Budget]) -> None:
        """Count the accounts that are missing from the entries, and lock them."""
        # Sorted, as wherever several are locked: in two orders, two processes would wait for each
        # other.
        for key in sorted(set(keys) - self.locked.keys()):
            self._sql.run(_OPEN_ACCOUNT, *key)
            self.lock([key])
            self.recount(key, known[key[0]])

    def recount(self, key: Key, budget: Budget) -> None:
        """Make a locked account anew of the entries in its window."""
        sql, (name, since) = self._sql, key
        start, end = budget.window_of(moment(since))
        hold_sums(sql.connection)
        known = self._charges(sql.rows(f"{_CHARGE} WHERE budget = ? AND since = ?", name, since))
        sql.run("DELETE FROM fastroai_budget_charges WHERE budget = ? AND since = ?", name, since)
        account = self.locked[key] = Account()
        self._changed[key] = None
        where = LedgerFilter(
            pipeline=budget.pipeline,
            deployment=budget.deployment,
            tag=budget.tag,
            model=budget.model,
            since=start,
            until=end,
            state=EntryState.CHARGED,
            simulated=False,
        )
        for total in read_totals(sql.connection, where, "model"):
            if budget.is_for_model(total.key):
                account.add(Charge(Kind.SPENT, total.cost_usd))
        for entry in filter(budget.covers, self._not_charged(start, end)):
            self._count_open(entry, key, budget, known.get(entry.id, {}).get(key))

    def _count_open(
        self, entry: LedgerEntry, key: Key, budget: Budget, before: OpenCharge | None
    ) -> None:
        charge = charge_of(entry, budget)
        if charge is None:
            return
        if charge.kind is Kind.HELD:
            is_over = entry.sent_at < datetime.now(UTC) - LONGEST_FLIGHT
            if is_over if before is None else before.charge.kind is Kind.UNKNOWN:
                charge = Charge(Kind.UNKNOWN, charge.usd)
        self.locked[key].add(charge)
        if entry.state is EntryState.UNSETTLED:
            self.keep(entry.id, key, OpenCharge(charge, before.holder if before else ""))

    def _not_charged(self, start: datetime, end: datetime) -> list[LedgerEntry]:
        times = intents.c.sent_at >= microseconds(start), intents.c.sent_at < microseconds(end)
        state = func.coalesce(outcomes.c.state, EntryState.UNSETTLED.value)
        open_states = [EntryState.UNSETTLED.value, EntryState.UNPRICED.value]
        return select_entries(self._sql.connection, *times, state.in_(open_states))

    def known_of(self, ids: list[str]) -> tuple[dict[str, Charges], dict[str, int]]:
        """What accounts have of some entries without a final outcome; and which have an outcome,
        and whether it is final: 0 or 1. By the entry's id.
        """
        if not ids:
            return {}, {}
        are = "= ANY(CAST(? AS TEXT[]))"
        given: Any = ids
        if not self._sql.is_postgres:
            are, given = "IN (SELECT value FROM json_each(?))", json.dumps(ids)
        both = (
            f"{_CHARGE} WHERE entry_id {are} "
            f"UNION ALL {_FINAL} WHERE entry_id {are} GROUP BY entry_id"
        )
        rows = self._sql.rows(both, given, given)
        finals = {row[0]: int(row[3]) for row in rows if not row[1]}
        return self._charges(row for row in rows if row[1]), finals

    @staticmethod
    def _charges(rows: Iterable[tuple[Any, ...]]) -> dict[str, Charges]:
        found: dict[str, Charges] = {}
        for entry_id, name, since, kind, usd, holder in rows:
            charge = Charge(Kind(kind), Decimal(usd))
            found.setdefault(entry_id, {})[name, since] = OpenCharge(charge, holder)
        return found

    def change(
        self, entry_id: str, key: Key, before: OpenCharge | None, now: OpenCharge | None
    ) -> None:
        """Count an entry as it is now in a locked account, instead of as it was."""
        account = self.locked[key]
        self._changed[key] = None
        if before is not None:
            account.remove(before.charge)
            self._put.pop((entry_id, key), None)
            self._dropped[entry_id, key] = None
        if now is not None:
            account.add(now.charge)

    def release(self, entry_id: str, key: Key, held: OpenCharge, now: OpenCharge | None) -> None:
        """The same for what is held as far as is known; `write` finds whether it still was."""
        self.change(entry_id, key, None, now)
        self.locked[key].remove(held.charge)
        self._released.append((entry_id, key))

    def keep(self, entry_id: str, key: Key, charge: OpenCharge) -> None:
        """Remember what an account has of an entry, until it has a final outcome."""
        self._dropped.pop((entry_id, key), None)
        self._put[entry_id, key] = charge

    def beats(self, keys: Collection[Key]) -> dict[str, int | None]:
        """Who holds something of some accounts, with the last heartbeat of each."""
        return {row[0]: row[1] for key in keys for row in self._sql.rows(_HOLDERS, *key)}

    def beat(self, token: str) -> None:
        """Say that a process lives."""
        self._sql.run(_BEAT, token)

    def sweep(self, tokens: Collection[str]) -> None:
        """Have unknown what the dead have held of the locked accounts."""
        for key, account in self.locked.items():
            for token in tokens:
                for (usd,) in self._sql.rows(_SWEEP, *key, token):
                    self._changed[key] = None
                    account.remove(Charge(Kind.HELD, Decimal(usd)))
                    account.add(Charge(Kind.UNKNOWN, Decimal(usd)))

    def leave(self, token: str) -> None:
        """Have unknown whatever a process has held: it ends."""
        mine = "SELECT DISTINCT budget, since FROM fastroai_budget_charges WHERE holder = ?"
        self.lock((name, since) for name, since in self._sql.rows(mine, token))
        self.sweep([token])
        self._sql.run("DELETE FROM fastroai_budget_holders WHERE token = ?", token)
        self.write()

    def write(self, *inserts: tuple[Insert, list[Row]]) -> bool:
        """Write what changed, and rows of other tables with it; whether what it changed from was
        still so.

        Raises:
            Outdated: An account was assumed that does not change, so that it can't be found out.
        """
        if self._assumed.keys() - self._changed.keys():
            raise Outdated
        dropped = entries_and_budgets(self._dropped)
        released = entries_and_budgets(self._released)
        put = [
            (entry_id, *key, int(one.charge.kind), str(one.charge.usd), one.holder)
            for (entry_id, key), one in self._put.items()
        ]
        changed = list(map(self._balance, self._changed))
        self._dropped.clear()
        self._released.clear()
        self._put.clear()
        self._changed.clear()
        if changed and isinstance(self._sql, PostgresStatements):
            columns = columns_of_changes(dropped, released, put, changed)
            # All in one statement, for which the server is asked once.
            if self._assumed:
                expected = len(changed), len(released), self._assumed_revision
                self._sql.end_with(inserts, _WRITE_ALL, [*columns, *expected], _AS_ASSUMED)
                return True
            [row] = self._sql.insert_with(inserts, _WRITE_ALL, columns, _COUNT_RELEASED)
            count = int(row[0])
        else:
            count = self._sql.many(_DROP_HELD, released)
            self._sql.many(_DROP_ONE, dropped)
            self._sql.many(_PUT_ONE, put)
            self._sql.many(_WRITE_ONE, [balance[:5] for balance in changed])
            for insert, rows in inserts:
                self._sql.insert(insert, rows)
        # Fewer went than this process thought it held: others have taken it for dead meanwhile.
        return count == len(released)

    def _balance(self, key: Key) -> tuple[Any, ...]:
        return *_texts(self.locked[key]), *key, *self._assumed.get(key, _NOT_ASSUMED)


def _texts(account: Account) -> tuple[str, str, str]:
    return str(account.spent), str(account.held), str(account.unknown)


Rows = list[tuple[Any, ...]]


def entries_and_budgets(counted: Iterable[tuple[str, Key]]) -> Rows:
    """Of what is counted, the id of the entry and the name of the budget."""
    return [(entry_id, name) for entry_id, (name, _) in counted]


def columns_of_changes(dropped: Rows, released: Rows, put: Rows, changed: Rows) -> list[list[Any]]:
    """The parameters of what writes all changes at once."""
    gone = [(*one, int(Kind.SPENT)) for one in dropped] + [(*one, 0) for one in released]
    return [*columns_of(gone, 3), *columns_of(put, 6), *columns_of(changed, 8)]


def columns_of(rows: Sequence[tuple[Any, ...]], count: int) -> list[list[Any]]:
    """The columns of rows, of which there may be none."""
    return list(map(list, zip(*rows, strict=True))) or [[] for _ in range(count)]
