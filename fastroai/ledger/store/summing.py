"""Adds entries to the sums that are kept beside them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, text, update

from ...database.engine import Database, is_lost_race
from ...database.values import microseconds
from ..aggregation import TOKEN_NAMES
from .mapping import digest_of_id
from .numbers import GROUP_PARTS, Key, Numbers
from .queries import (
    ENTRY_COLUMNS,
    archived_ids,
    cache_priced,
    changed_entries,
    current,
    exact_text,
    is_summed,
    upper_bound,
)
from .rollups import Rollups, add_sums_of_runs, lacks_sums_of_runs
from .schema import AMOUNTS, COUNTS, DAY, RUN_DIMENSIONS, groups, intents, outcomes, summed
from .statements import insert_rows, is_one_of, join_by_index, row_key, whole

logger = logging.getLogger("fastroai.usage")

MANY = 5_000
"""Entries that are quickly added up one by one."""
PACE = 0.15
"""Seconds for which a transaction that adds to the sums may keep others from writing."""
OTHERS_PATIENCE = 60.0
"""Seconds after which a process that adds to the sums is no longer waited for."""
SETTLING_TIME = timedelta(days=1)
"""How long a request without an outcome is left for later: most get one."""
LARGEST_COUNT = 10**12
"""Entries of which something was counted more often stay out of the sums, whose integers so many of
them would outgrow. No request has as many tokens, but a provider may say so.
"""

_REPORTED = 5.0
_LOCK = 0x666173_73756D  # "fassum"
_i, _o = intents.c, outcomes.c
_RUN_AND_GROUP = tuple(ENTRY_COLUMNS[name] for name in (*RUN_DIMENSIONS, *GROUP_PARTS))
_COUNTED = (
    _i.request_count,
    *(func.coalesce(_o[name], 0) for name in TOKEN_NAMES),
    cache_priced,
)
_OF_ENTRY = (
    _i.id,
    func.coalesce(_o.final, -1),
    _i.sent_at,
    *_COUNTED,
    func.coalesce(_o.cost, 0),
    func.coalesce(upper_bound, 0),
    func.coalesce(_o.cache_saved, 0),
    exact_text,
)
_KEY = len(_RUN_AND_GROUP)


class Pace:
    """How many entries to add in one transaction, so that it takes about so many seconds.

    Of this thread's processor: where others keep it busy, smaller transactions would only be more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.entries = 500

    def took(self, entries: int, seconds: float) -> None:
        """Learn from a transaction."""
        if entries >= self.entries:
            fitting = int(self.entries * self._seconds / max(seconds, 1e-3))
            self.entries = max(100, min(fitting, 2 * self.entries))


def count_not_summed(connection: Connection, most: int) -> int:
    """How many entries the sums lack; at most so many are counted."""
    few = select(_i.id).where(_i.summed.is_(None)).limit(most).subquery()
    return connection.scalar(select(func.count()).select_from(few)) or 0


def is_behind(connection: Connection) -> bool:
    """Whether it is worth it to bring the sums up to date before they are read."""
    if lacks_sums_of_runs(connection):
        return True
    return count_not_summed(connection, MANY) + len(changed_entries(connection, MANY)) >= MANY


def sum_up(database: Database) -> None:
    """Add all entries to the sums that can be. Blocks; others get to write in between."""
    began = reported = time.monotonic()
    pace, numbers, done = Pace(PACE), Numbers(), 0
    while True:
        started, worked = time.monotonic(), time.thread_time()
        added: int | None = None
        try:
            add = partial(add_to_sums, most=pace.entries, numbers=numbers)
            added = database.run(add)
        except Exception as error:
            if not is_lost_race(error):
                raise
            numbers = Numbers()
        now = time.monotonic()
        if added == 0 or (added is None and now - began > OTHERS_PATIENCE):
            return
        number = added or 0
        done += number
        pace.took(number, time.thread_time() - worked)
        if now - reported > _REPORTED:
            reported = now
            left = database.run(lambda connection: count_not_summed(connection, 10**9))
            logger.warning(
                "Summing up the entries of %s once: %d done, %d left.", database.name, done, left
            )
        # Who waits for SQLite's lock looks for it from time to time only.
        time.sleep(0.01 + (now - started) / 5)


