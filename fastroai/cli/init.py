"""`fastroai init NAME`: a new project, or what an existing one lacks to be deployed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import ProjectError
from ..kit.scaffold import Written, add_deployment, new_project
from .exit_codes import UsageError, as_wrong_usage


def init(
    name: Annotated[str | None, Parameter(name="NAME")] = None, /, *, existing: bool = False
) -> None:
    """Start a project that runs, passes its tests and can be deployed as it is.

    Args:
        name: The folder that is made; its last part is the project's name.
        existing: Add what a project with pipelines lacks to be deployed, here or in the folder
            NAME. No file that is there is changed.
    """
    if name is None and not existing:
        raise UsageError(
            "Name the project: `fastroai init NAME`. In one that has pipelines: `fastroai init "
            "--existing`."
        )
    with as_wrong_usage(ProjectError):
        folder = Path(name or ".")
        written = add_deployment(folder) if existing else new_project(folder)
    report(written, existing)


def report(written: Written, existing: bool) -> None:
    """Say what was written, and what comes next."""
    out = sys.stdout
    out.writelines(f"  made  {path}\n" for path in written.made)
    out.writelines(f"  kept  {path}\n" for path in written.kept)
    if "prefect.yaml" in written.kept:
        flows = ", ".join(written.flows)
        out.write(f"\nprefect.yaml was there: see that it deploys {flows}.\n")
    if existing:
        out.write(
            "\nrequirements.txt has to list what the project needs, deployments/entrypoints.py the "
            "deps of its pipelines.\nThen: `fastroai up`, `fastroai doctor`.\n"
        )
    else:
        out.write(f"\nNext: `cd {written.folder}`, and what its README.md says.\n")
