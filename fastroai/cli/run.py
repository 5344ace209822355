"""`fastroai run MODULE:PIPELINE key=value …`: run a pipeline from the terminal."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..errors import StepExecutionError
from ..pipelines.pipeline import Pipeline
from ..pipelines.schemas import PipelineResult
from .exit_codes import FAILED, UsageError, complain
from .rendering.progress import ProgressTracer
from .rendering.run_costs import cost_table
from .rendering.values import render
from .shutdown import run_until_terminated

AnyPipeline = Pipeline[Any, Any, Any]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fastroai run`."""
    parser = commands.add_parser(
        "run",
        help="run a pipeline and show its result and its costs",
        description=(
            "Run a pipeline and show its result and its costs. Progress goes to stderr, the rest "
            "to stdout."
        ),
    )
    parser.add_argument(
        "target", metavar="MODULE:PIPELINE", help="for example flows.document_digest:pipeline"
    )
    parser.add_argument(
        "inputs",
        metavar="key=value",
        nargs="*",
        help="fields of the input; a value is JSON, else it is text",
    )
    parser.add_argument(
        "--executor",
        choices=("memory", "prefect"),
        help="default: the pipeline's, or FASTROAI_EXECUTOR",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks and Prefect's own log of the run"
    )
    parser.set_defaults(execute=_run, takes_rest=True)


def _run(arguments: argparse.Namespace) -> int:
    # argparse leaves aside the inputs that follow an option.
    pairs = [*arguments.inputs, *arguments.rest]
    pipeline = _load_pipeline(arguments.target)
    inputs = _parse_inputs(pipeline, pairs)
    # Also validated by the run; here, so that nothing is started for an input that can't be run.
    pipeline.validate_input(inputs)

    from ..executors import get_executor

    executor = get_executor(arguments.executor or pipeline.executor)
    under_prefect = hasattr(executor, "build_flow")
    if not arguments.debug:
        _quieten_run_logs()
    sys.stderr.write(f"Running {pipeline.name!r} ({type(executor).__name__})\n")
    sys.stderr.flush()
    try:
        result = run_until_terminated(
            pipeline.with_executor(executor).execute(inputs, None, ProgressTracer(sys.stderr))
        )
    except StepExecutionError as error:
        if isinstance(error.partial_result, PipelineResult):
            _show_spent_until_failure(pipeline, error.partial_result, under_prefect)
        raise
    _show(pipeline, result, under_prefect)
    if result.errors:
        for failure in result.errors.values():
            complain(failure)
        return FAILED
    return 0


def _load_pipeline(target: str) -> AnyPipeline:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(
            f"{target!r} names no pipeline: give MODULE:PIPELINE, for example my_flows:pipeline."
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (
            module_name == error.name or module_name.startswith(error.name + ".")
        ):
            raise
        where = f"in {str(Path.cwd())!r} or among the installed ones"
        raise UsageError(f"There is no module {module_name!r} {where}.") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Pipeline):
        here = [name for name, value in vars(module).items() if isinstance(value, Pipeline)]
        what = "has no" if found is None else f"has {found!r:.80}, not a Pipeline, as"
        raise UsageError(
            f"Module {module_name!r} {what} {attribute!r}. Its pipelines: "
            f"{', '.join(here) or 'none'}."
        )
    return found


def _parse_inputs(pipeline: AnyPipeline, pairs: Sequence[str]) -> dict[str, Any]:
    """The input as a dict; values stay unvalidated."""
    model = pipeline.input_type
    known = model.model_fields if model is not None else {}
    takes_any = model is None or model.model_config.get("extra") == "allow"
    inputs: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{pair!r} is no input: give key=value.")
        if key not in known and not takes_any:
            hint = get_close_matches(key, known, n=1)
            meant = f" Did you mean {hint[0]!r}?" if hint else ""
            raise UsageError(
                f"Pipeline {pipeline.name!r} has no input {key!r}.{meant} Its inputs: "
                f"{', '.join(known)}."
            )
        inputs[key] = value = _parse_value(text, known.get(key))
        if value == text and key in known and _takes_only_a_list(known[key], text):
            written = json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
            raise UsageError(
                f"{pair!r}: {key!r} is a list. Write it as JSON: {shlex.quote(f'{key}={written}')}"
            )
    return inputs


def _parse_value(text: str, field: FieldInfo | None) -> Any:
    """JSON where it parses and the field takes it; otherwise the text itself, so that a name may be
    `2024`.
    """
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    if field is None or isinstance(parsed, str):
        return parsed
    return next((candidate for candidate in (parsed, text) if _takes(field, candidate)), parsed)


def _takes_only_a_list(field: FieldInfo, text: str) -> bool:
    return not _takes(field, text) and any(
        _takes(field, parts) for parts in ([text], text.split(","))
    )


def _takes(field: FieldInfo, value: Any) -> bool:
    accepts: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # made here
    try:
        accepts.validate_python(value)
    except ValidationError:
        return False
    return True


def _show(pipeline: AnyPipeline, result: PipelineResult[Any], under_prefect: bool) -> None:
    out = [f"\nResult of {pipeline.name!r}\n", render(result.output)]
    if result.stopped_early:
        out.append(
            "\nThe run stopped early: a step asks for more input "
            "(its conversation state is incomplete)."
        )
    if result.skipped:
        out.append(f"\nNot run, because a step they depend on failed: {', '.join(result.skipped)}.")
    out += ["\nCosts\n", cost_table(result.entries, pipeline.plan.steps)]
    if under_prefect:
        out += _where_to_look(pipeline.name, result.run_id)
    sys.stdout.write("\n".join(out) + "\n")
    sys.stdout.flush()


def _show_spent_until_failure(
    pipeline: AnyPipeline, partial: PipelineResult[Any], under_prefect: bool
) -> None:
    table = (
        cost_table(partial.entries, pipeline.plan.steps)
        if partial.entries
        else "Nothing: no request was sent."
    )
    out = ["\nSpent until the failure\n", table]
    if under_prefect:
        out += _where_to_look(pipeline.name, partial.run_id)
    sys.stderr.write("\n".join(out) + "\n\n")


def _where_to_look(pipeline_name: str, run_id: str | None) -> list[str]:
    # only after a run under Prefect, which has loaded it
    from ..executors._prefect.links import where_to_look

    return [] if run_id is None else where_to_look(pipeline_name, run_id)


class _WarningsOfRuns(logging.Filter):
    """Of what Prefect logs about runs and tasks, only warnings: the rest is told by the progress
    lines.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        of_run = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
        return not of_run or record.levelno == logging.WARNING


def _quieten_run_logs() -> None:
    """On the terminal only: the handlers that send logs to the server are others."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_WarningsOfRuns())
