"""The URL of the ledger: as configured, or this user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..environment import variable

if TYPE_CHECKING:
    from ..settings import FastroAISettings

MEMORY = "memory://"
FOLDER = Path("~/.fastroai")
"""Where the ledger of a user is who names none, and the entries that could not be written yet."""


def default_url() -> str:
    """The ledger of this user: `~/.fastroai/ledger.db`."""
    return f"sqlite:///{FOLDER.expanduser()}/ledger.db"


def unvalidated_url() -> str:
    """What `FASTROAI_LEDGER_URL` names, or else the default one; without the settings, which take
    longer to import than a small ledger to read.
    """
    return variable("LEDGER_URL") or default_url()


def ledger_url(settings: FastroAISettings) -> str:
    """What `FASTROAI_LEDGER_URL` names, with its password, or else the default one."""
    url = settings.ledger_url
    return default_url() if url is None else url.get_secret_value()
