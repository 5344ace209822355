"""`fastroai runs` and `runs show`: what the last runs were and cost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ..database.location import ledger_url
from ..environment import process_environment
from ..errors import ExecutorUnavailableError, LedgerNotFoundError
from ..leases.shared import read_flow_runs
from ..ledger.aggregation import Totals, whole_of
from ..ledger.history import BookedRun
from ..ledger.ledger import Ledger
from .costs.filters import ALL, CONFIGURED, Filters, Source
from .costs.report import cache_cell, paid, remark_on_simulated
from .exit_codes import UsageError
from .listed_runs import ListedRun, clock, run_json, steps_json, steps_of, took
from .on_server import on_server
from .rendering.console import console, printable, prose, write_json
from .rendering.tables import Amount, Cell, Column, print_table

if TYPE_CHECKING:
    from ..executors.prefect import RunPage, TrackedRun

_COLUMNS = (
    Column("id", shortest=36),
    Column("name", shortest=12, rank=4),
    Column("pipeline", shortest=12, rank=5),
    Column("deployment", shortest=12, rank=2),
    Column("state", shortest=9),
    Column("started (UTC)", shortest=19, rank=1),
    Column("took", shortest=5, rank=6),
    Column("requests", rank=7),
    Column("USD"),
    Column("page in Prefect", shortest=40, rank=8),
    Column("", shortest=6),
)
_STEP_COLUMNS = (
    Column("step", shortest=12),
    Column("model", shortest=12, rank=1),
    Column("state", shortest=9, rank=2),
    Column("took", shortest=5, rank=4),
    Column("requests", rank=3),
    Column("replayed", rank=5),
    Column("input tokens", rank=6),
    Column("output tokens", rank=6),
    Column("USD"),
    Column("caching saved USD", rank=3),
)
_MOST_MATCHES = 10


def list_runs(
    *,
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 20,
    filters: Filters = ALL,
    source: Source = CONFIGURED,
) -> None:
    """List the last runs with what they cost, the latest first.

    From the ledger: a run that sent no request is not in it. Names, states, times and pages are
    Prefect's, where its server answers.

    Args:
        limit: How many; default: 20. Active, dead and paused ones come on top of that.
    """
    found = asyncio.run(_read_runs(source, filters, limit))
    if source.json:
        sys.stderr.writelines(f"{line}\n" for line in [*found.reported, *found.remarks])
        write_json(
            {
                "filters": filters.as_json(),
                "currency": "USD",
                "runs": list(map(run_json, found.runs)),
            }
        )
        return
    sys.stdout.writelines(f"{line}\n" for line in found.reported)
    if found.runs:
        _write_table(found.runs)
    elif filters:
        sys.stdout.write(f"No run matches: {printable(str(filters))}.\n")
    if not (filters or any(run.lease for run in found.runs)):
        sys.stdout.write("No active or dead runs.\n")
    sys.stdout.writelines(f"{line}\n" for line in [*found.remarks, *_advice_on(found.runs)])


def _write_table(runs: Sequence[ListedRun]) -> None:
    out = console()
    print_table(out, _COLUMNS, list(map(_row_of, runs)))
    _say_what_was_simulated(out, whole_of([run.totals for run in runs]))


def _say_what_was_simulated(out: Console, total: Totals) -> None:
    if total.simulated:
        prose(out, f"\n{remark_on_simulated(total)}")


def show(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    source: Source = CONFIGURED,
) -> None:
    """Show one run with what each of its steps cost, by model.

    Args:
        run: Its id, or its first characters; the latest one of a run key by that.
    """
    found, steps, remarks = asyncio.run(_read_run(source, run))
    if source.json:
        sys.stderr.writelines(f"{line}\n" for line in remarks)
        write_json(run_json(found) | {"steps": list(steps_json(found, steps))})
        return
    out = console()
    for line in _described(found):
        prose(out, line)
    out.print()
    rows = list(_step_rows(found, steps))
    total: tuple[Cell, ...] = ("total", "", "", "", *_measures(found.totals))
    columns: Sequence[Column] = _STEP_COLUMNS
    if not found.totals.cached_tokens:
        columns, rows, total = columns[:-1], [row[:-1] for row in rows], total[:-1]
    print_table(out, columns, rows, total=total)
    _say_what_was_simulated(out, found.totals)
    sys.stdout.writelines(f"{line}\n" for line in remarks)


@dataclass(slots=True)
class _Runs:
    runs: list[ListedRun] = field(default_factory=list)
    reported: Sequence[str] = ()
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _InPrefect:
    """What its server says.

    Attributes:
        reported: What was reported to it first, in words.
        elsewhere: How many of the tracked runs it does not know.
        answered: Whether it was asked and said something.
    """

    pages: Mapping[str, RunPage] = field(default_factory=dict)
    reported: Sequence[str] = ()
    tracked: Sequence[TrackedRun] = ()
    elsewhere: int = 0
    answered: bool = False


async def _booked_runs(source: Source, filters: Filters, limit: int) -> Sequence[BookedRun]:
    """The last runs in the ledger; none where this user has no ledger yet, which is no error."""
    try:
        async with Ledger.open(source.ledger or ledger_url(), create=False) as ledger:
            return await ledger.runs(most=limit, **filters.as_arguments())
    except LedgerNotFoundError:
        if source.ledger is not None:
            raise
        return ()


async def _read_runs(source: Source, filters: Filters, limit: int) -> _Runs:
    url = source.ledger or ledger_url()
    booked = await _booked_runs(source, filters, limit)
    held, have_ended = read_flow_runs(url)
    leases = {record.claim.name: record for record in held}
    of_run = {run.run_id: run for run in booked}
    ids = of_run if filters else of_run | dict.fromkeys(leases)
    # Prefect is imported where it can say something only: that takes a second.
    asks = bool(held or have_ended or (booked and prefect_may_be_set()))
    is_own = url == ledger_url()
    found = _InPrefect()
    remarks: list[str] = []
    if asks:
        found, remarks = await _answered(_from_prefect(ids, is_own=is_own), found)
    tracked = {str(run.flow_run.id): run for run in found.tracked}
    if is_own and found.answered:
        # What has ended meanwhile is no longer tracked, and what is unknown there was moved away.
        leases = {name: lease for name, lease in leases.items() if name in tracked}
        ids = {name: run for name, run in ids.items() if name in of_run or name in leases}
    if found.elsewhere:
        remarks.append(f"{found.elsewhere} more of this ledger are unknown to this Prefect server.")
    runs = [
        ListedRun(
            name, of_run.get(name), found.pages.get(name), tracked.get(name), leases.get(name)
        )
        for name in ids
    ]
    runs.sort(key=_started, reverse=True)
    return _Runs(runs, found.reported, remarks)


def _started(run: ListedRun) -> float:
    return run.started_at.timestamp() if run.started_at else 0.0


async def _read_run(source: Source, name: str) -> tuple[ListedRun, Sequence[RunPage], list[str]]:
    url = source.ledger or ledger_url()
    async with Ledger.open(url, create=False) as ledger:
        run_id = await _id_of(ledger, name)
        booked = await ledger.run(run_id)
    lease = {record.claim.name: record for record in read_flow_runs(url)[0]}.get(run_id)
    pages: Mapping[str, RunPage] = {}
    steps: Sequence[RunPage] = ()
    remarks: list[str] = []
    if prefect_may_be_set():
        (pages, steps), remarks = await _answered(_page_from_prefect(run_id), (pages, steps))
    return ListedRun(run_id, booked, pages.get(run_id), lease=lease), steps, remarks


async def _id_of(ledger: Ledger, name: str) -> str:
    found = await ledger.run_ids(name.lower(), most=_MOST_MATCHES)
    if name in found or len(found) == 1:
        return name if name in found else found[0]
    if found:
        number = (
            f"{len(found)} runs or more" if len(found) == _MOST_MATCHES else f"{len(found)} runs"
        )
        raise UsageError(f"{name!r} matches {number}. Give more of the id.")
    of_key = await ledger.runs(most=1, run_key=name)
    if not of_key:
        raise UsageError(
            f"No run in this ledger matches {name!r}. `fastroai runs` lists the last ones."
        )
    return of_key[0].run_id


def prefect_may_be_set() -> bool:
    """Whether a Prefect server may be configured, without importing Prefect to find out."""
    variables = process_environment()
    home = Path(variables.get("PREFECT_HOME") or "~/.prefect").expanduser()
    files = (home / "profiles.toml", Path("prefect.toml"))
    if any(name in variables for name in ("PREFECT_API_URL", "PREFECT_PROFILE")):
        return True
    return any(path.is_file() for path in files) or _names_prefect(Path(".env"))


def _names_prefect(path: Path) -> bool:
    return path.is_file() and "PREFECT_" in path.read_text(errors="replace")


T = TypeVar("T")


async def _answered(work: Coroutine[Any, Any, T], without: T) -> tuple[T, list[str]]:
    """What Prefect's server says, or what is known without it and why that is all."""
    try:
        return await on_server(work), []
    except ExecutorUnavailableError as error:
        reason = str(error).partition(". ")[0]
        return without, [f"From the ledger alone, without names, states and pages: {reason}."]


