"""The heartbeat of this process, one for each ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..database.location import ledger_url
from ..database.registry import OPEN_LEDGERS

if TYPE_CHECKING:
    from ..settings import FastroAISettings
    from .heartbeat import Heartbeat
    from .table import LeaseRecord


def configured_heartbeat(settings: FastroAISettings) -> Heartbeat:
    """What holds leases in the ledger that `FASTROAI_LEDGER_URL` names, or else the default one;
    one per process.

    Raises:
        LedgerUnavailableError: The URL is of no database a ledger can be kept in.
    """
    url = ledger_url(settings)
    # Only here: a run without a run_key needs neither leases nor SQLAlchemy.
    from ..database.engine import database_url, open_database
    from .heartbeat import Heartbeat
    from .table import LeaseTable

    def make() -> Heartbeat:
        return Heartbeat(LeaseTable(open_database(database_url(url), writes=True)))

    return OPEN_LEDGERS.shared(("heartbeat", url), make)


def read_flow_runs(url: str) -> tuple[list[LeaseRecord], bool]:
    """The flow runs that hold a lease in a ledger or are paused, dead ones too; and whether others
    left there how they ended. Blocks; without settings and a thread, for a command that has nothing
    else to do.

    Raises:
        LedgerUnavailableError: The ledger can't be read.
    """
    from ..database.engine import database_url, open_database
    from .table import LeaseTable

    database = open_database(database_url(url), writes=True)
    try:
        table = LeaseTable(database)
        if not database.has_ledger():
            return [], False
        held = [*table.holdings("suspended_run"), *table.holdings("flow_run")]
        return held, bool(table.ended())
    except Exception as error:
        raise database.unavailable(error) from error
    finally:
        database.close()
