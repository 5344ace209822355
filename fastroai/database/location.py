"""The URL of the ledger: as configured, or this user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..environment import variable

if TYPE_CHECKING:
    from ..settings import FastroAISettings

MEMORY = "memory://"


def default_url() -> str:
    """The ledger of this user: `~/.fastroai/ledger.db`."""
    return f"sqlite:///{user_folder() / 'ledger.db'}"


def unvalidated_url() -> str:
    """What `FASTROAI_LEDGER_URL` names, or else the default one; without the settings, which take
    longer to import than a small ledger to read.
    """
    return variable("LEDGER_URL") or default_url()


def ledger_url(settings: FastroAISettings) -> str:
    """What `FASTROAI_LEDGER_URL` names, with its password, or else the default one."""
    url = settings.ledger_url
    return default_url() if url is None else url.get_secret_value()


def user_folder() -> Path:
    return Path.home() / ".fastroai"
