"""The thread that takes and renews the leases of this process, also while an event loop is busy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..database.registry import OPEN_LEDGERS
from ..errors import LedgerUnavailableError
from .table import Kind, LeaseRecord, LeaseRequest, LeaseTable, Outcome

logger = logging.getLogger("fastroai.usage")

T = TypeVar("T")

BEATS = 3
"""Heartbeats in the time after which a silent holder counts as dead."""
# Seconds without anything to do after which the connection is closed.
_IDLE = 5.0
# Seconds a process waits at its end for its last leases to be given up.
_EXIT_PATIENCE = 5.0

Clock = Callable[[], float]


now: Clock = time.monotonic
"""Seconds on a clock that nobody sets and that goes on while the machine sleeps, where there is
one.
"""
if hasattr(time, "CLOCK_BOOTTIME"):
    now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Lease:
    """Something this process holds, or held until it was lost.

    Attributes:
        lost: Somebody else has taken it, or declared its holder dead.
        seen: When it was certainly held, by the heartbeat's clock.
        outcome: How the run ended that holds it, if that has to be reported when it is released.
    """

    def __init__(
        self, claim: LeaseRequest, seen: float, on_loss: Callable[[], None], clock: Clock = now
    ) -> None:
        self.claim = claim
        self.lost = False
        self.seen = seen
        self.outcome: Outcome | None = None
        self._on_loss = on_loss
        self._clock = clock

    @property
    def is_certain(self) -> bool:
        """Whether nobody else can have taken it yet."""
        return not self.lost and self._clock() - self.seen < self.claim.seconds

    def lose(self) -> None:
        """Note that somebody else has it, and say so; called in the heartbeat's thread."""
        self.lost = True
        self._on_loss()


class Heartbeat:
    """Takes, renews and releases leases in a thread of its own, which is busy only while there are
    any.

    Futures that are given out hold what the table said, or a `LedgerUnavailableError`.

    Args:
        clock: Seconds that nobody sets; they pass while the machine sleeps, too.

    Attributes:
        unreported: Tokens of this process's runs whose outcome could not be reported yet.
    """

    def __init__(self, table: LeaseTable, *, clock: Clock = now) -> None:
        self._table = table
        self._clock = clock
        self._queue: SimpleQueue[tuple[Callable[[], Any] | None, Future[Any]]] = SimpleQueue()
        self._held: dict[str, Lease] = {}
        self._beat_at = 0.0
        self._failing = False
        self.unreported: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="fastroai-heartbeat", daemon=True)
        self._thread.start()
        OPEN_LEDGERS.add(self)

    def take(self, claim: LeaseRequest, on_loss: Callable[[], None]) -> Future[Lease | LeaseRecord]:
        """Take something; the result is who holds it where it is not free.

        `on_loss` is called in another thread.
        """

        def work() -> Lease | LeaseRecord:
            # Before it is asked: the time that is left is counted from then, and never too long.
            seen = self._clock()
            holding = self._table.take(claim)
            if holding is not None:
                return holding
            due = seen + claim.seconds / BEATS
            # While nothing is held, the time of the next beat is one that has passed long ago.
            self._beat_at = min(self._beat_at, due) if self._held else due
            lease = self._held[claim.token] = Lease(claim, seen, on_loss, self._clock)
            return lease

        return self._submit(work)

    def release(self, token: str) -> Future[None]:
        """Give something up, also what is only being taken."""

        def work() -> None:
            # Also where the table can't be asked then: it expires once it is not renewed any more.
            self._held.pop(token, None)
            self._table.release(token)
            self.unreported.discard(token)

        return self._submit(work)

    def end(self, token: str, outcome: Outcome) -> Future[None]:
        """Give up a flow run's lease, and keep its outcome until `release`."""

        def work() -> None:
            self._held.pop(token, None)
            self._table.end(token, outcome)

        return self._submit(work)

    def expire(self, token: str) -> Future[None]:
        """Leave the outcome of a run of this process to whoever can report it."""
        self.unreported.add(token)
        return self._submit(lambda: self._table.expire(token))

    def suspend(self, token: str) -> Future[None]:
        """Keep a run known that was reported as paused."""

        def work() -> None:
            self._table.suspend(token)
            self.unreported.discard(token)

        return self._submit(work)

    def ended(self) -> Future[list[LeaseRecord]]:
        """Flow runs of anybody whose outcome is kept to be reported."""

        def work() -> list[LeaseRecord]:
            records = self._table.ended()
            self.unreported &= {record.claim.token for record in records}
            return records

        return self._submit(work)

    def confirm(self) -> Future[None]:
        """Renew what is held now, and find out what was lost."""
        return self._submit(self._beat)

    def holdings(self, kind: Kind) -> Future[list[LeaseRecord]]:
        """What anybody holds, or held until it died."""
        return self._submit(lambda: self._table.holdings(kind))

    def stop(self, timeout: float) -> None:
        """Do what was asked for so far, and end."""
        self._queue.put((None, Future()))
        self._thread.join(timeout)

    def close_at_exit(self) -> None:
        """Do what was asked for so far, for at most some seconds."""
        self.stop(_EXIT_PATIENCE)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((work, future))
        return future

    def _run(self) -> None:
        while True:
            if self._held and self._clock() >= self._beat_at:
                with suppress(LedgerUnavailableError):  # said; the next beat tries again
                    self._beat()
            try:
                work, future = self._queue.get(
                    timeout=max(0.0, self._beat_at - self._clock()) if self._held else _IDLE
                )
            except Empty:
                if not self._held:
                    self._table.close()  # a server has few connections, and this one is idle
                continue
            if work is None:
                break
            self._do(work, future)
        self._table.close()

    def _do(self, work: Callable[[], Any], future: Future[Any]) -> None:
        try:
            result = work()
        except Exception as error:
            _settle(future, future.set_exception, self._table.database.unavailable(error))
        else:
            _settle(future, future.set_result, result)

    def _beat(self) -> None:
        """Renew all that is held.

        Raises:
            LedgerUnavailableError: The database does not answer. Nothing counts as lost.
        """
        if not self._held:
            return
        shortest = min(lease.claim.seconds for lease in self._held.values())
        seen = self._clock()
        try:
            lost = self._table.renew(list(self._held))
        except Exception as error:
            # Sooner than the usual beat: there are few of them until others may take what is held.
            self._beat_at = self._clock() + shortest / BEATS / 4
            failure = self._table.database.unavailable(error)
            if not self._failing:
                logger.warning(
                    "The heartbeat of this process's runs could not be written: %s", failure
                )
            self._failing = True
            raise failure from error
        self._failing = False
        # From when it was asked, not from the answer: the database wrote it at some time between.
        self._beat_at = seen + shortest / BEATS
        for token in lost:
            self._held.pop(token).lose()
        for lease in self._held.values():
            lease.seen = seen


def _settle(future: Future[Any], settle: Callable[[Any], None], value: Any) -> None:
    with suppress(InvalidStateError):  # nobody waits any more
        settle(value)
