"""Cases that can't be said by one answer: tests/cases/behaviour, a script each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support import forked

FOLDER = Path(__file__).parents[1] / "cases" / "behaviour"
SHARED = {"common", "background", "batches", "reconciling"}
"""Modules that the scripts import."""
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SHARED)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_the_books_as_it_expects(script: Path) -> None:
    ended = forked.run([sys.executable, str(script)], env=dict(os.environ), capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
