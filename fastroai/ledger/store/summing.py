"""Adds entries to the sums that are kept beside them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import add
from typing import Any

from sqlalchemy import Connection, Table, and_, func, or_, select, text, update

from ...database.engine import Database
from ...database.values import microseconds
from ...pricing.money import EXACT
from ..aggregation import TOKEN_NAMES
from .mapping import digest_of_id
from .queries import (
    DAY,
    ENTRY_COLUMNS,
    changed_ids,
    current,
    exact_text,
    ids_archived,
    is_one_of,
    is_summed,
    join_by_index,
    upper_bound,
)
from .schema import (
    AMOUNTS,
    COUNTS,
    GROUP_TEXTS,
    HALF,
    HALVES,
    RUN_DIMENSIONS,
    groups,
    intents,
    outcomes,
    runs,
    summed,
    sums,
)

logger = logging.getLogger("fastroai.usage")

CHUNK = 2_000
"""Entries that are added in one transaction: others write to the ledger meanwhile."""
MANY = 5_000
"""Entries that are quickly added up one by one."""
OTHERS_PATIENCE = 60.0
"""Seconds after which a process that adds to the sums is no longer waited for."""
SETTLING_TIME = timedelta(days=1)
"""How long a request without an outcome is left for later: most get one."""

_LOCK = 0x666173_73756D  # "fassum"
_i, _o = intents.c, outcomes.c
_GROUP_PARTS = (*GROUP_TEXTS, "state", "simulated")
_RUN_AND_GROUP = tuple(ENTRY_COLUMNS[name] for name in (*RUN_DIMENSIONS, *_GROUP_PARTS))
_OF_ENTRY = (
    _i.id,
    func.coalesce(_o.final, -1),
    _i.sent_at,
    _i.request_count,
    *(func.coalesce(_o[name], 0) for name in TOKEN_NAMES),
    func.coalesce(_o.cost, 0),
    func.coalesce(upper_bound, 0),
    exact_text,
)

_KEY_LENGTH = len(_RUN_AND_GROUP)
_NUMBERS = (*COUNTS, *HALVES, "entries")

Key = tuple[Any, ...]


def count_not_summed(connection: Connection, most: int) -> int:
    """How many entries the sums lack; at most so many are counted."""
    few = select(_i.id).where(_i.summed.is_(None)).limit(most).subquery()
    return connection.scalar(select(func.count()).select_from(few)) or 0


def sum_up(database: Database) -> None:
    """Add all entries to the sums that can be. Blocks; others get to write in between."""
    waiting = database.run(lambda connection: count_not_summed(connection, 20 * MANY))
    if waiting >= 20 * MANY:
        logger.warning("Summing up the entries of %s once; this takes a while.", database.name)
    began = time.monotonic()
    while True:
        started = time.monotonic()
        added = database.run(add_to_sums)
        if added == 0 or (added is None and started - began > OTHERS_PATIENCE):
            return
        # Who waits for SQLite's lock looks for it from time to time only.
        time.sleep(0.01 + (time.monotonic() - started) / 5)


def add_to_sums(connection: Connection, chunk: int = CHUNK) -> int | None:
    """Add some entries to the sums, in the caller's transaction.

    Returns:
        How many there were; None while another process does the same.
    """
    if not _lock(connection):
        return None
    join_by_index(connection)
    changed = changed_ids(connection)
    _take_out(connection, changed)
    _drop_archived(connection)
    is_old = _i.sent_at < microseconds(datetime.now(UTC) - SETTLING_TIME)
    found = connection.execute(
        select(*_RUN_AND_GROUP, *_OF_ENTRY)
        .select_from(current())
        .where(_i.summed.is_(None), or_(_o.final == 1, is_old))
        .order_by(_i.sent_at)
        .limit(chunk)
    ).all()
    if found:
        _add(connection, [(tuple(row[:_KEY_LENGTH]), tuple(row[_KEY_LENGTH:])) for row in found])
    return len(found) + len(changed)


def _lock(connection: Connection) -> bool:
    """Whether nobody else adds to the sums until this transaction ends; SQLite lets one write."""
    if connection.dialect.name != "postgresql":
        return True
    # All that is read is of one moment. Whoever added in between makes this transaction fail.
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))))


def _mark(connection: Connection, ids: Sequence[str], outcome: int | None) -> None:
    connection.execute(update(intents).where(is_one_of(connection, ids)).values(summed=outcome))


def _take_out(connection: Connection, entries: Sequence[tuple[str, int]]) -> None:
    """Have the sums without some entries, that are to be added as they are now."""
    for name, sent_at in entries:
        is_it = is_summed(name, sent_at)
        row = connection.execute(select(summed).where(*is_it)).one()
        amounts = [getattr(row, name) for name in AMOUNTS]
        counts = [getattr(row, name) for name in COUNTS]
        one = _DaySum()
        one.add(counts, amounts, row.exact, sign=-1)
        _add_to_days(connection, {(row.group_id, sent_at // DAY): one})
        connection.execute(summed.delete().where(*is_it))
        _mark(connection, [name], None)


def _drop_archived(connection: Connection) -> None:
    """Delete what a record or an outbox has booked again after it was archived."""
    again = ids_archived(connection)
    if again:
        connection.execute(intents.delete().where(is_one_of(connection, again)))
        connection.execute(outcomes.delete().where(is_one_of(connection, again, _o.entry_id)))


class _DaySum:
    """What the entries of one group and one day add up to."""

    def __init__(self) -> None:
        self.numbers = [0] * len(_NUMBERS)
        self.exact: dict[str, Decimal] = {}

    def add(
        self, counts: Sequence[int], amounts: Sequence[int], exact: str | None, sign: int = 1
    ) -> None:
        halves = [half for amount in amounts for half in divmod(amount, HALF)]
        added = [*counts, *halves, 1]
        if sign < 0:
            added = [-number for number in added]
        self.numbers = list(map(add, self.numbers, added))
        if exact is not None:
            found = json.loads(exact)
            self.add_exact(
                {n: EXACT.multiply(Decimal(found[n]), sign) for n in AMOUNTS if n in found}
            )

    def add_exact(self, amounts: Mapping[str, Decimal]) -> None:
        for name, usd in amounts.items():
            self.exact[name] = EXACT.add(self.exact.get(name, Decimal(0)), usd)


def _add(connection: Connection, entries: Sequence[tuple[Key, Key]]) -> None:
    of_run, of_group = slice(0, len(RUN_DIMENSIONS)), slice(len(RUN_DIMENSIONS), None)
    run_ids = _ids(connection, runs, RUN_DIMENSIONS, {key[of_run] for key, _ in entries})
    group_ids = _ids(connection, groups, _GROUP_PARTS, {key[of_group] for key, _ in entries})
    rows: list[Key] = []
    ids: dict[int, list[str]] = {}
    days: dict[Key, _DaySum] = {}
    for key, (name, final, sent_at, *counts, cost, bound, exact) in entries:
        ids.setdefault(final, []).append(name)
        run, group = run_ids[key[of_run]], group_ids[key[of_group]]
        digest = digest_of_id(name)
        rows.append((sent_at, digest, run, group, *counts, cost, bound, exact))
        day = days.setdefault((group, sent_at // DAY), _DaySum())
        day.add(counts, (cost, bound), exact)
    _insert(connection, summed, [column.name for column in summed.columns], rows)
    _add_to_days(connection, days)
    for final, those in ids.items():
        _mark(connection, those, final)


def _ids(
    connection: Connection, table: Table, names: Sequence[str], keys: Iterable[Key]
) -> dict[Key, int]:
    """The numbers of some groups or runs; new ones get the next."""
    by_digest = {_digest(key): key for key in keys}
    known = select(table.c.digest, table.c.id).where(
        is_one_of(connection, list(by_digest), table.c.digest)
    )
    ids = {row.digest: row.id for row in connection.execute(known)}
    last = connection.scalar(select(func.coalesce(func.max(table.c.id), 0))) or 0
    new = [digest for digest in by_digest if digest not in ids]
    ids |= {digest: number for number, digest in enumerate(new, last + 1)}
    rows = [(ids[digest], digest, *by_digest[digest]) for digest in new]
    _insert(connection, table, ["id", "digest", *names], rows)
    return {key: ids[digest] for digest, key in by_digest.items()}


def _digest(key: Key) -> str:
    # The texts of which it is made may hold anything; JSON tells them apart.
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()


def _add_to_days(connection: Connection, days: Mapping[Key, _DaySum]) -> None:
    more = ", ".join(f"{name} = {sums.name}.{name} + excluded.{name}" for name in _NUMBERS)
    rows = [(*key, *day.numbers) for key, day in days.items()]
    also = f"ON CONFLICT (group_id, day) DO UPDATE SET {more}"
    _insert(connection, sums, ["group_id", "day", *_NUMBERS], rows, also)
    for (group, day), added in days.items():
        if not added.exact:
            continue
        is_it = and_(sums.c.group_id == group, sums.c.day == day)
        before = json.loads(connection.scalar(select(sums.c.exact).where(is_it)) or "{}")
        added.add_exact({name: Decimal(usd) for name, usd in before.items()})
        exact = json.dumps({name: str(usd) for name, usd in added.exact.items()})
        connection.execute(update(sums).where(is_it).values(exact=exact))


def _insert(
    connection: Connection, table: Table, names: Sequence[str], rows: list[Key], also: str = ""
) -> None:
    """Insert rows past SQLAlchemy, which takes longer for each than the database does."""
    if not rows:
        return
    numbered = connection.dialect.name == "postgresql"
    marks = (f"${number}" if numbered else "?" for number, _ in enumerate(names, 1))
    sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(marks)}) {also}"
    connection.exec_driver_sql(sql, rows)
