"""`fastroai runs`: lists runs with what they cost, and resumes dead and paused ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from ..environment import variable
from ..errors import FastroAIError
from .exit_codes import FAILED, UsageError, complain
from .on_server import on_server
from .run_list import list_runs, show
from .shutdown import run_until_terminated

if TYPE_CHECKING:
    from ..executors.prefect import TrackedRun

runs = App(name="runs", help_format="markdown")
runs.default(list_runs)
runs.command(show)


@runs.command
def resume(
    *names: Annotated[str, Parameter(name="RUN")],
    all_: Annotated[bool, Parameter(name="--all")] = False,
    budget: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Resume dead or paused runs where they stopped.

    Runs of deployments are put back for a worker. Other dead ones are marked as crashed, with what
    resumes them.

    Args:
        names: A run's id, or its first characters.
        all_: All dead runs; paused ones wait for somebody who names them.
        budget: USD: the new limit of the run's or step's budget at which it paused, for this run.
            `fastroai budgets raise` raises a standing one.
    """
    if bool(names) == all_:
        raise UsageError("Specify which runs to resume: RUN …, or --all.")
    if budget is not None and len(names) != 1:
        raise UsageError("--budget raises the budget of one run: name that one.")
    usd = None if budget is None else _amount(budget)
    refuse_in_memory()
    return run_until_terminated(on_server(_resume_chosen(names, usd)))


def _amount(budget: str) -> Decimal:
    from ..budgets.budget import amount

    try:
        return amount("--budget", budget)
    except ValueError as error:
        raise UsageError(str(error)) from error


def refuse_in_memory() -> None:
    """Say that there are no runs to come back to where none is under Prefect."""
    if variable("EXECUTOR") == "memory":
        raise UsageError(
            "With FASTROAI_EXECUTOR=memory a run ends with its process, and none can be "
            "resumed. For runs under Prefect, set FASTROAI_EXECUTOR=prefect."
        )


async def _resume_chosen(names: Sequence[str], usd: Decimal | None) -> int:
    from ..executors.prefect import resume_run, tracked_runs
    from ..settings import load_settings

    settings = load_settings()
    found, _ = await tracked_runs(settings)
    chosen = [find_run(name, found) for name in names] or dead_runs(found)
    code = 0
    for run in chosen:
        try:
            sys.stdout.write(await resume_run(run, settings, usd) + "\n")
        except FastroAIError as error:
            complain(error)
            code = FAILED
    return code


def dead_runs(runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """Those whose process died."""
    return [run for run in runs if run.is_dead]


def find_run(name: str, found: Sequence[TrackedRun]) -> TrackedRun:
    """The one run that an id, or its beginning, names."""
    matching = [run for run in found if str(run.flow_run.id).startswith(name.lower())]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{name!r} matches {len(matching)} runs. Give more of the id.")
    raise UsageError(
        f"No active, dead or paused run matches {name!r}. `fastroai runs` lists them; a run is "
        "known where it writes to the same FASTROAI_LEDGER_URL."
    )
