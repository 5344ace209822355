"""The database behind a ledger: its URL, its connections, one transaction at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import LedgerUnavailableError
from ..redaction import redact, redact_patterns
from ..retries import retry_blocking
from .backend import CONNECT_PATIENCE, Backend
from .location import own_ledger
from .migrations import CURRENT, migrate, version_of
from .postgresql import PostgreSQL
from .registry import OPEN_LEDGERS
from .sqlite import Memory, SQLite
from .statements import Insert, Outdated, Statements
from .values import Row

T = TypeVar("T")

LOCKED_PAUSE = 0.05
"""Seconds between attempts to create tables in a database that is locked."""

MEMORY_DRIVER = "memory"
_SQLITE_DRIVERS = ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite")
_POSTGRESQL_DRIVERS = ("postgresql", "postgres", "postgresql+asyncpg")


def database_url(url: str) -> URL:
    """A URL in SQLAlchemy's form, with the driver that is used here.

    Raises:
        LedgerUnavailableError: It names no database a ledger can be kept in.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text is not shown: what can't be read can't be told from a password.
        raise LedgerUnavailableError(f"The ledger's URL {_FROM} is no URL. {_ALLOWED}") from None
    except ValueError:
        raise LedgerUnavailableError(
            f"The port in the ledger's URL {_FROM} is not a number. {_ALLOWED}"
        ) from None
    if parsed.drivername == MEMORY_DRIVER:
        return parsed
    if parsed.drivername in _SQLITE_DRIVERS:
        if parsed.database in (None, "", ":memory:"):
            raise LedgerUnavailableError(
                f"A ledger in {redact(url)!r} would be lost at once. Use memory://, or name a file."
            )
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername in _POSTGRESQL_DRIVERS:
        return _for_asyncpg(parsed)
    raise LedgerUnavailableError(f"A ledger can't be kept in {parsed.drivername!r}. {_ALLOWED}")


def _for_asyncpg(url: URL) -> URL:
    query = {name: _last(value) for name, value in url.query.items()}
    if "sslmode" in query:  # libpq's name for it
        query["ssl"] = query.pop("sslmode")
    # Where SQLAlchemy hides it in each text it makes of a URL.
    password = query.pop("password", url.password)
    return url.set(drivername="postgresql+asyncpg", query=query, password=password)


def _last(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[-1]


_FROM = "(FASTROAI_LEDGER_URL or --ledger; not shown, as it may hold a password)"
_ALLOWED = "Allowed: sqlite:///path, postgresql://user@host/name, memory://."


def open_database(url: URL, *, writes: bool, keeps: bool = True) -> Database:
    """A ledger's database, not connected yet; the one in memory is one for the whole process.

    Args:
        url: Of `database_url`.
        writes: As of `Database`.
        keeps: As of `Database`.
    """
    if url.drivername == MEMORY_DRIVER:
        return OPEN_LEDGERS.shared(("memory", url), lambda: Database(url, writes=True))
    return Database(url, writes=writes, keeps=keeps)


def named_ledger(url: URL) -> str | None:
    """How a command names a ledger that is not the user's own, without its password; None: it need
    not, or can't, as it is in memory.
    """
    backend = url.get_backend_name()
    # `set` leaves what is None as it is.
    named = url._replace(drivername=backend, password=None).render_as_string()
    return None if backend == MEMORY_DRIVER or named == own_ledger() else redact_patterns(named)


class Database:
    """Runs transactions on one connection, from whatever thread asks, one at a time. It connects
    when first needed.

    Args:
        url: Of `database_url`.
        writes: Whether transactions take SQLite's write lock from their start, so that none fails
            half-way.
        keeps: Whether what was committed is still there after a power failure. If not, a commit
            does not wait for the disk.
    """

    def __init__(self, url: URL, *, writes: bool, keeps: bool = True) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._backend = _BACKENDS[url.get_backend_name()](url, writes=writes, keeps=keeps)

    @property
    def name(self) -> str:
        """The URL as it is given, without its password."""
        url = self.url.set(drivername=self.url.get_backend_name())
        return redact_patterns(url.render_as_string(hide_password=True))

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do some work in one transaction, which is committed when this returns. Blocks.

        Whatever fails, the next one gets a new connection.
        """
        return self._guarded(lambda backend: backend.run(work))

    def transact(self, work: Callable[[Statements], T]) -> T:
        """As `run`, for statements that go to the driver: SQLAlchemy takes longer than they do.

        Raises:
            Outdated: See `PostgresStatements.end_with`.
        """
        return self._guarded(lambda backend: backend.transact(work))

    def insert(self, *inserts: tuple[Insert, list[Row]]) -> None:
        """Write rows in one transaction, without those that are there already.

        Otherwise as `run`.
        """

        def work(statements: Statements) -> None:
            for insert, rows in inserts:
                statements.insert(insert, rows)

        self.transact(work)

    def _guarded(self, work: Callable[[Backend], T]) -> T:
        with self._lock:
            try:
                return work(self._backend)
            except Outdated:
                raise
            except BaseException:
                # It may be within a transaction still, which the next work would commit.
                self._backend.close()
                raise

    def prepare(self) -> None:
        """Bring the tables to the current version.

        Raises:
            LedgerUnavailableError: The database can't be reached or changed, or its tables are
                newer than this code.
        """
        deadline = time.monotonic() + CONNECT_PATIENCE

        def attempt(number: int) -> None:
            if self.run(version_of) < CURRENT:
                self.run(migrate)

        def delay_after(error: Exception, failures: int) -> float | None:
            # Several processes may create one file at once, and SQLite does not wait for all of its
            # locks.
            is_locked = not isinstance(error, LedgerUnavailableError) and "locked" in str(error)
            return LOCKED_PAUSE if is_locked and time.monotonic() <= deadline else None

        try:
            retry_blocking(attempt, delay_after)
        except LedgerUnavailableError:
            raise
        except Exception as error:
            raise self.unavailable(error) from error

    def has_ledger(self) -> bool:
        """Whether a ledger's tables are there. Nothing is made or changed.

        Raises:
            LedgerUnavailableError: They are newer than this code.
        """
        return self._guarded(lambda backend: backend.has_ledger())

    def unavailable(self, error: BaseException) -> LedgerUnavailableError:
        """The error that says which database can't be used, and why; without its password."""
        if isinstance(error, LedgerUnavailableError):
            return LedgerUnavailableError(*error.args)  # one to raise for each who waits
        cause = getattr(error, "orig", None) or error
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        reason = redact(lines[0], *filter(None, [self.url.password]))
        return LedgerUnavailableError(
            f"The ledger in {self.name} can't be used: {reason}. Make that database reachable, "
            "set FASTROAI_LEDGER_URL to another one, or set FASTROAI_LEDGER_REQUIRED=false to run "
            "without it: entries are then kept in a file and written later."
        )

    def close(self) -> None:
        """Close the connection. Another `run` makes a new one."""
        with self._lock:
            self._backend.close()


LOST_RACES = ("40001", "40P01", "23505")
"""Serialization failure, deadlock, unique violation: PostgreSQL's words for it."""


def is_lost_race(error: BaseException) -> bool:
    """Whether a transaction failed for what another one did, so that it is to be tried again."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) in LOST_RACES


_BACKENDS: dict[str, type[Backend]] = {
    MEMORY_DRIVER: Memory,
    "sqlite": SQLite,
    "postgresql": PostgreSQL,
}
