"""The result of a run and its costs, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import to_jsonable_python

from ...errors import StepExecutionError
from ...ledger.entries import LedgerEntry
from ...pipelines.pipeline import Pipeline
from ...pipelines.schemas import PipelineResult, StepUsage
from .map_progress import failed_items
from .run_costs import by_step_and_model
from .tables import exact


def result_as_json(
    pipeline: Pipeline[Any, Any, Any],
    result: PipelineResult[Any],
    error: StepExecutionError | None = None,
) -> dict[str, object]:
    """A run as JSON: amounts are texts in exact USD, without what is not known, which is counted
    beside them.

    Args:
        error: With which the run ended.
    """
    errors = {step_id: str(failure) for step_id, failure in result.errors.items()}
    if error is not None:
        errors[error.step_id] = str(error.original_error)
    groups = by_step_and_model(result.entries, pipeline.plan.steps)
    by_step = {step: [e for es in models.values() for e in es] for step, models in groups.items()}
    return {
        "pipeline": pipeline.name,
        "run_id": result.run_id,
        "state": state_of(result, error),
        "output": to_jsonable_python(
            result.output, inf_nan_mode="strings", fallback=str, serialize_unknown=True
        ),
        "currency": "USD",
        **costs_of(result.entries),
        "steps": [{"step": step, **costs_of(entries)} for step, entries in by_step.items()],
        "errors": errors,
        "item_errors": {
            step_id: {key: str(failure) for key, failure in failures.items()}
            for step_id, failures in failed_items(result).items()
        },
        "skipped": list(result.skipped),
        "not_stored": dict(result.not_stored),
        "unmetered": result.unmetered,
    }


def state_of(result: PipelineResult[Any], error: StepExecutionError | None) -> str:
    """How a run ended, in a word."""
    if error is not None:
        return "failed"
    if result.errors:
        return "completed_with_errors"
    return "stopped_early" if result.stopped_early else "completed"


def costs_of(entries: Iterable[LedgerEntry]) -> dict[str, object]:
    """What some requests cost, and how far that is known."""
    entries = tuple(entries)
    usage = StepUsage.from_entries(entries)
    assert usage.cost_usd is not None
    return {
        "cost_usd": exact(usage.cost_usd),
        "simulated": any(entry.simulated for entry in entries),
        "requests": usage.request_count,
        "replayed": usage.replayed_count,
        "unsettled": usage.unsettled_count,
        "unpriced": usage.unpriced_count,
        "refused": usage.refused_count,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "models": sorted({e.answering_model for e in entries if e.answering_model}),
    }
