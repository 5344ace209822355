"""Rate limits: requests wait for their turn, so that a provider need not refuse them.

Kept in the ledger's database, which both executors have, and not by Prefect's concurrency limits:
a turn there is two requests to its server, and what it counts can't be corrected by what an answer
used. Here one transaction serves all who wait in a process. docs/rate-limits.md has the figures.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING

from ..database.registry import OPEN_LEDGERS
from .answer_headers import Told, told_by
from .limiter import RateLimiter
from .pools import NOTHING, Amounts
from .shared_pools import OwnPools, SharedPools
from .turns import Route, Turn

if TYPE_CHECKING:
    from ..settings import FastroAISettings

__all__ = [
    "LIMITERS",
    "NOTHING",
    "Amounts",
    "RateLimiter",
    "Route",
    "Told",
    "Turn",
    "limit_requests",
    "limiter_of",
    "told_by",
]

LIMITERS: defaultdict[str | None, list[RateLimiter]] = defaultdict(list)
"""By the ledger's URL, what requests must pass: one, or none as long as nothing limits them. Of the
process, as what answers say holds for all of its runs, which have these very lists.
"""


def _leave_the_parents() -> None:
    for limiters in LIMITERS.values():
        limiters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_parents)


def limit_requests(settings: FastroAISettings, ledger_url: str | None) -> None:
    """Have all requests that are booked in a ledger fit the limits of `FASTROAI_RATE_LIMITS`.

    Args:
        ledger_url: None: there is none, and they are of this process only.
    """
    if settings.rate_limits or LIMITERS[ledger_url]:
        limiter = limiter_of(ledger_url, settings.lease_seconds)
        limiter.configure(settings.rate_limits, settings.provider_hosts)


def limiter_of(ledger_url: str | None, lease: float = 30.0) -> RateLimiter:
    """What requests must pass that are booked in a ledger; made when first asked for.

    Args:
        lease: Seconds without a heartbeat after which what a process has under way counts no more.
    """

    def make() -> RateLimiter:
        return RateLimiter(_shared(ledger_url), lease=lease)

    limiters = LIMITERS[ledger_url]
    if not limiters:
        limiters.append(OPEN_LEDGERS.shared(("rate limits", ledger_url), make))
    return limiters[0]


def _shared(ledger_url: str | None) -> SharedPools:
    if ledger_url is None:
        return OwnPools()
    # Only here: a run without a ledger needs no SQLAlchemy.
    from ..database.engine import database_url, open_database
    from .ledger_pools import LedgerPools

    return LedgerPools(open_database(database_url(ledger_url), writes=True, keeps=False))
