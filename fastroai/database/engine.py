"""The database behind a ledger: its URL, its connections, one transaction at a time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    NullPool,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError

from ..errors import LedgerUnavailableError
from ..redaction import redact, redact_patterns
from ..retries import retry_blocking
from .files import make_private_file, make_private_folder
from .location import own_ledger
from .migrations import CURRENT, migrate, version_of
from .registry import OPEN_LEDGERS
from .statements import Insert, PostgresStatements, Statements
from .values import Row

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds to wait for a database that is locked or slow, before it counts as unreachable."""
CONNECT_PATIENCE = 5.0
"""Seconds to wait for a connection."""
LOG_PAGES = 200
"""Pages of 4 kB after which SQLite begins its write-ahead log anew, those of about 30 requests: to
commit what makes a file longer takes a third more time than what is written over.
"""
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
        """As `run`, for statements that go to the driver: SQLAlchemy takes longer than they do."""
        return self._guarded(lambda backend: backend.transact(work))

    def insert(self, *inserts: tuple[Insert, list[Row]]) -> None:
        """Write rows in one transaction, without those that are there already.

        Otherwise as `run`.
        """

        def work(statements: Statements) -> None:
            for insert, rows in inserts:
                statements.insert(insert, rows)

        self.transact(work)

    def _guarded(self, work: Callable[[_Backend], T]) -> T:
        with self._lock:
            try:
                return work(self._backend)
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


class _Backend(Protocol):
    """How one kind of database is spoken to, by one thread at a time."""

    def __init__(self, url: URL, *, writes: bool, keeps: bool) -> None: ...
    def run(self, work: Callable[[Connection], T]) -> T: ...
    def transact(self, work: Callable[[Statements], T]) -> T: ...
    def has_ledger(self) -> bool: ...
    def close(self) -> None: ...


class _SQLite:
    def __init__(self, url: URL, *, writes: bool, keeps: bool) -> None:
        self._url = url
        self._keeps = keeps
        self._path = Path(str(url.database))
        self._path_name = str(url.database)
        self._begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        self._connection: Connection | None = None
        self._statements: Statements | None = None
        self._file: tuple[int, int] | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        connection = self._connected()
        with connection.begin():
            return work(connection)

    def transact(self, work: Callable[[Statements], T]) -> T:
        connection = self._connected()
        # Past SQLAlchemy's bookkeeping, which takes as long as a commit does.
        statements = self._statements
        if statements is None or statements.connection is not connection:
            statements = self._statements = Statements(connection)
        driver = statements.driver
        driver.execute(self._begin)
        result = work(statements)
        if connection.in_transaction():  # it was used after all
            connection.commit()
        else:
            driver.execute("COMMIT")
        return result

    def has_ledger(self) -> bool:
        if not self._path.exists():
            return False
        # On a connection that is not set up: that would turn any other database into one with a
        # write-ahead log.
        engine = create_engine(self._url, poolclass=NullPool, connect_args={"timeout": PATIENCE})
        with engine.connect() as connection:
            return version_of(connection) > 0

    def _connected(self) -> Connection:
        if self._connection is not None and self._file != self._identity():
            # the file was moved or deleted: what is written to the old one, nobody would find
            self.close()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def close(self) -> None:
        connection, self._connection, self._statements = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _connect(self) -> Connection:
        if "uri" not in self._url.query:
            make_private_folder(self._path.parent)
            # SQLite gives its write-ahead log and its shared memory the mode of this file.
            make_private_file(self._path)
        with _connecting_to(self._url):
            connection = _sqlite_engine(self._begin).connect()
        if not self._keeps:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA synchronous=NORMAL")
        self._file = self._identity()
        return connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = os.stat(self._path_name)
        except OSError:
            return None
        return stat.st_dev, stat.st_ino


