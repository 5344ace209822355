"""The database behind a ledger: its address, its connections, one transaction at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Dialect, NullPool, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from ..errors import LedgerUnavailableError
from .migrations import CURRENT, migrate, version_of
from .values import Row

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds to wait for a database that is locked or slow, before it counts as unreachable."""
CONNECT_PATIENCE = 5.0
"""Seconds to wait for a connection."""

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
        raise LedgerUnavailableError(f"The ledger's URL is not one. {_ALLOWED}") from None
    if parsed.drivername in _SQLITE_DRIVERS:
        if parsed.database in (None, "", ":memory:"):
            raise LedgerUnavailableError(
                f"A ledger in {url!r} would be lost at once. Use memory://, or name a file."
            )
        return parsed.set(drivername="sqlite+pysqlite")
    if parsed.drivername in _POSTGRESQL_DRIVERS:
        query = dict(parsed.query)
        if "sslmode" in query:  # libpq's name for it
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    raise LedgerUnavailableError(f"A ledger can't be kept in {parsed.drivername!r}. {_ALLOWED}")


_ALLOWED = "Allowed: sqlite:///path, postgresql://user@host/name, memory://."


class Database:
    """Runs transactions on one connection, from whatever thread asks, one at a time. It connects
    when first needed.

    Args:
        url: Of `database_url`.
        writes: Whether transactions take SQLite's write lock from their start, so that none fails
            half-way.
    """

    def __init__(self, url: URL, *, writes: bool) -> None:
        self.url = url
        self._writes = writes
        self._lock = threading.Lock()
        self._backend = (_SQLite if url.get_backend_name() == "sqlite" else _PostgreSQL)(
            url, writes=writes
        )

    @property
    def name(self) -> str:
        """The URL as it is given, without its password."""
        return self.url.set(drivername=self.url.get_backend_name()).render_as_string(
            hide_password=True
        )

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do some work in one transaction, which is committed when this returns. Blocks.

        Whatever fails, the next one gets a new connection.
        """
        return self._guarded(lambda backend: backend.run(work))

    def insert(self, *inserts: tuple[Insert, list[Row]]) -> None:
        """Write rows in one transaction, without those that are there already.

        Otherwise as `run`.
        """
        self._guarded(lambda backend: backend.insert(inserts))

    def _guarded(self, work: Callable[[_SQLite | _PostgreSQL], T]) -> T:
        with self._lock:
            try:
                return work(self._backend)
            except BaseException:
                self._backend.close()
                raise

    def prepare(self) -> None:
        """Bring the tables to the current version.

        Raises:
            LedgerUnavailableError: The database can't be reached or changed, or its tables are
                newer than this code.
        """
        deadline = time.monotonic() + CONNECT_PATIENCE
        while True:
            try:
                if self.run(version_of) < CURRENT:
                    self.run(migrate)
                return
            except LedgerUnavailableError:
                raise
            except Exception as error:
                # Several processes may create one file at once, and SQLite does not wait for all of
                # its locks.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise unavailable(self.name, error) from error
                time.sleep(0.05)

    def has_ledger(self) -> bool:
        """Whether a ledger's tables are there. Nothing is made or changed.

        Raises:
            LedgerUnavailableError: They are newer than this code.
        """
        return self._guarded(lambda backend: backend.has_ledger())

    def close(self) -> None:
        """Close the connection. Another `run` makes a new one."""
        with self._lock:
            self._backend.close()


class Insert:
    """An insert that leaves out what is there already.

    It is compiled once, which is most of what it costs.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._compiled: tuple[str, list[str]] | None = None

    def compiled(self, dialect: Dialect) -> tuple[str, list[str]]:
        """The statement for a driver, and the names of its parameters in their order."""
        if self._compiled is None:
            insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
            names = [column.name for column in self._table.columns]
            compiled = (
                insert(self._table)
                .on_conflict_do_nothing()
                .compile(dialect=dialect, column_keys=names)
            )
            self._compiled = compiled.string, list(compiled.positiontup or ())
        return self._compiled

    def values(self, rows: list[Row], dialect: Dialect) -> tuple[str, list[tuple[Any, ...]]]:
        """The statement, and the parameters of each row."""
        sql, names = self.compiled(dialect)
        values = itemgetter(*names)
        return sql, [values(row) for row in rows]


class _SQLite:
    def __init__(self, url: URL, *, writes: bool) -> None:
        self._url = url
        self._path = Path(str(url.database))
        self._begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        self._connection: Connection | None = None
        self._file: tuple[int, int] | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        connection = self._connected()
        with connection.begin():
            return work(connection)

    def insert(self, inserts: Iterable[tuple[Insert, list[Row]]]) -> None:
        connection = self._connected()
        # Past SQLAlchemy's bookkeeping, which takes as long as a commit does.
        driver: Any = connection.connection.driver_connection
        driver.execute(self._begin)
        for insert, rows in inserts:
            if rows:
                driver.executemany(*insert.values(rows, connection.dialect))
        driver.execute("COMMIT")

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
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _connect(self) -> Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_engine(
            self._url,
            poolclass=NullPool,
            connect_args={"timeout": PATIENCE, "isolation_level": None},
        )
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(self._begin))
        connection = engine.connect()
        self._file = self._identity()
        return connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino


def _set_up_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    # Readers don't wait for writers. FULL: what was committed is there after a power failure too.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


class _PostgreSQL:
    """Runs asyncpg in an event loop of its own, within the calling thread."""

    def __init__(self, url: URL, *, writes: bool) -> None:
        self._url = url
        self._isolation: Any = "READ COMMITTED" if writes else "REPEATABLE READ"
        self._runner: asyncio.Runner | None = None
        self._connection: AsyncConnection | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        return self._runner.run(self._run(work))

    def insert(self, inserts: Iterable[tuple[Insert, list[Row]]]) -> None:
        def work(connection: Connection) -> None:
            for insert, rows in inserts:
                if rows:
                    connection.exec_driver_sql(*insert.values(rows, connection.dialect))

        self.run(work)

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

    async def _run(self, work: Callable[[Connection], T]) -> T:
        async with asyncio.timeout(2 * PATIENCE):
            if self._connection is None:
                self._connection = await self._connect()
            async with self._connection.begin():
                return await self._connection.run_sync(work)

    async def _connect(self) -> AsyncConnection:
        engine = create_async_engine(
            self._url,
            poolclass=NullPool,
            isolation_level=self._isolation,
            connect_args={"timeout": CONNECT_PATIENCE, "command_timeout": PATIENCE},
        )
        return await engine.connect()


async def _close(connection: AsyncConnection) -> None:
    async with asyncio.timeout(CONNECT_PATIENCE):
        await connection.close()


def unavailable(name: str, error: BaseException) -> LedgerUnavailableError:
    """The error that says which database can't be used, and why."""
    if isinstance(error, LedgerUnavailableError):
        return LedgerUnavailableError(*error.args)  # one to raise for each who waits
    cause = getattr(error, "orig", None) or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return LedgerUnavailableError(
        f"The ledger in {name} can't be used: {reason}. Make it reachable, or set "
        "FASTROAI_LEDGER_URL to another database, or FASTROAI_LEDGER_REQUIRED=false to go on and "
        "book later."
    )
