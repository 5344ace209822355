"""Pools in the ledger's database, for all processes that use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from ..database.engine import Database, is_lost_race
from ..database.statements import Statements
from .pools import PoolState
from .schema import holders as holders_table
from .schema import pools as pools_table
from .shared_pools import Holder, Holders, Pools

T = TypeVar("T")

MOST_RACES: Final = 3
"""How often a transaction is tried again that another one got in the way of."""
_STATE: Final = tuple(pools_table.columns.keys())[1:]
_HOLDER: Final = tuple(holders_table.columns.keys())[1:]
_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


def _upsert(table: str, keys: Sequence[str], columns: Sequence[str]) -> str:
    names, changed = (*keys, *columns), (f"{name} = excluded.{name}" for name in columns)
    places = ", ".join("?" for _ in names)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places}) "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(changed)}"
    )


_WRITE: Final = _upsert("fastroai_rate_pools", ["name"], _STATE)
_HOLD: Final = _upsert("fastroai_rate_holders", ["pool", "token"], _HOLDER[1:])


class LedgerPools:
    """Pools in a ledger's database.

    Args:
        database: Its commits need not wait for the disk: what a power failure loses of them is
            no longer true a minute later.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def transact(self, work: Callable[[Pools], T]) -> T:
        """Do some work while nobody else changes the pools that it reads. Blocks."""

        def within(statements: Statements) -> T:
            return work(_Rows(statements))

        for _ in range(MOST_RACES):
            try:
                return self._database.transact(within)
            except Exception as error:
                if not is_lost_race(error):
                    raise
        return self._database.transact(within)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()


class _Rows:
    """The rows of pools, in a transaction."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    def read(self, names: Sequence[str]) -> tuple[float, dict[str, PoolState], Holders]:
        among, statements = ", ".join("?" for _ in names), self._statements
        now = time.time_ns() // 1000
        if statements.is_postgres:
            # In one order for all, so that no two wait for each other. Not on rows, which may not
            # be there yet.
            locks = ", ".join("pg_advisory_xact_lock(hashtext(?))" for _ in names)
            locked = (f"fastroai rate limit {name}" for name in sorted(names))
            [(*_, now)] = statements.rows(f"SELECT {locks}, {_NOW}", *locked)
        states = {name: PoolState() for name in names}
        found = f"SELECT name, {', '.join(_STATE)} FROM fastroai_rate_pools WHERE name IN ({among})"
        for name, *times in statements.rows(found, *names):
            *free_at, blocked_until = (at / 1e6 for at in times)
            states[name] = PoolState(free_at, blocked_until)
        found = f"SELECT pool, {', '.join(_HOLDER)} FROM fastroai_rate_holders WHERE pool IN "
        holders: dict[str, list[Holder]] = {}
        for pool, *row in statements.rows(f"{found} ({among})", *names):
            token, beat, asked_at, slots, waiting, runs, served = row
            holder = Holder(token, beat, asked_at / 1e6, slots, waiting, runs, served / 1000)
            holders.setdefault(pool, []).append(holder)
        return now / 1e6, states, holders

    def write(self, states: Mapping[str, PoolState]) -> None:
        rows = [
            (name, *(round(at * 1e6) for at in (*state.free_at, state.blocked_until)))
            for name, state in states.items()
        ]
        self._statements.many(_WRITE, rows)

    def hold(self, pool: str, holder: Holder) -> None:
        numbers = holder.slots, holder.waiting, holder.runs, round(holder.served * 1000)
        asked_at = round(holder.asked_at * 1e6)
        self._statements.run(_HOLD, pool, holder.token, holder.beat, asked_at, *numbers)

    def leave(self, pool: str, token: str) -> None:
        where = "pool = ? AND token = ?"
        self._statements.run(f"DELETE FROM fastroai_rate_holders WHERE {where}", pool, token)
