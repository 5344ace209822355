"""`fastroai runs`: which runs are under way under Prefect, which died, and how they go on."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FastroAIError
from .exit_codes import FAILED, UsageError, complain
from .shutdown import run_until_terminated

if TYPE_CHECKING:
    from ..executors._prefect.zombie_runs import TrackedRun


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `runs` to the parser's commands."""
    runs = commands.add_parser(
        "runs",
        help="list runs under way and dead ones, and resume those",
        description=(
            "List the runs that write to this ledger and are under way, or whose process died."
        ),
    )
    runs.set_defaults(execute=_list)
    actions = runs.add_subparsers(metavar="ACTION")
    resume = actions.add_parser(
        "resume",
        help="have dead runs go on where they stopped",
        description=(
            "Put dead runs of deployments back for a worker; mark others as crashed, and say how "
            "they go on."
        ),
    )
    resume.add_argument("runs", metavar="RUN", nargs="*", help="a run's id, or how it begins")
    resume.add_argument("--all", action="store_true", help="all dead runs")
    resume.set_defaults(execute=_resume)


def _list(arguments: argparse.Namespace) -> int:
    reported, runs, elsewhere = asyncio.run(_on_server(_read_runs()))
    sys.stdout.write("".join(f"{line}\n" for line in reported))
    sys.stdout.write(table(runs) if runs else "No run is under way, and none died.\n")
    if elsewhere:
        sys.stdout.write(f"{elsewhere} more of this ledger are unknown to this Prefect server.\n")
    dead = sum(run.is_dead for run in runs)
    if dead:
        sys.stdout.write(f"\n{dead} dead: `fastroai runs resume RUN`, or `--all`.\n")
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    if bool(arguments.runs) == arguments.all:
        raise UsageError("Say which runs to resume: RUN …, or --all.")
    code: int = run_until_terminated(_on_server(_resume_chosen(arguments.runs)))
    return code


async def _read_runs() -> tuple[list[str], list[TrackedRun], int]:
    from ..executors._prefect.zombie_runs import report_ended_runs, tracked_runs

    return await report_ended_runs(), *await tracked_runs()


async def _on_server(work: Any) -> Any:
    from ..executors._prefect.server import check_server

    try:
        await check_server()
    except BaseException:
        work.close()
        raise
    return await work


async def _resume_chosen(names: Sequence[str]) -> int:
    from ..executors._prefect.zombie_runs import resume, tracked_runs

    runs, _ = await tracked_runs()
    code = 0
    for run in [_find(name, runs) for name in names] or [run for run in runs if run.is_dead]:
        try:
            sys.stdout.write(await resume(run) + "\n")
        except FastroAIError as error:
            complain(error)
            code = FAILED
    return code


def _find(name: str, runs: Sequence[TrackedRun]) -> TrackedRun:
    found = [run for run in runs if str(run.flow_run.id).startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} begins the ids of {len(found)} runs: give more of it.")
    raise UsageError(
        f"Nothing is known of a run {name!r} that is under way or died. `fastroai runs` lists "
        "those that are; a run is known where it writes to the same FASTROAI_LEDGER_URL."
    )


_HEADINGS = ("id", "pipeline", "name", "deployment", "state", "since (UTC)", "heard of", "")


def table(runs: Sequence[TrackedRun]) -> str:
    """The runs as lines, the oldest first."""
    rows = [_HEADINGS, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def _row(run: TrackedRun) -> tuple[str, ...]:
    holding = run.holding
    return (
        str(run.flow_run.id),
        holding.claim.pipeline or "-",
        run.flow_run.name,
        run.deployment or "-",
        run.state,
        f"{holding.since:%Y-%m-%d %H:%M:%S}",
        f"{_ago(holding.silent)} ago",
        "DEAD" if run.is_dead else "alive",
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