async def _from_prefect(run_ids: Iterable[str], *, is_own: bool) -> _InPrefect:
    from ..executors.prefect import read_run_pages, report_ended_runs, tracked_runs
    from ..settings import load_settings

    if not is_own:
        return _InPrefect(await read_run_pages(run_ids), answered=True)
    settings = load_settings()
    reported = await report_ended_runs(settings)
    tracked, elsewhere = await tracked_runs(settings)
    pages = await read_run_pages(run_ids)
    return _InPrefect(pages, reported, tracked, elsewhere, answered=True)


async def _page_from_prefect(
    run_id: str,
) -> tuple[Mapping[str, RunPage], Sequence[RunPage]]:
    from ..executors.prefect import read_run_pages, read_step_pages

    pages = await read_run_pages([run_id])
    return pages, await read_step_pages(run_id) if pages else ()


def _advice_on(runs: Sequence[ListedRun]) -> Iterator[str]:
    marks = [run.process for run in runs]
    if dead := marks.count("DEAD"):
        yield f"\n{dead} dead: `fastroai runs resume RUN`, or `--all`."
    if paused := marks.count("PAUSED"):
        advice = "`fastroai runs resume RUN`, with `--budget USD` to raise its own budget"
        yield f"\n{paused} paused: {advice}."


