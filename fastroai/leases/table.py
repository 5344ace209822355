"""Leases in a ledger's database; they expire when their holder dies.

The wall clock's times in the table are for people: a clock that is set would let a living holder's
lease be taken. A holder counts as dead when somebody who wants its lease has watched, on a clock
that nobody sets, that it was not renewed for as long as it lasts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from ..database.engine import Database
from ..database.values import Row, moment
from .schema import leases

T = TypeVar("T")

Kind = Literal["run_key", "flow_run", "suspended_run", "artifact"]
"""`suspended_run`: nobody holds it, it waits to be resumed. `artifact`: who renews one, by its key.
"""
Outcome = Literal[
    "completed", "not_stored", "partial", "failed", "over_budget", "paused", "crashed"
]
"""How a run ended. `partial`: some steps failed; `not_stored`: some results are not kept; `paused`:
it has not, and waits without a process until somebody resumes it.
"""

# The kind of the row that a finished run leaves until its end was reported.
_ENDED: dict[str, Outcome] = {
    "completed_run": "completed",
    "not_stored_run": "not_stored",
    "partial_run": "partial",
    "failed_run": "failed",
    "over_budget_run": "over_budget",
    "paused_run": "paused",
    "crashed_run": "crashed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What somebody wants to hold.

    Attributes:
        seconds: How long it stays held after the last heartbeat.
        pipeline: For people, like `run_key`.
    """

    kind: Kind
    name: str
    seconds: float
    pipeline: str | None = None
    run_key: str | None = None
    token: str = field(default_factory=token_hex)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What somebody holds, or held until it died.

    Attributes:
        since: When it was taken.
        silent: Seconds since the last heartbeat, by the wall clock that all holders share.
        beat: Another number after each heartbeat.
        outcome: How the run ended, where only that is left to be reported.
    """

    claim: LeaseRequest
    since: datetime
    silent: float
    beat: int
    outcome: Outcome | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it seems to be held, by the wall clock: what a person is told.

        A clock that was set back does not keep the dead alive.
        """
        return abs(self.silent) <= self.claim.seconds

    @property
    def process_is_gone(self) -> bool:
        """Whether it seems dead and its process is no longer on this machine.

        Neither is enough: a clock may be set, and machines may have the same name.
        """
        if self.is_alive or self.claim.host != socket.gethostname():
            return False
        return not _has_process(self.claim.pid)


