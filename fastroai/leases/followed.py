"""Leases of a run that is under way in another process, as one that works for it sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ..errors import LedgerUnavailableError, RunLeaseError
from ..settings import FastroAISettings
from .heartbeat import Lease, now
from .run_lease import Held, HeldLease
from .shared import configured_heartbeat
from .table import LeaseRecord, LeaseRequest

LOOK = 1.0
"""Seconds after which it is looked at again whether a run elsewhere still goes on."""


class FollowedLease(HeldLease):
    """A lease that another process holds: nothing more is sent for it once it does not."""

    __slots__ = ()

    async def confirm(self) -> None:
        """Make sure that it is still held, where that is not certain.

        Raises:
            RunLeaseError: It is not.
            LedgerUnavailableError: It can't be found out, and must be.
        """
        asked_at, claim = now(), self.lease.claim
        try:
            found = await asyncio.wrap_future(self.heartbeat.holdings(claim.kind))
        except LedgerUnavailableError:
            if self.required:
                raise
            return
        record = _of(claim, found)
        if record is None or not record.is_alive:
            self.lease.lost = True
            raise RunLeaseError(
                f"{self.what} has ended, or had no heartbeat for FASTROAI_LEASE_SECONDS="
                f"{claim.seconds:g}: nothing more is sent for it."
            )
        # It may be let go at any time; without a heartbeat it ends by itself.
        certain = min(LOOK, claim.seconds - abs(record.silent))
        self.lease.seen = asked_at + certain - claim.seconds


def _of(claim: LeaseRequest, records: Iterable[LeaseRecord]) -> LeaseRecord | None:
    """What is held by a claim."""
    return next((record for record in records if record.claim.token == claim.token), None)


def follow(claims: Iterable[LeaseRequest], settings: FastroAISettings) -> Held:
    """The leases by the claims of those who hold them; each is looked at before the first request.

    Raises:
        LedgerUnavailableError: The ledger's URL is of no database.
    """
    return tuple(
        FollowedLease(
            configured_heartbeat(settings),
            Lease(claim, seen=float("-inf"), on_loss=_nothing),
            f"The run of {claim.pipeline!r} that this step is of",
            settings.ledger_required,
        )
        for claim in claims
    )


def _nothing() -> None: ...
