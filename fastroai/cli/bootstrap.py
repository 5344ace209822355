"""`fastroai bootstrap`: what a Prefect server needs besides deployments."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .on_server import on_server

if TYPE_CHECKING:
    from ..executors.prefect import Change


def bootstrap(*, dry_run: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Make what the project in this folder needs on the Prefect server besides its deployments.

    The work pools of prefect.yaml, and the variables, limits and secrets of
    deployments/bootstrap.yaml. What is there already is left alone; values of secrets are read from
    this command's environment and never shown.

    Args:
        dry_run: Only say what would be changed.
    """
    changes: list[Change] = []

    def tell(change: Change) -> None:
        changes.append(change)
        sys.stdout.write(f"{change}\n")

    asyncio.run(on_server(_make(tell, dry_run)))
    if not changes:
        sys.stdout.write("Nothing is to be changed.\n")


async def _make(tell: Callable[[Change], None], dry_run: bool) -> None:
    from ..executors.prefect import bootstrap as make
    from ..kit.essentials_file import read_essentials

    await make(read_essentials(Path.cwd()), tell, dry_run=dry_run)
