"""`fastroai run MODULE:PIPELINE key=value …`: run a pipeline from the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from ..errors import InputValidationError, StepExecutionError
from ..executors import Executor, get_executor
from ..executors.session import recorders_of_runs
from ..ledger.entries import EntryState, LedgerEntry, total_usd
from ..ledger.recorder import RequestRecorder
from ..pipelines.deps import DepsFactory, live_deps
from ..pipelines.schemas import PipelineResult
from .exit_codes import FAILED, Terminated, UsageError, complain
from .forecasts import announce, estimated, max_cost_of, show
from .inputs import valid_input
from .loading import AnyPipeline, load_factory, load_target
from .parsing import shown
from .rendering.console import console, printable, write_json
from .rendering.map_progress import lines_of_failed_items
from .rendering.progress import ProgressTracer
from .rendering.run_costs import print_costs
from .rendering.run_json import result_as_json
from .rendering.tables import exact
from .rendering.values import render
from .shutdown import run_until_terminated


def run(
    target: Annotated[str, Parameter(name="MODULE:PIPELINE")],
    /,
    *inputs: Annotated[str, Parameter(name="key=value")],
    input_: Annotated[str | None, Parameter(name="--input", allow_leading_hyphen=True)] = None,
    deps: str | None = None,
    run_key: str | None = None,
    tag: Annotated[list[str] | None, Parameter(name="--tag")] = None,
    executor: Literal["memory", "prefect"] | None = None,
    max_cost: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    estimate: bool = False,
    json: bool = False,
    debug: bool = False,
) -> int:
    """Run a pipeline and show its result and its costs.

    Args:
        target: For example flows.document_digest:pipeline; also FILE.py:PIPELINE, or a flow of it.
        inputs: Fields of the input; a value is JSON, else it is text.
        input_: JSON or YAML file with the fields; `-` reads JSON from stdin. Those given as
            key=value win.
        deps: MODULE:FACTORY, a function that makes the deps. Default: the deps_factory of the flow.
        run_key: Names the piece of work: run again under it, finished steps are not paid again.
        tag: NAME=VALUE that is booked with all that the run costs; may be repeated.
        executor: Default: the pipeline's, or FASTROAI_EXECUTOR.
        max_cost: USD that the run may cost at most; a request that may not fit is not sent.
        estimate: Show what the run will cost, as `fastroai estimate`, and send nothing.
        json: Write the result and its costs as JSON.
        debug: Show tracebacks and Prefect's own log of the run.
    """
    found = load_target(target)
    pipeline, factory = found.pipeline, found.deps_factory
    if deps is not None:
        factory = load_factory(deps, found.module)
    limit = None if max_cost is None else max_cost_of(max_cost)
    fields = valid_input(pipeline, inputs, input_)
    tags = dict(map(parse_tag, tag or ()))
    if estimate:
        show(estimated(pipeline, fields), limit)
        return 0
    chosen = get_executor(executor or pipeline.executor)
    if not debug:
        quieten_run_logs()
    sys.stderr.write(f"Running {pipeline.name!r} ({type(chosen).__name__})\n")
    sys.stderr.flush()
    if limit is not None:
        announce(pipeline, fields, limit)
        pipeline = pipeline.with_budget(limit)
    work = _Work(pipeline.with_executor(chosen), fields, factory, run_key, tags)
    report = _Report(pipeline, chosen, as_json=json)
    result = work.execute(report)
    report.show(result)
    for failure in result.errors.values():
        complain(failure)
    return FAILED if result.errors else 0


def parse_tag(text: str) -> tuple[str, str]:
    """The name and the value of `--tag NAME=VALUE`.

    Raises:
        UsageError: It has not both.
    """
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageError(f"Invalid --tag {text!r}: expected NAME=VALUE, for example team=search.")
    return name, value


@dataclass
class _Work:
    """What is to be run, and what it has sent so far."""

    pipeline: AnyPipeline
    fields: dict[str, Any]
    factory: DepsFactory | None
    run_key: str | None
    tags: dict[str, str]
    recorders: list[RequestRecorder] = field(default_factory=list)

    def execute(self, report: _Report) -> PipelineResult[Any]:
        """Run it with its progress shown, and in any case what it spent."""
        progress = ProgressTracer(console(sys.stderr), self.paid)
        try:
            with recorders_of_runs() as self.recorders, progress.shown():
                return run_until_terminated(self._run(progress))
        except StepExecutionError as error:
            if isinstance(error.partial_result, PipelineResult):
                report.show_failed(error, error.partial_result)
            if isinstance(error.original_error, InputValidationError):
                raise UsageError(str(error)) from error
            raise
        except (KeyboardInterrupt, Terminated):
            report.show_spent("interruption", self.entries())
            raise

    async def _run(self, progress: ProgressTracer) -> PipelineResult[Any]:
        async with live_deps(None, self.factory) as deps:
            return await self.pipeline.execute(
                self.fields, deps, progress, run_key=self.run_key, tags=self.tags
            )

    def entries(self) -> list[LedgerEntry]:
        """What was booked so far."""
        return [entry for recorder in self.recorders for entry in recorder.entries]

    def paid(self) -> Decimal:
        """USD that it has cost so far."""
        return total_usd(entry for entry in self.entries() if not entry.simulated)


class _Report:
    """What is said at the end of a run."""

    def __init__(self, pipeline: AnyPipeline, executor: Executor, *, as_json: bool = False) -> None:
        self._pipeline = pipeline
        self._as_json = as_json
        # Its module is loaded where one of its executors is.
        prefect = sys.modules.get("fastroai.executors.prefect")
        self._links = None
        if prefect is not None and isinstance(executor, prefect.PrefectExecutor):
            self._links = prefect.links_to_run

    def show(self, result: PipelineResult[Any]) -> None:
        """Write result and costs to stdout."""
        if self._as_json:
            write_json(result_as_json(self._pipeline, result))
            return
        out = console()
        write = out.file.write
        write(f"\nResult of {self._pipeline.name!r}\n\n{render(result.output)}\n")
        if result.stopped_early:
            write(
                "\nThe run stopped early: a step asks for more input "
                "(its conversation state is incomplete).\n"
            )
        if result.skipped:
            skipped = ", ".join(result.skipped)
            write(f"\nNot run, because a step they depend on failed: {skipped}.\n")
        if failed := "\n".join(lines_of_failed_items(result)):
            write(f"\n{failed}\n")
        write("\nCosts\n\n")
        self._show_costs(out, result.entries, result.run_id)
        for step_id, hosts in result.unmetered.items():
            for host, requests in hosts.items():
                where = f"Step {step_id!r}" if step_id else "The run"
                write(f"{where} sent {requests} request(s) to {host} that are not in the books.\n")

    def show_failed(self, error: StepExecutionError, result: PipelineResult[Any]) -> None:
        """Write what a run spent until a step failed: to stderr, and as JSON to stdout."""
        self.show_spent("failure", result.entries, result.run_id)
        if self._as_json:
            write_json(result_as_json(self._pipeline, result, error))

    def show_spent(
        self, until: str, entries: Sequence[LedgerEntry], run_id: str | None = None
    ) -> None:
        """Write to stderr what a run that has no result spent."""
        out = console(sys.stderr)
        out.file.write(f"\nSpent until the {until}\n\n")
        if not entries:
            out.file.write("Nothing: no request was sent.\n")
        self._show_costs(out, entries, run_id)
        for entry in entries:
            if entry.state is EntryState.UNSETTLED:
                out.file.write(f"{printable(unknown_outcome(entry))}\n")
        out.file.write("\n")

    def _show_costs(self, out: Console, entries: Sequence[LedgerEntry], run_id: str | None) -> None:
        if entries or out.file is sys.stdout:
            print_costs(out, entries, self._pipeline.plan.steps)
        if self._links is not None and run_id is not None:
            out.file.writelines(f"{line}\n" for line in self._links(self._pipeline.name, run_id))
        out.file.flush()


def unknown_outcome(entry: LedgerEntry) -> str:
    """An entry of which nobody knows what it cost."""
    step = f"step {entry.attribution.step_id!r}, " if entry.attribution.step_id else ""
    bound = ""
    if entry.upper_bound_usd is not None:
        bound = f"; it cost at most {exact(entry.upper_bound_usd)} USD"
    return f"Outcome unknown: {step}{entry.model_asked}, sent {shown(entry.sent_at)}{bound}."


class _WarningsOfRuns(logging.Filter):
    """Of what Prefect logs about runs and tasks, only warnings: the rest is told by the progress
    lines.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        of_run = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
        return not of_run or record.levelno == logging.WARNING


def quieten_run_logs() -> None:
    """On the terminal only: the handlers that send logs to the server are others."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_WarningsOfRuns())
