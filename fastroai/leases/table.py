"""Who is at work on what: leases in a ledger's database, which end by themselves when their holder
dies.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeVar
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from ..database.engine import Database
from ..database.values import moment
from .schema import leases

T = TypeVar("T")

Kind = Literal["run_key", "flow_run"]
Outcome = Literal["completed", "not_stored", "partial", "failed", "crashed"]
"""How a run ended. `partial`: some steps failed; `not_stored`: some results are not kept."""

# The kind of the row that a finished run leaves until its end was reported.
_ENDED: dict[str, Outcome] = {
    "completed_run": "completed",
    "not_stored_run": "not_stored",
    "partial_run": "partial",
    "failed_run": "failed",
    "crashed_run": "crashed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What somebody wants to hold.

    Attributes:
        seconds: How long it stays held after the last sign of life.
        pipeline: For people, like `run_key`.
    """

    kind: Kind
    name: str
    seconds: float
    pipeline: str | None = None
    run_key: str | None = None
    token: str = field(default_factory=lambda: uuid4().hex)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What somebody holds, or held until it died.

    Attributes:
        since: When it was taken.
        silent: Seconds since the last heartbeat, by the clock that all holders share.
        outcome: How the run ended, where only that is left to be reported.
    """

    claim: LeaseRequest
    since: datetime
    silent: float
    outcome: Outcome | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it may not be taken yet.

        A clock that was set back does not keep the dead alive.
        """
        return abs(self.silent) <= self.claim.seconds


class LeaseTable(Protocol):
    """Where leases are kept. Each call is atomic, for all who share the place."""

    name: str

    def take(self, claim: LeaseRequest) -> LeaseRecord | None:
        """Take what is free, whose holder is dead, or that one holds oneself; else say who holds
        it.
        """
        ...

    def renew(self, tokens: Collection[str]) -> set[str]:
        """Give a sign of life for some holdings; returns those that are no longer held."""
        ...

    def release(self, token: str) -> None:
        """End a holding, if it is still there; or forget its outcome."""
        ...

    def end(self, token: str, outcome: Outcome) -> None:
        """End a flow run's holding, and keep its outcome until that is released, too, or the flow
        run is taken again.
        """
        ...

    def expire(self, token: str) -> None:
        """Let anybody report an outcome from now on: its process has given that up."""
        ...

    def ended(self) -> list[LeaseRecord]:
        """Flow runs whose outcome is kept, the oldest first. Their process still reports those that
        are alive.
        """
        ...

    def holdings(self, kind: Kind) -> list[LeaseRecord]:
        """All of a kind, those of the dead too, the oldest first."""
        ...

    def close(self) -> None:
        """Close what is open; the next call opens it again."""
        ...


