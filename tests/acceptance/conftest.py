"""Commands as a user types them, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import forked

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 150.0
"""Seconds after which a command counts as hanging."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command() -> Command:
    """Run a module as a program in the repository, with the test's environment and what is given on
    top.
    """

    def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return forked.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PWD": str(REPOSITORY)} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return run


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Two documents."""
    folder = tmp_path / "minutes"
    folder.mkdir()
    (folder / "mill.md").write_text(
        "# Mill\n\nThe mill grinds 40 tons of rye. The miller must repair the wheel.\n"
    )
    (folder / "harbour.txt").write_text(
        "The harbour ships timber to Hull. It is unclear who pays for the crane.\n"
    )
    return folder
