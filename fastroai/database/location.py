"""The URL of the ledger: as configured, or this user's own."""

from __future__ import annotations

from pathlib import Path

MEMORY = "memory://"


def default_url() -> str:
    """The ledger of this user: `~/.fastroai/ledger.db`."""
    return f"sqlite:///{user_folder() / 'ledger.db'}"


def configured_url() -> str | None:
    from ..settings import load_settings

    url = load_settings().ledger_url
    return None if url is None else url.get_secret_value()


def user_folder() -> Path:
    return Path.home() / ".fastroai"
