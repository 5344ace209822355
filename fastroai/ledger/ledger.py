"""Ledger: reads entries and their sums."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..database.location import ledger_url
from .aggregation import Grouping, Totals
from .archive_files import archive_format
from .entries import LedgerEntry
from .filters import EVERYTHING, FilterFields, LedgerFilter
from .history import BookedRun, RecordedRun
from .store import LedgerStore, flush_shared, open_store

if TYPE_CHECKING:
    from .store.archiving import Archive, ArchivedEntries


class Ledger:
    """Every model request that was booked, of all runs that wrote to one database. Open it with
    `Ledger.open`.

    An entry without an outcome is unsettled: it is under way, or its process ended before the
    answer was booked.
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None = None, *, create: bool = True) -> AsyncGenerator[Ledger]:
        """Open a ledger for the length of an `async with` block.

        Args:
            url: `sqlite:///path`, `postgresql://user@host/name`, or `memory://`, this process's
                own. None: the one in `FASTROAI_LEDGER_URL`, or else `~/.fastroai/ledger.db`.
            create: Whether to make a ledger where there is none yet. If not, nothing is made or
                changed there.

        Raises:
            LedgerNotFoundError: There is none, and none was to be made.
            LedgerUnavailableError: It can't be opened, or brought up to date.
        """
        if url is None:
            url = ledger_url()
        await flush_shared(url)
        store = await open_store(url, create=create)
        try:
            yield cls(store)
        finally:
            await store.close()

    async def entries(
        self,
        where: LedgerFilter = EVERYTHING,
        *,
        keep: Callable[[LedgerEntry], bool] | None = None,
        **fields: Unpack[FilterFields],
    ) -> list[LedgerEntry]:
        """The entries that fit all that is given, in the order in which they were sent.

        Args:
            where: A filter made before.
            keep: Told of each entry as it is read, in another thread; those of which it says False
                are let go of, so that more can be looked at than memory has room for.
            fields: The same as keywords, over those of `where`: `run_id`, `run_key`, `pipeline`,
                `deployment`, `step_id`, `model`, `tag`, `since`, `until`, `state` and `simulated`,
                as `LedgerFilter` describes them.

        Raises:
            ValueError: A time is naive.
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.entries(replace(where, **fields), keep)

    async def totals(
        self,
        by: str | Grouping | None = None,
        where: LedgerFilter = EVERYTHING,
        **fields: Unpack[FilterFields],
    ) -> tuple[Totals, ...]:
        """What the entries that fit add up to, in groups ordered by key; one sum of all when not
        grouped.

        Args:
            by: `run`, `run_key`, `pipeline`, `step` (as `pipeline/step`), `agent`, `model`,
                `provider`, `deployment`, `created_by`, `day` (UTC), `tag`, or `tag:NAME` for the
                values of one tag; or several of them, as `day,model`: see `Totals.keys`. By `tag`,
                an entry is in the group of each of its tags, so the groups add up to more than the
                whole.
            where: As of `entries`.
            fields: As of `entries`.

        Raises:
            ValueError: Entries can't be grouped so, or a time is naive.
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.totals(replace(where, **fields), by)

    async def history(self, pipeline: str, *, most: int = 100) -> tuple[RecordedRun, ...]:
        """What the last runs of a pipeline cost by step, the oldest first: those of which each step
        ended well, since ledgers keep that (version 6 of their tables). Executions under one run
        key are one run.

        Args:
            most: How many executions are looked at.

        Raises:
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.history(pipeline, most)

    async def runs(
        self,
        where: LedgerFilter = EVERYTHING,
        *,
        most: int = 20,
        **fields: Unpack[FilterFields],
    ) -> tuple[BookedRun, ...]:
        """The last runs that sent a request that fits, those with the last requests first.

        Args:
            where: As of `entries`.
            most: How many.
            fields: As of `entries`.

        Raises:
            ValueError: A time is naive.
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.runs(replace(where, **fields), most)

    async def run(self, run_id: str) -> BookedRun | None:
        """One run with what its steps cost; None if nothing of it is booked.

        Raises:
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.run(run_id)

    async def run_ids(self, beginning: str, *, most: int = 10) -> list[str]:
        """The ids of booked runs that begin so, for one that a person has shortened.

        Raises:
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.run_ids(beginning, most)

    async def append(self, entry: LedgerEntry) -> None:
        """Book an entry: a request from elsewhere, or the outcome of one that is unsettled. Nothing
        is ever changed.

        Raises:
            ValueError: The ledger says something else of this entry already, or it was archived.
            LedgerUnavailableError: It can't be written.
        """
        if entry.settled_at is None:
            await self._store.intend(entry)
        else:
            self._store.settle(entry)
            await self._store.flush()
        found = await self._store.entries(LedgerFilter(id=entry.id))
        if not found:
            raise ValueError(f"Entry {entry.id!r} is in an archive already.")
        [stored] = found
        if entry.settled_at is None:
            return
        if (stored.state, stored.cost_usd) != (entry.state, entry.cost_usd):
            raise ValueError(
                f"Entry {entry.id!r} is booked as {stored.state} at {stored.cost_usd} USD already; "
                f"it can't become {entry.state} at {entry.cost_usd} USD. Book a correction as an "
                "entry of its own."
            )

    async def archived(
        self, *, since: datetime | None = None, until: datetime | None = None
    ) -> ArchivedEntries | None:
        """How many entries were moved to files, and from when to when they were sent: those in the
        files that have any from `since` on and before `until`. None: there are none. They are in
        all totals, and not among `entries`.

        Raises:
            LedgerUnavailableError: The database can't be read.
        """
        return await self._store.archived(since, until)

    async def archive(
        self, before: datetime, folder: Path, *, form: str | None = None
    ) -> list[Archive]:
        """Move the entries that were sent before a time to new files in a folder. All totals stay.

        Entries whose outcome is not final stay in the ledger. What is moved is no longer among
        `entries`. Interrupted, it goes on when it is called again with the same folder.

        Args:
            before: Timezone-aware.
            folder: It is made if it is missing.
            form: `csv` (compressed by gzip) or `parquet`. None: Parquet where pyarrow is installed,
                CSV elsewhere.

        Raises:
            ValueError: `before` is naive, or there is no such format.
            OSError: A file can't be written; its entries are in the ledger.
            LedgerUnavailableError: It can't be read or changed.
        """
        if before.utcoffset() is None:
            raise ValueError(f"before must be timezone-aware, got {before!r}.")
        return await self._store.archive(before, folder, archive_format(form))
