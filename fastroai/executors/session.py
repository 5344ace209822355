"""One execution of a plan: what its steps share, and what it amounts to in the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from ..errors import StepExecutionError
from ..ledger.entries import Attribution, LedgerEntry
from ..ledger.recorder import DurableLedger, RequestRecorder
from ..pipelines.plan import ExecutionPlan
from ..pipelines.schemas import ConversationState, StepUsage
from ..pipelines.step_run import RunBooks, StepState
from ..tracing.tracer import NoOpTracer, Tracer
from .protocol import ExecutionResult, StepRecord
from .scheduler import Outcome

_NO_TRACER = NoOpTracer()
METRICS = ("request_count", "replayed_count", "input_tokens", "output_tokens", "cost_microcents")
"""What the spans of a run and of its steps report."""


class Run:
    """The state of one execution; an executor makes one for each and keeps none of it.

    Args:
        identity: Whom all that the run sends is booked to.
        store: Where the entries are written, too; None: nowhere.

    Attributes:
        outputs: Outputs of the steps that have finished.
        books: Identity and ledger of the run.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        inputs: Mapping[str, Any],
        deps: Any,
        tracer: Tracer | None,
        *,
        identity: Attribution,
        store: DurableLedger | None,
    ) -> None:
        self.plan = plan
        self.inputs = inputs
        self.deps = deps
        self.tracer = tracer if tracer is not None and plan.config.trace else _NO_TRACER
        self.name = identity.pipeline or "pipeline"
        self.books = RunBooks(identity, RequestRecorder(store), plan.config.cost_budget)
        self.outputs: dict[str, Any] = {}
        self._traced = type(self.tracer) is not NoOpTracer
        self._step_runs: dict[str, StepState] = {}
        self._began = time.perf_counter()

    def span(self, name: str) -> AbstractAsyncContextManager[Any]:
        """A span of the run's tracer, or nothing where there is none to open."""
        return self.tracer.span(name) if self._traced else nullcontext()

    def log_metrics(self, span_id: str | None, entries: Iterable[LedgerEntry]) -> None:
        """Report to a span what its requests came to, as the ledger has them: replayed ones are no
        spend.
        """
        booked = tuple(entries) if self._traced and span_id is not None else ()
        if booked and span_id is not None:
            usage = StepUsage.from_entries(booked)
            for name in METRICS:
                self.tracer.log_metric(span_id, name, getattr(usage, name))

    def step_run(self, step_id: str) -> StepState:
        """The books of one step, opened when it is first asked for."""
        step_run = self._step_runs.get(step_id)
        if step_run is None:
            step_run = self._step_runs[step_id] = StepState(step_id, self.books)
        return step_run

    def record(self, step_run: StepState, output: Any) -> StepRecord:
        """What a finished step amounts to."""
        entries = step_run.entries
        return StepRecord(
            step_id=step_run.step_id,
            output=output,
            entries=entries,
            usage=step_run.usage if entries else None,
            attempts=step_run.attempt,
            duration_ms=round((time.perf_counter() - step_run.started) * 1000),
        )

    async def conclude(self, outcome: Outcome, span_id: str | None) -> ExecutionResult:
        """The run's result, once its books are written and its span has been told of them.

        Raises:
            StepExecutionError: The first failure, when the run does not go on after one. Its
                `partial_result` is what would have been returned.
        """
        await self.books.ledger.flush()
        self.log_metrics(span_id, self.books.ledger.entries)
        errors = {
            step_id: _as_step_error(step_id, error) for step_id, error in outcome.failures.items()
        }
        usages = {step_id: self.step_run(step_id).usage for step_id in self.books.ledger.step_ids}
        states = [
            r.output for r in outcome.records.values() if isinstance(r.output, ConversationState)
        ]
        result = ExecutionResult(
            outputs={step_id: record.output for step_id, record in outcome.records.items()},
            usages=usages,
            conversation_state=states[-1] if states else None,
            stopped_early=outcome.stopped_early,
            entries=self.books.ledger.entries,
            errors=errors,
            skipped=outcome.skipped,
            run_id=self.books.identity.run_id,
            wall_time_ms=round((time.perf_counter() - self._began) * 1000),
        )
        if errors and self.plan.config.on_error == "fail":
            error = next(iter(errors.values()))
            error.partial_result = result
            raise error
        return result


def _as_step_error(step_id: str, error: BaseException) -> StepExecutionError:
    return error if isinstance(error, StepExecutionError) else StepExecutionError(step_id, error)
