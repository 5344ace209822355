"""A ledger in an SQL database."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from ...database.engine import database_url, named_ledger, open_database
from ...database.registry import OPEN_LEDGERS
from ...errors import LedgerNotFoundError
from ..aggregation import Grouping, Totals
from ..archive_files import ArchiveFormat
from ..entries import LedgerEntry
from ..filters import LedgerFilter
from ..history import BookedRun, RecordedRun, WholeRun
from ..recent import EndedRun, RecentCosts
from .archiving import Archive, ArchivedEntries, archive_entries, archived_entries
from .histories import read_history, whole_run_row
from .outbox import Outbox
from .queries import Keep, read_entries
from .recent import read_recent, run_end_row
from .run_listing import find_run_ids, read_run, read_runs
from .summing import is_behind, sum_up
from .totals import read_totals
from .writer import Write, Writer

logger = logging.getLogger("fastroai.usage")

T = TypeVar("T")

_EXIT_PATIENCE = 60.0
"""Seconds a process waits at its end for its last entries to be written, or kept in a file."""


class SqlStore:
    """A ledger in SQLite, PostgreSQL or memory, for any number of coroutines, event loops, threads
    and processes.

    Args:
        url: In SQLAlchemy's form.
        required: Whether a request must not be sent while it can't be booked.
        outbox_folder: Where entries wait that can't be written.

    Raises:
        LedgerUnavailableError: The URL names no database a ledger can be kept in.
    """

    def __init__(self, url: str, *, required: bool, outbox_folder: Path) -> None:
        self.url = url
        """As it was given, with its password."""
        self.is_ready = False
        """Whether it was ready once."""
        self._database_url = database_url(url)
        self._required = required
        self._outbox_folder = outbox_folder
        self._starting = threading.RLock()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._intended: set[str] = set()
        self._reader = open_database(self._database_url, writes=False)
        self._writer: Writer | None = None
        OPEN_LEDGERS.add(self)

    def _running(self) -> Writer:
        writer = self._writer
        if writer is not None and self._pid == os.getpid():
            return writer
        with self._starting:
            if self._pid != os.getpid():
                # After a fork: the thread and the connections are the parent's.
                OPEN_LEDGERS.inherit(self._writer, self._reader)
                self._start()
            if self._writer is None:
                # Only here: budgets are above the ledger, whose entries they count.
                from ...budgets.gate import BudgetGate

                self._writer = Writer(
                    open_database(self._database_url, writes=True),
                    Outbox(self._outbox_folder, self._database_url),
                    required=self._required,
                    gate=BudgetGate(ledger=named_ledger(self._database_url)),
                )
            return self._writer

    @property
    def has_budgets(self) -> bool:
        """Whether what was written here met standing budgets."""
        return self._writer is not None and self._writer.has_budgets

    async def must_exist(self) -> None:
        """Make sure that there is a ledger already; nothing is made or changed.

        Raises:
            LedgerNotFoundError: There is none.
            LedgerUnavailableError: Nobody can say.
        """
        try:
            exists = await asyncio.to_thread(self._reader.has_ledger)
        except Exception as error:
            raise self._reader.unavailable(error) from error
        if not exists:
            raise LedgerNotFoundError(f"There is no ledger in {self._reader.name} yet.")

    async def ready(self) -> None:
        """Wait until the database is there, with current tables; returns without it when it is not
        required.

        Raises:
            LedgerUnavailableError: It can't be reached or brought up to date, and it is required.
        """
        await self.flush()
        self.is_ready = True

    async def intend(self, entry: LedgerEntry) -> LedgerEntry:
        """Book a request that is about to be sent. It is committed when this returns.

        Returns:
            Its entry; where it had to wait for a budget, as of now.

        Raises:
            CostBudgetExceededError: It does not fit a standing budget. It is not booked.
            LedgerUnavailableError: It can't be booked, and it is required that it is. The request
                must not be sent; `RequestRecorder.intend` books that.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._hand_over(Write.of(entry, intent=True, waiter=waiter))
        if written := await waiter:
            # One that is only kept is handed over again with its outcome, which may be first there.
            self._intended.add(entry.id)
        return replace(entry, sent_at=written) if isinstance(written, datetime) else entry

    def settle(self, entry: LedgerEntry) -> None:
        """Book what became of a request, or an entry that needs no intent, such as a replayed one.

        Returns at once and never raises; the entry is written soon, or later if it must. Of several
        outcomes of one request the first counts, but that one may go from unsettled to something
        final.
        """
        intended = entry.id in self._intended
        self._intended.discard(entry.id)
        try:
            self._hand_over(Write.of(entry, intent=not intended))
        except Exception:  # a value of a wrong type, which no database takes
            logger.exception("This ledger entry can't be booked: %r", entry)

    def end_run(self, run: WholeRun) -> None:
        """Note that a run ended well, for forecasts; unlike an entry, it is not kept where that
        can't be written.
        """
        self._hand_over(Write(run=whole_run_row(run)))

    def note_end(self, run: EndedRun) -> None:
        """Note how a run ended, for those who ask for the last ones; kept as little as that."""
        self._hand_over(Write(end=run_end_row(run)))

    async def flush(self) -> None:
        """Wait until all that was handed over is in the database.

        Raises:
            LedgerUnavailableError: It can't be written now, and it is required that it is. It is
                kept.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._hand_over(Write(waiter=waiter))
        await waiter

    async def entries(self, selection: LedgerFilter, keep: Keep | None = None) -> list[LedgerEntry]:
        """The selected entries that are to be kept, in the order in which they were sent."""
        return await self._read(lambda connection: read_entries(connection, selection, keep))

    async def totals(
        self, selection: LedgerFilter, by: str | Grouping | None
    ) -> tuple[Totals, ...]:
        """The sums of the selected entries, grouped."""
        return await self._read_sums(lambda connection: read_totals(connection, selection, by))

    async def history(self, pipeline: str, most: int) -> tuple[RecordedRun, ...]:
        """What the last runs cost that ended well, the oldest first."""
        return await self._read_sums(lambda connection: read_history(connection, pipeline, most))

    async def recent(
        self, pipelines: Sequence[str | None], since: datetime, most: int
    ) -> tuple[RecentCosts, ...]:
        """The last runs and what was spent lately; as of `read_recent`."""
        # The sums are not brought up to date before, which takes minutes in a large ledger of an
        # earlier version: no run is to wait for that at its end.
        return await self._read(partial(read_recent, pipelines=pipelines, since=since, most=most))

    async def runs(self, selection: LedgerFilter, most: int) -> tuple[BookedRun, ...]:
        """The last runs of which the selection has requests."""
        return await self._read_sums(lambda connection: read_runs(connection, selection, most))

    async def run(self, run_id: str) -> BookedRun | None:
        """One run with its steps."""
        return await self._read_sums(lambda connection: read_run(connection, run_id))

    async def run_ids(self, beginning: str, most: int) -> list[str]:
        """The ids of runs that begin so."""
        return await self._read(lambda connection: find_run_ids(connection, beginning, most))

    async def _read_sums(self, work: Callable[[Connection], T]) -> T:
        if await self._read(is_behind):
            await asyncio.to_thread(self._sum_up)
        return await self._read(work)

    async def archive(self, before: datetime, folder: Path, form: ArchiveFormat) -> list[Archive]:
        """Move old entries to files; as of `archive_entries`."""
        await self.flush()
        return await asyncio.to_thread(self._archive, before, folder, form)

    def _archive(self, before: datetime, folder: Path, form: ArchiveFormat) -> list[Archive]:
        database = open_database(self._database_url, writes=True)
        try:
            return list(archive_entries(database, self._reader, before, folder, form))
        except OSError:
            raise
        except Exception as error:
            raise database.unavailable(error) from error
        finally:
            database.close()

    async def archived(
        self, since: datetime | None, until: datetime | None
    ) -> ArchivedEntries | None:
        """What was moved to files; as of `archived_entries`."""
        read = partial(archived_entries, since=since, until=until)
        try:
            return await asyncio.to_thread(self._reader.run, read)
        except Exception as error:
            raise self._reader.unavailable(error) from error

    def _sum_up(self) -> None:
        """Bring the sums up to date; a database that can't be changed is read without."""
        database = open_database(self._database_url, writes=True)
        try:
            sum_up(database)
        except Exception as error:
            logger.info("The sums in %s are not up to date: %r", database.name, error)
        finally:
            database.close()

    async def close(self) -> None:
        """Write all that was handed over, or keep it in a file, and close.

        What comes later opens it again.
        """
        await asyncio.to_thread(self.close_now)

    def close_now(self, timeout: float | None = None) -> None:
        """The same, blocking, for at most some seconds."""
        writer, self._writer = self._writer, None
        # After a fork, its thread runs in the parent only, and would be waited for in vain.
        if writer is not None and self._pid == os.getpid():
            writer.stop(timeout)
        self._reader.close()

    def close_at_exit(self) -> None:
        """The same, blocking, for as long as a process may take to end."""
        self.close_now(_EXIT_PATIENCE)

    def _hand_over(self, write: Write) -> None:
        writer = self._writer
        if writer is None or self._pid != os.getpid():
            writer = self._running()
        # One that is being closed in another thread may not have seen it. To write it twice is
        # harmless.
        while not writer.hand_over(write):
            writer = self._running()

    async def _read(self, work: Callable[[Connection], T]) -> T:
        await self.flush()
        try:
            return await asyncio.to_thread(self._reader.run, work)
        except Exception as error:
            raise self._reader.unavailable(error) from error
