"""Moves old entries from a ledger's tables to files. What they add up to stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, func, select

from ...database.engine import Database
from ...database.values import microseconds, moment
from ...errors import LedgerUnavailableError
from ..archive_files import UNFINISHED, ArchiveFormat, finish_archive, write_archive
from ..entries import LedgerEntry
from .queries import select_entries
from .schema import archives, intents, outcomes
from .statements import is_one_of
from .summing import sum_up

ENTRIES_IN_A_FILE = 20_000
"""They are removed in one transaction, for which other writers wait."""

_i, _o = intents.c, outcomes.c


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of entries that the ledger has no more."""

    path: Path
    entries: int


@dataclass(frozen=True, slots=True)
class ArchivedEntries:
    """What the ledger has moved to files, when it was sent, and when the last of it was moved."""

    entries: int
    first_sent_at: datetime
    last_sent_at: datetime
    archived_at: datetime


def archived_entries(
    connection: Connection, since: datetime | None, until: datetime | None
) -> ArchivedEntries | None:
    """The entries in all files that have any of a time; None without any."""
    _a = archives.c
    times = func.min(_a.first_sent_at), func.max(_a.last_sent_at), func.max(_a.archived_at)
    found = select(func.sum(_a.entries), *times)
    if since is not None:
        found = found.where(_a.last_sent_at >= microseconds(since))
    if until is not None:
        found = found.where(_a.first_sent_at < microseconds(until))
    entries, *moments = connection.execute(found).one()
    return ArchivedEntries(int(entries), *map(moment, moments)) if entries else None


def archive_entries(
    database: Database, reader: Database, before: datetime, folder: Path, form: ArchiveFormat
) -> Iterator[Archive]:
    """Move entries with a final outcome that were sent before a time, file by file.

    A file is written whole before its entries are removed, and gets its name after that: whenever
    this is interrupted, entries are in the ledger, or in a file that the next call names.

    Args:
        reader: Of the same ledger; others write while it reads.

    Raises:
        LedgerUnavailableError: Somebody else archives the same entries.
    """
    yield from _finish(database, folder)
    sum_up(database)
    while entries := reader.run(lambda connection: oldest_of(connection, before)):
        path = write_archive(folder, entries, form)
        _remove(database, path, entries)
        yield Archive(finish_archive(path), len(entries))


def _finish(database: Database, folder: Path) -> Iterator[Archive]:
    """Name the files of an interrupted call whose entries were removed."""
    for path in sorted(folder.glob(f"fastroai-*{UNFINISHED}")):
        entries = database.run(partial(_recorded, name=path.name))
        if entries is not None:
            yield Archive(finish_archive(path), entries)


def _recorded(connection: Connection, name: str) -> int | None:
    final = name.removesuffix(UNFINISHED)
    return connection.scalar(select(archives.c.entries).where(archives.c.name == final))


def oldest_of(connection: Connection, before: datetime) -> list[LedgerEntry]:
    # Without those that are not summed up: what may still change must not be in a file.
    is_old = _i.summed == 1, _i.sent_at < microseconds(before)
    return select_entries(connection, *is_old, limit=ENTRIES_IN_A_FILE)


def _remove(database: Database, path: Path, entries: Sequence[LedgerEntry]) -> None:
    ids = [entry.id for entry in entries]
    archive = {
        "name": path.name.removesuffix(UNFINISHED),
        "entries": len(ids),
        "first_sent_at": microseconds(entries[0].sent_at),
        "last_sent_at": microseconds(entries[-1].sent_at),
        "archived_at": microseconds(datetime.now(UTC)),
    }

    def work(connection: Connection) -> None:
        are_these = is_one_of(connection, ids, _i.id)
        removed = connection.execute(intents.delete().where(are_these, _i.summed == 1))
        if removed.rowcount != len(ids):
            raise LedgerUnavailableError(
                f"Somebody else archives the entries of {path}. Nothing of them was removed here; "
                "delete this file."
            )
        connection.execute(outcomes.delete().where(is_one_of(connection, ids, _o.entry_id)))
        # In the same transaction: by this row the next call knows that the file is the only place.
        connection.execute(archives.insert(), [archive])

    database.run(work)