def _row_of(run: ListedRun) -> tuple[Cell, ...]:
    facts = run.facts
    texts = (facts[name] or "-" for name in ("id", "name", "pipeline", "deployment", "state"))
    times = clock(run.started_at), took(run.seconds)
    cost = run.totals.requests, cost_cell(run.totals)
    return (*texts, *times, *cost, facts["url"] or "-", run.process)


def cost_cell(totals: Totals) -> Cell:
    """What was paid, told apart from what is not known of it."""
    unknown = totals.unknown
    if unknown and not totals.charged and not totals.cost_usd:
        return None
    remark = f" + {unknown:,} unknown" if unknown else ""
    return Amount(paid(totals), remark)


def _described(run: ListedRun) -> Iterator[str]:
    facts = run.facts
    yield f"Run {facts['name'] or run.run_id}"
    known = {
        "id": run.run_id,
        "pipeline": facts["pipeline"],
        "deployment": facts["deployment"],
        "run key": facts["run_key"],
        "started by": facts["created_by"],
        "state": f"{run.state or '-'} {run.process}".strip(),
        "started": f"{clock(run.started_at)} UTC, took {took(run.seconds)}",
        "page": facts["url"],
    }
    yield from (f"  {name:<11} {value}" for name, value in known.items() if value)


def _measures(totals: Totals) -> tuple[Cell, ...]:
    tokens = totals.tokens
    return (
        totals.requests,
        totals.replayed,
        tokens.input_tokens,
        tokens.output_tokens,
        cost_cell(totals),
        cache_cell(totals),
    )


def _step_rows(run: ListedRun, pages: Sequence[RunPage]) -> Iterator[tuple[Cell, ...]]:
    for name, page, totals in steps_of(run, pages):
        model = totals.keys[1] if totals.keys else None
        state = (page.state, took(page.seconds)) if page else ("-", "-")
        yield (name or "-", model or "-", *state, *_measures(totals))
