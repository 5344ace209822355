"""`fastroai runs`: lists active, dead and paused runs under Prefect, and resumes them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import App, Parameter

from ..database.location import ledger_url
from ..environment import variable
from ..errors import FastroAIError
from ..leases.shared import has_flow_runs
from .exit_codes import FAILED, UsageError, complain
from .rendering.console import console
from .rendering.tables import Cell, Column, print_table
from .shutdown import run_until_terminated

if TYPE_CHECKING:
    from ..executors.prefect import TrackedRun

T = TypeVar("T")

runs = App(name="runs", help_format="markdown")


@runs.default
def list_runs() -> None:
    """List active, dead and paused runs, the oldest first."""
    refuse_in_memory()
    reported: list[str] = []
    found: list[TrackedRun] = []
    elsewhere = 0
    # Most ledgers have none, and say so before Prefect could be imported.
    if has_flow_runs(ledger_url()):
        reported, found, elsewhere = asyncio.run(on_server(_read_runs()))
    sys.stdout.writelines(f"{line}\n" for line in reported)
    if found:
        print_table(console(), _COLUMNS, [row_of(run) for run in found])
    else:
        sys.stdout.write("No active or dead runs.\n")
    if elsewhere:
        sys.stdout.write(f"{elsewhere} more of this ledger are unknown to this Prefect server.\n")
    if dead := len(dead_runs(found)):
        sys.stdout.write(f"\n{dead} dead: `fastroai runs resume RUN`, or `--all`.\n")
    if paused := sum(run.is_paused for run in found):
        advice = "`fastroai runs resume RUN`, with `--budget USD` to raise its own budget"
        sys.stdout.write(f"\n{paused} paused: {advice}.\n")


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


async def _read_runs() -> tuple[list[str], list[TrackedRun], int]:
    from ..executors.prefect import report_ended_runs, tracked_runs
    from ..settings import load_settings

    settings = load_settings()
    return await report_ended_runs(settings), *await tracked_runs(settings)


def refuse_in_memory() -> None:
    """Say that there are no runs to come back to where none is under Prefect."""
    if variable("EXECUTOR") == "memory":
        raise UsageError(
            "With FASTROAI_EXECUTOR=memory a run ends with its process, and none can be "
            "resumed. For runs under Prefect, set FASTROAI_EXECUTOR=prefect."
        )


async def on_server(work: Coroutine[Any, Any, T]) -> T:
    """Do something on Prefect's server that is configured, once it answers.

    Raises:
        ExecutorUnavailableError: None is, or it does not.
    """
    try:
        from ..executors.prefect import check_server, configured_server

        configured_server()
        await check_server()
    except BaseException:
        work.close()
        raise
    return await work


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


_COLUMNS = (
    Column("id", shortest=36),
    Column("pipeline", shortest=12),
    Column("name", shortest=12),
    Column("deployment", shortest=12),
    Column("state", shortest=9),
    Column("since (UTC)", shortest=19),
    Column("last heartbeat", shortest=10),
    Column("", shortest=5),
)


def row_of(run: TrackedRun) -> tuple[Cell, ...]:
    """A run, for the table."""
    return (
        str(run.flow_run.id),
        run.holding.claim.pipeline or "-",
        run.flow_run.name,
        run.deployment or "-",
        run.state,
        f"{run.holding.since:%Y-%m-%d %H:%M:%S}",
        f"{ago(run.holding.silent)} ago",
        "DEAD" if run.is_dead else "PAUSED" if run.is_paused else "alive",
    )


def ago(seconds: float) -> str:
    """Seconds in a larger unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