def add_to_sums(connection: Connection, most: int, numbers: Numbers) -> int | None:
    """Add some entries to the sums, in the caller's transaction.

    Returns:
        How many were added, or made ready for it; 0: nothing is left. None while another process
        does the same.
    """
    if not _lock(connection):
        return None
    join_by_index(connection)
    add_sums_of_runs(connection)
    # What a record or an outbox has booked again must be gone before any of it is added.
    if again := archived_ids(connection):
        connection.execute(intents.delete().where(is_one_of(connection, again, _i.id)))
        connection.execute(outcomes.delete().where(is_one_of(connection, again, _o.entry_id)))
        return len(again)
    is_old = _i.sent_at < microseconds(datetime.now(UTC) - SETTLING_TIME)
    fits = and_(*(count <= whole(LARGEST_COUNT) for count in _COUNTED))
    statement = (
        select(*_RUN_AND_GROUP, row_key(connection, intents), *_OF_ENTRY)
        .select_from(current())
        .where(_i.summed.is_(None), or_(_o.final == 1, is_old), fits)
        .order_by(_i.sent_at)
        .limit(most)
    )
    found = list(map(tuple, connection.execute(statement)))
    if found:
        add_entries(connection, found, numbers)
        return len(found)
    # Only then, as it looks through all that have no final outcome.
    changed = changed_entries(connection, most)
    take_out(connection, changed)
    return len(changed)


def hold_sums(connection: Connection) -> None:
    """Have nobody add to the sums until this transaction ends, so that all that is read fits."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def _lock(connection: Connection) -> bool:
    """Whether nobody else adds to the sums until this transaction ends; SQLite lets one write."""
    if connection.dialect.name != "postgresql":
        return True
    # All that is read is of one moment. Whoever added in between makes this transaction fail.
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))))


def mark_summed(
    connection: Connection,
    keys: Sequence[str | int],
    outcome: int | None,
    column: ColumnElement[Any] = _i.id,
) -> None:
    are_these = is_one_of(connection, keys, column)
    connection.execute(update(intents).where(are_these).values(summed=outcome))


def add_entries(connection: Connection, found: Sequence[Key], numbers: Numbers) -> None:
    of_run = slice(0, len(RUN_DIMENSIONS))
    of_group = slice(len(RUN_DIMENSIONS), _KEY)
    run_numbers = numbers.of_runs(connection, {row[of_run] for row in found})
    group_numbers = numbers.of_groups(connection, {row[of_group] for row in found})
    rollups = Rollups()
    rows: list[Key] = []
    places: dict[int, list[str | int]] = {}
    for row in found:
        place, name, final, sent_at, *counted, exact = row[_KEY:]
        places.setdefault(final, []).append(place)
        run, (group, part) = run_numbers[row[of_run]], group_numbers[row[of_group]]
        rows.append((sent_at, digest_of_id(name), run, group, *counted, exact))
        rollups.add(run, group, part, sent_at // DAY, counted, exact)
    insert_rows(connection, summed, [column.name for column in summed.columns], rows)
    rollups.write(connection)
    for final, those in places.items():
        mark_summed(connection, those, final, row_key(connection, intents))


def take_out(connection: Connection, entries: Sequence[tuple[str, int]]) -> None:
    """Have the sums without some entries, that are to be added as they are now."""
    if not entries:
        return
    are_these = is_summed(connection, entries)
    found = select(summed, groups.c.part).join(groups, groups.c.id == summed.c.group_id)
    rollups = Rollups()
    for row in connection.execute(found.where(*are_these)):
        counted = [getattr(row, name) for name in (*COUNTS, *AMOUNTS)]
        day = row.sent_at // DAY
        rollups.add(row.run, row.group_id, row.part, day, counted, row.exact, sign=-1)
    rollups.write(connection)
    connection.execute(summed.delete().where(*are_these))
    mark_summed(connection, [name for name, _ in entries], None)
