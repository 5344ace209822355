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


def ledger_url(settings: FastroAISettings | None = None) -> str:
    """What `FASTROAI_LEDGER_URL` names, with its password, or else the ledger of this user:
    `~/.fastroai/ledger.db`.

    Args:
        settings: None: as the variable stands, unchecked. To import the settings takes longer than
            to read a small ledger.
    """
    if settings is None:
        named = variable("LEDGER_URL")
    else:
        named = settings.ledger_url.get_secret_value() if settings.ledger_url else None
    return named or own_ledger()


def own_ledger() -> str:
    """The ledger of this user."""
    return f"sqlite:///{FOLDER.expanduser()}/ledger.db"
