"""Showing a state that many processes change, so that what is shown last is never an older one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .heartbeat import Heartbeat, Lease
from .table import LeaseRequest

PAUSE = 0.05
"""Seconds between two looks at whether it is one's turn."""


async def show_latest(
    heartbeat: Heartbeat, claim: LeaseRequest, show: Callable[[], Awaitable[None]]
) -> bool:
    """Read a state and write it where others see it, one process after the other; or leave that to
    one that begins later than this was called, and so reads all that was changed before.

    Whoever has the lease reads within it what it writes within it: what is written later was read
    later. So of many who come at once, one or two write.

    Args:
        show: Reads and writes. It is called again where the lease was lost meanwhile.

    Returns:
        Whether it was this one who wrote.

    Raises:
        LedgerUnavailableError: Nobody can say whose turn it is.
    """
    first: str | None = None
    try:
        while True:
            taken = await asyncio.wrap_future(heartbeat.take(claim, _nothing))
            if isinstance(taken, Lease):
                await show()
                if taken.is_certain:
                    return True
                continue
            holder = taken.claim.token
            first = first or holder
            if holder != first:
                return False  # it began after this was called
            await asyncio.sleep(PAUSE)
    finally:
        heartbeat.release(claim.token)  # also where it may just have been taken


def _nothing() -> None:
    """A loss is looked for once what is shown is written."""
