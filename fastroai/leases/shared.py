"""The heartbeat of this process, one for each ledger."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

from ..database.location import MEMORY, configured_url, default_url

if TYPE_CHECKING:
    from .heartbeat import Heartbeat


def configured_heartbeat() -> Heartbeat:
    """What holds leases in the ledger that `FASTROAI_LEDGER_URL` names, or else the default one;
    one per process.

    Raises:
        LedgerUnavailableError: The URL is of no database a ledger can be kept in.
    """
    from ..database.engine import Database, database_url
    from .heartbeat import Heartbeat
    from .table import MemoryTable, SqlTable

    url = configured_url() or default_url()
    with _sharing:
        key = url, os.getpid()  # after a fork, the thread and what it holds are the parent's
        if key not in _heartbeats:
            table = (
                MemoryTable()
                if url == MEMORY
                else SqlTable(Database(database_url(url), writes=True))
            )
            _heartbeats[key] = Heartbeat(table)
        return _heartbeats[key]


_sharing = threading.Lock()
_heartbeats: dict[tuple[str, int], Heartbeat] = {}


@atexit.register
def _stop_heartbeats() -> None:
    for (_, pid), heartbeat in _heartbeats.items():
        if pid == os.getpid():
            heartbeat.stop(_EXIT_PATIENCE)


_EXIT_PATIENCE = 5.0
"""Seconds a process waits at its end for its last leases to be given up."""