class _Memory(_SQLite):
    """A database that lasts as long as its one connection."""

    def has_ledger(self) -> bool:
        return True

    def _connected(self) -> Connection:
        if self._connection is None:
            with _connecting_to(make_url("sqlite+pysqlite://")):
                self._connection = _sqlite_engine(self._begin).connect()
        return self._connection

    def close(self) -> None:
        # Only what was left half-way: with the connection, the ledger would be gone.
        if self._connection is not None:
            self._connection.connection.rollback()


_target: ContextVar[URL] = ContextVar("fastroai_database")
"""What is being connected to: an engine, which is for several databases, knows none."""


@contextmanager
def _connecting_to(url: URL) -> Iterator[None]:
    token = _target.set(url)
    try:
        yield
    finally:
        _target.reset(token)


# One engine for all files: it keeps what statements were compiled to, and to compile one takes
# longer than most of them run.
@cache
def _sqlite_engine(begin: str) -> Engine:
    engine = create_engine("sqlite+pysqlite://", poolclass=NullPool)
    event.listen(engine, "connect", _set_up_sqlite)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Dialect, _: object, args: list[Any], options: dict[str, Any]) -> None:
        args[:], of_url = dialect.create_connect_args(_target.get())
        options.clear()
        options.update(of_url)
        options.update(timeout=PATIENCE, isolation_level=None, check_same_thread=False)

    @event.listens_for(engine, "begin")
    def begin_once(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql(begin)

    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # Readers don't wait for writers. FULL: what was committed is there after a power failure too.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
    cursor.close()


class _PostgreSQL:
    """Runs asyncpg in an event loop of its own, within the calling thread."""

    def __init__(self, url: URL, *, writes: bool, keeps: bool) -> None:
        self._url = url
        self._keeps = keeps
        # A writer has to see what others committed while it waited for their locks; a reader, one
        # state of the ledger through all of its statements.
        self._isolation: Any = "READ COMMITTED" if writes else "REPEATABLE READ"
        self._runner: asyncio.Runner | None = None
        self._connection: AsyncConnection | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        return self._in_loop(self._run(work))

    def transact(self, work: Callable[[Statements], T]) -> T:
        return self._in_loop(self._transact(work))

    def has_ledger(self) -> bool:
        return self.run(version_of) > 0

    def close(self) -> None:
        connection, self._connection = self._connection, None
        runner, self._runner = self._runner, None
        if runner is None:
            return
        with suppress(Exception):
            if connection is not None:
                runner.run(_close(connection))
        with suppress(Exception):
            runner.close()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        return self._runner.run(work)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        async with self._connected() as connection, connection.begin():
            return await connection.run_sync(work)

    async def _transact(self, work: Callable[[Statements], T]) -> T:
        async with self._connected() as connection:
            return await connection.run_sync(_committed, work)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        # A server that is gone without a word would be waited for until TCP gives it up.
        async with asyncio.timeout(2 * PATIENCE):
            if self._connection is None:
                self._connection = await self._connect()
            yield self._connection

    async def _connect(self) -> AsyncConnection:
        # Only here: it brings SQLAlchemy's ORM, a third of what importing a ledger takes.
        from sqlalchemy.ext.asyncio import create_async_engine

        # Not one for all, as of SQLite: those who connect first would wait for each other by a lock
        # of asyncio's, and each runs in a loop of its own.
        engine = create_async_engine(
            self._url,
            poolclass=NullPool,
            isolation_level=self._isolation,
            connect_args={"timeout": CONNECT_PATIENCE, "command_timeout": PATIENCE},
        )
        connection = await engine.connect()
        if not self._keeps:
            await connection.exec_driver_sql("SET synchronous_commit = off")
            await connection.commit()
        return connection


def _committed(connection: Connection, work: Callable[[Statements], T]) -> T:
    statements = PostgresStatements(connection)
    result = work(statements)
    statements.commit()
    return result


async def _close(connection: AsyncConnection) -> None:
    async with asyncio.timeout(CONNECT_PATIENCE):
        await connection.close()


_BACKENDS: dict[str, type[_Backend]] = {
    MEMORY_DRIVER: _Memory,
    "sqlite": _SQLite,
    "postgresql": _PostgreSQL,
}
