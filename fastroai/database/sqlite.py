"""Transactions in a database of SQLite: a file, or in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

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

from .backend import PATIENCE
from .files import make_private_file, make_private_folder
from .migrations import version_of
from .statements import Statements

T = TypeVar("T")

LOG_PAGES = 200
"""Pages of 4 kB after which SQLite begins its write-ahead log anew, those of about 30 requests: to
commit what makes a file longer takes a third more time than what is written over.
"""


class SQLite:
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


class Memory(SQLite):
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
