"""Stores of ledgers: SQLite, PostgreSQL, or memory.

SQLAlchemy is imported when one is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...database.location import FOLDER
from ...database.registry import OPEN_LEDGERS
from ...errors import LedgerUnavailableError
from ..entries import LedgerEntry

if TYPE_CHECKING:
    from datetime import datetime

    from ...settings import FastroAISettings
    from ..aggregation import Grouping, Totals
    from ..archive_files import ArchiveFormat
    from ..filters import LedgerFilter
    from ..history import BookedRun, RecordedRun, WholeRun
    from ..recent import EndedRun, RecentCosts
    from .archiving import Archive, ArchivedEntries
    from .sql_store import SqlStore


class LedgerStore(Protocol):
    """What a ledger's store does; `SqlStore` says it in full."""

    @property
    def has_budgets(self) -> bool: ...
    async def must_exist(self) -> None: ...
    async def ready(self) -> None: ...
    async def intend(self, entry: LedgerEntry) -> LedgerEntry: ...
    def settle(self, entry: LedgerEntry) -> None: ...
    async def flush(self) -> None: ...
    async def entries(
        self, selection: LedgerFilter, keep: Callable[[LedgerEntry], bool] | None = None
    ) -> list[LedgerEntry]: ...
    async def totals(
        self, selection: LedgerFilter, by: str | Grouping | None
    ) -> tuple[Totals, ...]: ...
    def end_run(self, run: WholeRun) -> None: ...
    def note_end(self, run: EndedRun) -> None: ...
    async def recent(
        self, pipelines: Sequence[str | None], since: datetime, most: int
    ) -> tuple[RecentCosts, ...]: ...
    async def history(self, pipeline: str, most: int) -> tuple[RecordedRun, ...]: ...
    async def runs(self, selection: LedgerFilter, most: int) -> tuple[BookedRun, ...]: ...
    async def run(self, run_id: str) -> BookedRun | None: ...
    async def run_ids(self, beginning: str, most: int) -> list[str]: ...
    async def archive(
        self, before: datetime, folder: Path, form: ArchiveFormat
    ) -> list[Archive]: ...
    async def archived(
        self, since: datetime | None, until: datetime | None
    ) -> ArchivedEntries | None: ...
    async def close(self) -> None: ...


async def open_store(
    url: str, *, required: bool = True, outbox_folder: Path | None = None, create: bool = True
) -> LedgerStore:
    """Open a ledger, create it, or bring it up to date. The caller closes it.

    Args:
        url: `sqlite:///path`, `postgresql://user@host/name`, or `memory://`, which is one for the
            whole process.
        required: Whether a request must not be sent while it can't be booked. If not, this returns
            although the database can't be reached.
        outbox_folder: Where entries wait that can't be written. None: `~/.fastroai/unwritten`.
        create: Whether to make a ledger where there is none yet.

    Raises:
        LedgerNotFoundError: There is none, and none was to be made.
        LedgerUnavailableError: The URL is of no such database, or it is required and can't be
            reached.
    """
    store = _make(url, required, outbox_folder)
    try:
        if not create:
            await store.must_exist()
        await store.ready()
    except BaseException:
        await store.close()
        raise
    return store


async def configured_store(settings: FastroAISettings) -> LedgerStore | None:
    """The ledger that `FASTROAI_LEDGER_URL` names, if it does; opened once per process.

    Raises:
        LedgerUnavailableError: It can't be used, and `FASTROAI_LEDGER_REQUIRED` says that it must.
    """
    url = settings.ledger_url
    if url is None:
        return None
    return await shared_store(url.get_secret_value(), required=settings.ledger_required)


async def shared_store(url: str, *, required: bool = True) -> LedgerStore:
    """The store of this process for a ledger, opened once. It serves every event loop and is closed
    at exit.

    Raises:
        LedgerUnavailableError: As `open_store`; the next call tries again.
    """
    store = OPEN_LEDGERS.shared(("store", url, required), lambda: _make(url, required, None))
    if not store.is_ready:
        await store.ready()
    return store


async def flush_shared(url: str) -> None:
    """Write what runs of this process have booked in a ledger; what can't be written now is kept
    instead.
    """
    from .sql_store import SqlStore

    for store in OPEN_LEDGERS.all_shared(SqlStore):
        if store.url == url:
            with suppress(LedgerUnavailableError):
                await store.flush()


def _make(url: str, required: bool, outbox_folder: Path | None) -> SqlStore:
    from .sql_store import SqlStore

    folder = outbox_folder or FOLDER.expanduser() / "unwritten"
    return SqlStore(url, required=required, outbox_folder=folder)