class LeaseTable:
    """Leases in the database of a ledger. Each call is atomic, for all who share it.

    Args:
        clock: Seconds that pass alike for all and that nobody sets.
        wall_clock: Microseconds since 1970, for SQLite; a server has its own.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.database = database
        self._clock = clock
        self._wall_clock = wall_clock
        self._prepared = False
        self._watched: dict[tuple[Kind, str], _Watch] = {}

    def take(self, claim: LeaseRequest) -> LeaseRecord | None:
        """Take what is free, whose holder is dead, or that one holds oneself; else say who holds
        it.

        Ask again to find a holder dead: this is how it is watched.
        """
        return self._run(lambda connection: self._take(connection, claim))

    def renew(self, tokens: Collection[str]) -> set[str]:
        """Write a heartbeat for some holdings; returns those that are no longer held."""
        return self._run(lambda connection: self._renew(connection, tokens))

    def release(self, token: str) -> None:
        """End a holding, if it is still there; or forget its outcome."""
        self._run(
            lambda connection: connection.execute(delete(leases).where(leases.c.token == token))
        )

    def end(self, token: str, outcome: Outcome) -> None:
        """End a flow run's holding, and keep its outcome until that is released, too, or the flow
        run is taken again.
        """
        self._run(lambda connection: self._end(connection, token, outcome))

    def expire(self, token: str) -> None:
        """Let anybody report an outcome from now on: its process has given that up."""
        mine = update(leases).where(leases.c.token == token, leases.c.kind.in_(_ENDED))
        self._run(lambda connection: connection.execute(mine.values(duration=0)))

    def suspend(self, token: str) -> None:
        """Keep a flow run whose outcome was reported as `paused` known, until it is taken again."""
        mine = update(leases).where(leases.c.token == token, leases.c.kind == "paused_run")
        self._run(lambda connection: connection.execute(mine.values(kind="suspended_run")))

    def ended(self) -> list[LeaseRecord]:
        """Flow runs whose outcome is kept, the oldest first. Their process still reports those that
        are alive.
        """
        return self._run(lambda connection: self._read(connection, leases.c.kind.in_(_ENDED)))

    def holdings(self, kind: Kind) -> list[LeaseRecord]:
        """All of a kind, those of the dead too, the oldest first."""
        return self._run(lambda connection: self._read(connection, leases.c.kind == kind))

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        self.database.close()

    def _run(self, work: Callable[[Connection], T]) -> T:
        if not self._prepared:
            self.database.prepare()
        self._prepared = False  # should this fail, the tables may be gone
        result = self.database.run(work)
        self._prepared = True
        return result

    def _take(self, connection: Connection, claim: LeaseRequest) -> LeaseRecord | None:
        asked_at = self._clock()
        row = self._row(connection, claim)
        if not _insert(connection, row):
            found = self._read(connection, _names(claim))
            if not found:  # it was released between the two statements
                return self._take(connection, claim)
            [held] = found
            if not (self._is_silent(held, asked_at) or held.process_is_gone):
                return held
            # Only as it was seen: a heartbeat, or somebody else, may have come between.
            as_seen = (leases.c.token == held.claim.token) & (leases.c.renewed_at == held.beat)
            taking = update(leases).where(_names(claim), as_seen).values(row)
            if not connection.execute(taking).rowcount:
                return self._take(connection, claim)
        self._watched.pop((claim.kind, claim.name), None)
        if claim.kind == "flow_run":
            _forget_outcome(connection, claim.name)
        return None

    def _is_silent(self, held: LeaseRecord, asked_at: float) -> bool:
        """Whether there was no heartbeat, as long as it was watched, for longer than the lease
        lasts.
        """
        key = held.claim.kind, held.claim.name
        watch = self._watched.get(key)
        if watch is None or (watch.token, watch.beat) != (held.claim.token, held.beat):
            self._watched[key] = _Watch(held.claim.token, held.beat, since=self._clock())
            return False
        return asked_at - watch.since > held.claim.seconds

    def _end(self, connection: Connection, token: str, outcome: Outcome) -> None:
        mine = (leases.c.token == token) & (leases.c.kind == "flow_run")
        name = connection.scalar(select(leases.c.name).where(mine))
        if name is None:
            return
        _forget_outcome(connection, name)
        [kind] = [kind for kind, meant in _ENDED.items() if meant == outcome]
        ended = update(leases).where(mine)
        connection.execute(ended.values(kind=kind, renewed_at=self._now(connection)))

    def _renew(self, connection: Connection, tokens: Collection[str]) -> set[str]:
        mine = leases.c.token.in_(tokens)
        now = self._now(connection)
        # Another value each time, even on a clock that was set back to where it was before: a
        # change of it is what shows others that the holder lives.
        changed = case((leases.c.renewed_at == now, now + 1), else_=now)
        renewed = connection.execute(update(leases).where(mine).values(renewed_at=changed))
        if renewed.rowcount == len(tokens):
            return set()
        return set(tokens) - set(connection.scalars(select(leases.c.token).where(mine)))

    def _read(self, connection: Connection, where: ColumnElement[bool]) -> list[LeaseRecord]:
        now = self._now(connection).label("now")
        rows = connection.execute(
            select(leases, now).where(where).order_by(leases.c.since, leases.c.name)
        )
        return [
            LeaseRecord(
                claim=LeaseRequest(
                    kind="flow_run" if row["kind"] in _ENDED else row["kind"],
                    name=row["name"],
                    seconds=row["duration"] / 1e6,
                    pipeline=row["pipeline"],
                    run_key=row["run_key"],
                    token=row["token"],
                    host=row["host"],
                    pid=row["pid"],
                ),
                since=moment(row["since"]),
                silent=(row["now"] - row["renewed_at"]) / 1e6,
                beat=row["renewed_at"],
                outcome=_ENDED.get(row["kind"]),
            )
            for row in rows.mappings()
        ]

    def _row(self, connection: Connection, claim: LeaseRequest) -> Row:
        now = self._now(connection)
        return {
            "kind": claim.kind,
            "name": claim.name,
            "token": claim.token,
            "host": claim.host,
            "pid": claim.pid,
            "pipeline": claim.pipeline,
            "run_key": claim.run_key,
            "since": now,
            "renewed_at": now,
            "duration": round(claim.seconds * 1e6),
        }

    def _now(self, connection: Connection) -> ColumnElement[int]:
        """Microseconds since 1970: of the server that machines share, or of the machine that
        processes share.
        """
        if connection.dialect.name == "postgresql":
            # Not now(), which stands still within a transaction, even one that waits for a row.
            return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
        return literal(self._wall_clock(), BigInteger)


@dataclass(frozen=True, slots=True)
class _Watch:
    """What was seen of a holding, and since when that has not changed."""

    token: str
    beat: int
    since: float


def _insert(connection: Connection, row: Row) -> bool:
    """Take what nobody holds, or what one holds oneself; whether that was so."""
    insert = _insert_of(connection.dialect)(leases).values(row)
    return bool(
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=["kind", "name"],
                set_={"renewed_at": insert.excluded.renewed_at},
                where=leases.c.token == row["token"],
            )
        ).rowcount
    )


def _insert_of(dialect: Dialect) -> Any:
    """The `insert` of a kind of database, which knows what to do about a conflict."""
    if dialect.name != "postgresql":
        return sqlite.insert
    # Only here: to import it takes as long as all else that a small ledger needs of SQLAlchemy.
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


def _forget_outcome(connection: Connection, name: str) -> None:
    ended = leases.c.kind.in_([*_ENDED, "suspended_run"])
    connection.execute(delete(leases).where(leases.c.name == name, ended))


def _names(claim: LeaseRequest) -> ColumnElement[bool]:
    return (leases.c.kind == claim.kind) & (leases.c.name == claim.name)


def _has_process(pid: int) -> bool:
    """Whether there is a process of this number here; also where that can't be found out."""
    if os.name != "posix":  # elsewhere this would be a real signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
