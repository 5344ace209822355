"""The variables that settings are read from: of the process, and of a `.env` file."""

from __future__ import annotations

import os

PREFIX = "FASTROAI_"
DOTENV = ".env"


def process_environment() -> dict[str, str]:
    """All variables, for a process that is started; settings are read with `load_settings`."""
    return dict(os.environ)


def variable(name: str) -> str | None:
    """What `FASTROAI_{name}` is set to, for a command that is to start faster than settings can be
    imported. As settings read it, but the text is not validated. None: it is not set, or empty.
    """
    from dotenv import dotenv_values

    wanted = f"{PREFIX}{name}".lower()
    for variables in (os.environ, dotenv_values(DOTENV)):
        found = {key.lower(): value for key, value in variables.items()}.get(wanted)
        if found:
            return found
    return None
