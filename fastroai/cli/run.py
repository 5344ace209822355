"""`fastroai run MODULE:PIPELINE key=value …`: run a pipeline from the terminal."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console

from ..errors import InputValidationError, StepExecutionError
from ..executors import Executor, get_executor
from ..executors.session import recorders_of_runs
from ..ledger.entries import EntryState, LedgerEntry
from ..pipelines.schemas import PipelineResult
from .exit_codes import FAILED, Terminated, UsageError, complain
from .forecasts import announce, estimated, max_cost_of, show
from .loading import AnyPipeline, load_pipeline
from .parsing import shown
from .rendering.console import console, printable
from .rendering.progress import ProgressTracer
from .rendering.run_costs import print_costs
from .rendering.tables import exact
from .rendering.values import render
from .shutdown import run_until_terminated


def run(
    target: Annotated[str, Parameter(name="MODULE:PIPELINE")],
    /,
    *inputs: Annotated[str, Parameter(name="key=value")],
    executor: Literal["memory", "prefect"] | None = None,
    max_cost: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    estimate: bool = False,
    debug: bool = False,
) -> int:
    """Run a pipeline and show its result and its costs.

    Args:
        target: For example flows.document_digest:pipeline; also FILE.py:PIPELINE.
        inputs: Fields of the input; a value is JSON, else it is text.
        executor: Default: the pipeline's, or FASTROAI_EXECUTOR.
        max_cost: USD that the run may cost at most; a request that may not fit is not sent.
        estimate: Show what the run will cost, as `fastroai estimate`, and send nothing.
        debug: Show tracebacks and Prefect's own log of the run.
    """
    pipeline = load_pipeline(target)
    limit = None if max_cost is None else max_cost_of(max_cost)
    fields = valid_input(pipeline, inputs)
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
    report = _Report(pipeline, chosen)
    result = _execute(pipeline.with_executor(chosen), fields, report)
    report.show(result)
    for failure in result.errors.values():
        complain(failure)
    return FAILED if result.errors else 0


def valid_input(pipeline: AnyPipeline, pairs: Sequence[str]) -> dict[str, Any]:
    """The fields of the input.

    Raises:
        UsageError: The pipeline does not take them.
    """
    fields = dict(parse_input(pipeline, pair) for pair in pairs)
    try:
        # Also validated by the run; here, so that nothing is started for an input that can't be.
        pipeline.validate_input(fields)
    except InputValidationError as error:
        raise UsageError(str(error)) from error
    return fields


def _execute(pipeline: AnyPipeline, fields: dict[str, Any], report: _Report) -> PipelineResult[Any]:
    """Run it with its progress shown, and in any case what it spent."""
    progress = ProgressTracer(console(sys.stderr))
    try:
        with recorders_of_runs() as recorders, progress.shown():
            return run_until_terminated(pipeline.execute(fields, None, progress))
    except StepExecutionError as error:
        if isinstance(error.partial_result, PipelineResult):
            report.show_spent("failure", error.partial_result.entries, error.partial_result.run_id)
        if isinstance(error.original_error, InputValidationError):
            raise UsageError(str(error)) from error
        raise
    except (KeyboardInterrupt, Terminated):
        entries = [entry for recorder in recorders for entry in recorder.entries]
        report.show_spent("interruption", entries)
        raise


def parse_input(pipeline: AnyPipeline, pair: str) -> tuple[str, Any]:
    """One field of the input; its value stays unvalidated."""
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise UsageError(f"Invalid input {pair!r}: expected key=value.")
    field = field_of(pipeline, key)
    value = parse_value(text, field)
    if field is not None and value == text and takes_only_a_list(field, text):
        written = json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
        raise UsageError(
            f"Invalid input {pair!r}: {key!r} is a list. Write it as JSON: "
            f"{shlex.quote(f'{key}={written}')}"
        )
    return key, value


def field_of(pipeline: AnyPipeline, key: str) -> FieldInfo | None:
    """A field of the input's type; None where any input is taken."""
    model = pipeline.input_type
    if model is None:
        return None
    known = model.model_fields
    if key in known or model.model_config.get("extra") == "allow":
        return known.get(key)
    similar = get_close_matches(key, known, n=1)
    meant = f" Did you mean {similar[0]!r}?" if similar else ""
    raise UsageError(
        f"Pipeline {pipeline.name!r} has no input {key!r}.{meant} Its inputs: {', '.join(known)}."
    )


def parse_value(text: str, field: FieldInfo | None) -> Any:
    """JSON where it parses and the field takes it; otherwise the text itself, so that a name may be
    `2024`.
    """
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    if field is None or isinstance(parsed, str) or takes(field, parsed):
        return parsed
    return text if takes(field, text) else parsed


def takes_only_a_list(field: FieldInfo, text: str) -> bool:
    """Whether a text must be meant as one of several."""
    takes_lists = takes(field, [text]) or takes(field, text.split(","))
    return takes_lists and not takes(field, text)


def takes(field: FieldInfo, value: object) -> bool:
    """Whether a value is valid for a field."""
    accepts: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # made here
    try:
        accepts.validate_python(value)
    except ValidationError:
        return False
    return True


class _Report:
    """What is said at the end of a run."""

    def __init__(self, pipeline: AnyPipeline, executor: Executor) -> None:
        self._pipeline = pipeline
        # Its module is loaded where one of its executors is.
        prefect = sys.modules.get("fastroai.executors.prefect")
        self._links = None
        if prefect is not None and isinstance(executor, prefect.PrefectExecutor):
            self._links = prefect.links_to_run

    def show(self, result: PipelineResult[Any]) -> None:
        """Write result and costs to stdout."""
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
        write("\nCosts\n\n")
        self._show_costs(out, result.entries, result.run_id)
        for step_id, hosts in result.unmetered.items():
            for host, requests in hosts.items():
                where = f"Step {step_id!r}" if step_id else "The run"
                write(f"{where} sent {requests} request(s) to {host} that are not in the books.\n")

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
