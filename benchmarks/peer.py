"""fastroai 0.6.1, the published version we are measured beside, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from .workers import ROOT, progress

VERSION = "0.6.1"
FOLDER = ROOT / ".bench" / "peer"
PYTHON = FOLDER / "bin" / "python"
_NO_NAGGING = ("--disable-pip-version-check",)
_CONSTRAINED = ("--constraint", str(ROOT / "constraints.txt"))
_ASK = (
    "import importlib.metadata as m, sys; print(sys.version_info[:3], m.version('fastroai'), "
    "m.version('pydantic-ai'))"
)


def peer_python() -> Path | None:
    """The peer's interpreter; its environment is made when missing or not of our versions.

    Returns:
        None when it cannot be installed here: its columns stay empty then, and the report says so.
    """
    if _installed() == _wanted():
        return PYTHON
    progress(f"installing fastroai {VERSION} from the index into .bench/peer")
    try:
        venv.create(FOLDER, clear=True, with_pip=True)
        subprocess.run(
            [
                PYTHON,
                "-m",
                "pip",
                "install",
                "--quiet",
                *_NO_NAGGING,
                *_CONSTRAINED,
                f"fastroai=={VERSION}",
            ],
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        progress(f"fastroai {VERSION} could not be installed and is left out: {error}")
        return None
    return PYTHON


def _wanted() -> str:
    from importlib.metadata import version

    return f"{sys.version_info[:3]} {VERSION} {version('pydantic-ai')}"


def _installed() -> str | None:
    if not PYTHON.exists():
        return None
    # -P and a folder without a fastroai in it: the checkout must not be taken for the installed
    # one.
    answer = subprocess.run([PYTHON, "-P", "-c", _ASK], capture_output=True, text=True, cwd=FOLDER)
    return answer.stdout.strip() if answer.returncode == 0 else None
