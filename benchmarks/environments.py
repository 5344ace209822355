"""Environments of their own for what we are measured beside, below `.bench/`."""

from __future__ import annotations

import json
import platform
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

from .workers import ROOT, progress

FOLDER = ROOT / ".bench"
CONSTRAINTS = ("--constraint", str(ROOT / "constraints.txt"))


def python_with(name: str, requirements: Sequence[str], *options: str) -> Path | None:
    """The interpreter of an environment that has these packages; made where it is missing or was
    made for others.

    Args:
        name: Of its folder.
        options: For `pip install`.

    Returns:
        None where they can't be installed here: their rows stay empty then, and the report says so.
    """
    folder = FOLDER / name
    python, made_for = folder / "bin" / "python", folder / "made-for.json"
    wanted = json.dumps([platform.python_version(), *requirements, *options])
    if made_for.exists() and made_for.read_text() == wanted:
        return python
    progress(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, *install, *options, *requirements], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        progress(f"{', '.join(requirements)} can't be installed: {error}")
        return None
    made_for.write_text(wanted)
    return python