class SqlTable:
    """Leases in the database of a ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prepared = False
        self.name = database.name

    def take(self, claim: LeaseRequest) -> LeaseRecord | None:
        """See `LeaseTable.take`."""
        return self._run(lambda connection: _take(connection, claim))

    def renew(self, tokens: Collection[str]) -> set[str]:
        """See `LeaseTable.renew`."""
        return self._run(lambda connection: _renew(connection, tokens))

    def release(self, token: str) -> None:
        """See `LeaseTable.release`."""
        self._run(
            lambda connection: connection.execute(delete(leases).where(leases.c.token == token))
        )

    def end(self, token: str, outcome: Outcome) -> None:
        """See `LeaseTable.end`."""
        self._run(lambda connection: _end(connection, token, outcome))

    def expire(self, token: str) -> None:
        """See `LeaseTable.expire`."""
        mine = update(leases).where(leases.c.token == token, leases.c.kind.in_(_ENDED))
        self._run(lambda connection: connection.execute(mine.values(duration=0)))

    def ended(self) -> list[LeaseRecord]:
        """See `LeaseTable.ended`."""
        return self._run(lambda connection: _read(connection, leases.c.kind.in_(_ENDED)))

    def holdings(self, kind: Kind) -> list[LeaseRecord]:
        """See `LeaseTable.holdings`."""
        return self._run(lambda connection: _read(connection, leases.c.kind == kind))

    def close(self) -> None:
        """See `LeaseTable.close`."""
        self._database.close()

    def _run(self, work: Callable[[Connection], T]) -> T:
        if not self._prepared:
            self._database.prepare()
        self._prepared = False  # should this fail, the tables may be gone
        result = self._database.run(work)
        self._prepared = True
        return result


def _take(connection: Connection, claim: LeaseRequest) -> LeaseRecord | None:
    """See `LeaseTable.take`. One statement decides."""
    now = _now(connection)
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(leases)
    row = {
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
    free = or_(
        leases.c.token == claim.token, func.abs(now - leases.c.renewed_at) > leases.c.duration
    )
    taking = insert.values(row).on_conflict_do_update(
        index_elements=["kind", "name"],
        set_={column: insert.excluded[column] for column in row if column not in ("kind", "name")},
        where=free,
    )
    if connection.execute(taking).rowcount:
        if claim.kind == "flow_run":
            _forget_outcome(connection, claim.name)
        return None
    held = _read(connection, (leases.c.kind == claim.kind) & (leases.c.name == claim.name))
    # It may have been released between the two statements.
    return held[0] if held else _take(connection, claim)


def _end(connection: Connection, token: str, outcome: Outcome) -> None:
    """See `LeaseTable.end`."""
    mine = (leases.c.token == token) & (leases.c.kind == "flow_run")
    name = connection.scalar(select(leases.c.name).where(mine))
    if name is None:
        return
    _forget_outcome(connection, name)
    [kind] = [kind for kind, meant in _ENDED.items() if meant == outcome]
    connection.execute(update(leases).where(mine).values(kind=kind, renewed_at=_now(connection)))


def _forget_outcome(connection: Connection, name: str) -> None:
    connection.execute(delete(leases).where(leases.c.name == name, leases.c.kind.in_(_ENDED)))


def _renew(connection: Connection, tokens: Collection[str]) -> set[str]:
    """See `LeaseTable.renew`."""
    mine = leases.c.token.in_(tokens)
    if connection.execute(
        update(leases).where(mine).values(renewed_at=_now(connection))
    ).rowcount == len(tokens):
        return set()
    return set(tokens) - set(connection.scalars(select(leases.c.token).where(mine)))


def _read(connection: Connection, where: ColumnElement[bool]) -> list[LeaseRecord]:
    now = _now(connection).label("now")
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
            outcome=_ENDED.get(row["kind"]),
        )
        for row in rows.mappings()
    ]


def _now(connection: Connection) -> ColumnElement[int]:
    """Microseconds since 1970: of the server that machines share, or of the machine that processes
    share.
    """
    if connection.dialect.name == "postgresql":
        # Not now(), which stands still within a transaction, even one that waits for a row.
        return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
    return literal(time.time_ns() // 1000, BigInteger)


class MemoryTable:
    """Leases among the threads and event loops of one process."""

    name = "memory://"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[Kind, str], tuple[LeaseRequest, datetime, float]] = {}

    def take(self, claim: LeaseRequest) -> LeaseRecord | None:
        """See `LeaseTable.take`."""
        with self._lock:
            held = self._held.get((claim.kind, claim.name))
            if (
                held is not None
                and held[0].token != claim.token
                and (holding := _holding(held)).is_alive
            ):
                return holding
            self._held[claim.kind, claim.name] = claim, datetime.now(UTC), time.monotonic()
            return None

    def renew(self, tokens: Collection[str]) -> set[str]:
        """See `LeaseTable.renew`."""
        with self._lock:
            mine = {key: held for key, held in self._held.items() if held[0].token in tokens}
            for key, (claim, since, _) in mine.items():
                self._held[key] = claim, since, time.monotonic()
        return set(tokens) - {claim.token for claim, _, _ in mine.values()}

    def release(self, token: str) -> None:
        """See `LeaseTable.release`."""
        with self._lock:
            self._held = {key: held for key, held in self._held.items() if held[0].token != token}

    def end(self, token: str, outcome: Outcome) -> None:
        """See `LeaseTable.end`. Nobody else could report it: it is only released."""
        self.release(token)

    def expire(self, token: str) -> None:
        """See `LeaseTable.expire`."""

    def ended(self) -> list[LeaseRecord]:
        """See `LeaseTable.ended`."""
        return []

    def holdings(self, kind: Kind) -> list[LeaseRecord]:
        """See `LeaseTable.holdings`."""
        with self._lock:
            return [_holding(held) for held in self._held.values() if held[0].kind == kind]

    def close(self) -> None:
        """It stays until the process ends."""


def _holding(held: tuple[LeaseRequest, datetime, float]) -> LeaseRecord:
    claim, since, renewed = held
    return LeaseRecord(claim=claim, since=since, silent=time.monotonic() - renewed)
