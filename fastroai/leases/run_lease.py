"""One execution of a piece of work at a time, across all processes that share a ledger."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ..errors import LedgerUnavailableError, RunLeaseError
from ..ledger.entries import LedgerEntry
from ..ledger.store import LedgerStore
from ..settings import FastroAISettings
from .heartbeat import Heartbeat, Lease
from .shared import configured_heartbeat
from .table import LeaseRecord, LeaseRequest

logger = logging.getLogger("fastroai.executors")

LONGEST_PAUSE = 1.0
"""Seconds between two looks at whether what another holds is free."""
RELEASE_PATIENCE = 5.0
"""Seconds that the end of a run waits for its lease to be given up; it ends by itself otherwise."""


@asynccontextmanager
async def only_execution(
    pipeline: str, run_key: str | None, settings: FastroAISettings, held: Held = ()
) -> AsyncIterator[Held]:
    """Hold a pipeline's run key, if there is one, while the block runs; wait before it while
    another run holds it.

    Args:
        held: The leases of the run around this one.

    Returns:
        Those, and the lease of the run key.

    Raises:
        RunLeaseError: It is asked for from within the run that holds it; or it was lost meanwhile
            to another process, because it had no heartbeat: then the block was cancelled.
        LedgerUnavailableError: The ledger can't be reached, and must be.
    """
    if run_key is None:
        yield held
        return
    claim = LeaseRequest(
        kind="run_key",
        name=json.dumps([pipeline, run_key]),
        seconds=settings.lease_seconds,
        pipeline=pipeline,
        run_key=run_key,
    )
    if any(
        (other.lease.claim.kind, other.lease.claim.name) == (claim.kind, claim.name)
        for other in held
    ):
        raise RunLeaseError(
            f"Pipeline {pipeline!r} with run_key={run_key!r} is executed from within its own run, "
            "which would wait for itself. Give the inner one another run_key."
        )
    what = f"the run of {pipeline!r} with run_key={run_key!r}"
    async with hold(claim, what, settings) as lease:
        yield held if lease is None else (*held, lease)


@asynccontextmanager
async def hold(
    claim: LeaseRequest, what: str, settings: FastroAISettings
) -> AsyncIterator[HeldLease | None]:
    """Hold something while the block runs; wait before it while another does. Gives None where it
    can't be held, and need not be.

    Args:
        what: For messages.
        settings: Which ledger, and whether the block must not run while that can't be reached.

    Raises:
        RunLeaseError: It was lost; the block was cancelled.
        LedgerUnavailableError: The ledger can't be reached, and must be.
    """
    heartbeat, required = configured_heartbeat(settings), settings.ledger_required
    loop, loss, lease = asyncio.get_running_loop(), asyncio.timeout(None), None

    def announce() -> None:
        # In the heartbeat's thread; a loop that is closed has no run to cancel.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_expire, loss)

    try:
        # A deadline that passes with the loss: it tells that from other cancellations.
        async with loss:
            try:
                lease = await _take(heartbeat, claim, what, announce)
            except LedgerUnavailableError as error:
                if required:
                    raise
                message = "Nothing keeps another process from executing %s, too: %s"
                logger.warning(message, what, error)
            yield None if lease is None else HeldLease(heartbeat, lease, what, required)
    except Exception as error:
        if lease is not None and lease.lost:
            raise _lost(what, claim) from error
        raise
    finally:
        if lease is not None and not lease.lost:
            await _release(heartbeat, lease)


def _expire(deadline: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # the block is over
        deadline.reschedule(asyncio.get_running_loop().time())


@dataclass(frozen=True, eq=False, slots=True)
class HeldLease:
    """A lease of a run that is under way here.

    Attributes:
        what: What is held, for messages.
        required: Whether nothing may be sent while the ledger does not say who holds it.
    """

    heartbeat: Heartbeat
    lease: Lease
    what: str
    required: bool

    async def confirm(self) -> None:
        """Make sure that it is still held, where that is not certain.

        Raises:
            RunLeaseError: It is not.
            LedgerUnavailableError: It can't be found out, and must be.
        """
        try:
            await asyncio.wrap_future(self.heartbeat.confirm())
        except LedgerUnavailableError:
            if self.required:
                raise
        if self.lease.lost:
            raise _lost(self.what, self.lease.claim)


Held = tuple[HeldLease, ...]
"""The leases of a run and of those around it."""


def _lost(what: str, claim: LeaseRequest) -> RunLeaseError:
    return RunLeaseError(
        f"Lost the lease on {what}: no heartbeat for FASTROAI_LEASE_SECONDS={claim.seconds:g}, so "
        "another process took over. Stopped here, nothing more is sent; finished steps are kept."
    )


async def _take(
    heartbeat: Heartbeat, claim: LeaseRequest, what: str, on_loss: Callable[[], None]
) -> Lease:
    waits = False
    pause = min(LONGEST_PAUSE, claim.seconds / 10)
    try:
        while True:
            taken = await asyncio.wrap_future(heartbeat.take(claim, on_loss))
            if isinstance(taken, Lease):
                if waits:
                    logger.warning("%s continues here.", _capital(what))
                return taken
            if not waits:
                logger.warning("%s", _notice(what, taken))
                waits = True
            await asyncio.sleep(pause)
    except asyncio.CancelledError:
        heartbeat.release(claim.token)  # it may just have been taken
        raise


def _notice(what: str, by: LeaseRecord) -> str:
    return (
        f"{_capital(what)} is executed by process {by.claim.pid} on {by.claim.host} since "
        f"{by.since:%Y-%m-%d %H:%M:%S} UTC. Waiting for it to finish, to reuse its results; "
        f"if it is dead, at most {by.claim.seconds:g} s."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


async def _release(heartbeat: Heartbeat, lease: Lease) -> None:
    released: Future[None]
    if lease.outcome is None:
        released = heartbeat.release(lease.claim.token)
    else:
        released = heartbeat.end(lease.claim.token, lease.outcome)
    done = asyncio.ensure_future(asyncio.wrap_future(released))
    try:
        await asyncio.wait({done}, timeout=RELEASE_PATIENCE)
    finally:
        if done.done() and not done.cancelled() and (error := done.exception()) is not None:
            logger.warning("A lease could not be given up and ends by itself: %s", error)


class GuardedStore:
    """A ledger for a run that holds leases: a request is refused once one of them was lost."""

    def __init__(self, store: LedgerStore, held: Held) -> None:
        self._store = store
        self._held = held
        self.settle = store.settle
        self.flush = store.flush
        self.entries = store.entries
        self.end_run = store.end_run

    async def intend(self, entry: LedgerEntry) -> LedgerEntry:
        """Book a request that is about to be sent, and make sure that the run may still send it.

        Returns:
            Its entry, as `SqlStore.intend`.

        Raises:
            RunLeaseError: It may not; `RequestRecorder.intend` books the request as refused.
            LedgerUnavailableError: It can't be booked, and it is required that it is.
        """
        booked = await self._store.intend(entry)
        for held in self._held:
            if not held.lease.is_certain:
                await held.confirm()
        return booked
