"""Transactions in a database of PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, Connection, NullPool

from .backend import CONNECT_PATIENCE, PATIENCE
from .migrations import version_of
from .statements import PostgresStatements, Statements

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


class PostgreSQL:
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
