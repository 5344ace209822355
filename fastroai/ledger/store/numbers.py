"""The numbers of runs and groups, by which sums are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from itertools import count, filterfalse
from typing import Any

from sqlalchemy import Connection, Table, func, select

from .schema import GROUP_TEXTS, RUN_DIMENSIONS, TEXTS_OF_STEPS, groups, runs
from .statements import insert_rows, is_one_of

Key = tuple[Any, ...]

GROUP_PARTS = (*GROUP_TEXTS, "state", "simulated")
_MOST = 100_000


class Numbers:
    """Finds the numbers of runs and groups; new ones get the next, within the caller's
    transaction.

    It remembers them: after a transaction that failed, it must not be used any more.
    """

    def __init__(self) -> None:
        self._runs: dict[Key, int] = {}
        self._groups: dict[Key, tuple[int, int]] = {}

    def of_runs(self, connection: Connection, keys: Collection[Key]) -> Mapping[Key, int]:
        """By the values of `RUN_DIMENSIONS`."""
        if new := unnumbered(self._runs, keys):
            self._runs |= _numbers(connection, runs, RUN_DIMENSIONS, dict.fromkeys(new, ()))
        return self._runs

    def of_groups(
        self, connection: Connection, keys: Collection[Key]
    ) -> Mapping[Key, tuple[int, int]]:
        """By the values of `GROUP_PARTS`, each with the number of its part."""
        if new := unnumbered(self._groups, keys):
            parts = numbers_of_parts(connection, new)
            of_part = {key: parts[part_of(key)] for key in new}
            found = _numbers(
                connection, groups, _GROUP_COLUMNS, {key: (of_part[key],) for key in new}
            )
            self._groups |= {key: (number, of_part[key]) for key, number in found.items()}
        return self._groups


def numbers_of_parts(connection: Connection, keys: Iterable[Key]) -> dict[Key, int]:
    """The numbers of the parts of some groups, by the values of those."""
    parts = dict.fromkeys(map(part_of, keys), (None,))
    return _numbers(connection, groups, _GROUP_COLUMNS, parts)


_GROUP_COLUMNS = (*GROUP_PARTS, "part")
_IS_OF_STEP = [name in TEXTS_OF_STEPS for name in GROUP_PARTS]


def part_of(key: Key) -> Key:
    """The values of the group that sums of runs have a group's entries in."""
    return tuple(
        None if of_step else value for value, of_step in zip(key, _IS_OF_STEP, strict=True)
    )


def unnumbered(known: dict[Key, Any], keys: Collection[Key]) -> set[Key]:
    if len(known) > _MOST:
        known.clear()
    return {key for key in keys if key not in known}


def _numbers(
    connection: Connection,
    table: Table,
    names: tuple[str, ...],
    keys: Mapping[Key, Key],
) -> dict[Key, int]:
    """The numbers of some keys, each with what else is stored of it when it is new."""
    by_digest = {digest_of_key(key): key for key in keys}
    known = select(table.c.digest, table.c.id).where(
        is_one_of(connection, list(by_digest), table.c.digest)
    )
    ids: dict[str, int] = dict(connection.execute(known).tuples().all())
    last = connection.scalar(select(func.coalesce(func.max(table.c.id), 0))) or 0
    new = list(filterfalse(ids.__contains__, by_digest))
    ids |= zip(new, count(last + 1), strict=False)
    rows = []
    for digest in new:
        key = by_digest[digest]
        # A part is its own.
        further = tuple(ids[digest] if value is None else value for value in keys[key])
        rows.append((ids[digest], digest, *key, *further))
    insert_rows(connection, table, ["id", "digest", *names], rows)
    return {key: ids[digest] for digest, key in by_digest.items()}


def digest_of_key(key: Key) -> str:
    # The texts of which it is made may hold anything; JSON tells them apart.
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
