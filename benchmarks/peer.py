"""fastroai 0.6.1, the published version we are measured beside, in an environment of its own."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from .environments import CONSTRAINTS, python_with

VERSION = "0.6.1"


def peer_python() -> Path | None:
    """The peer's interpreter, with the same pydantic-ai as ours; None where it can't be
    installed.
    """
    requirements = (f"fastroai=={VERSION}", f"pydantic-ai=={version('pydantic-ai')}")
    return python_with("peer", requirements, *CONSTRAINTS)
