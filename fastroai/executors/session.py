"""RunSession: one execution of a plan, with everything its steps share."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from uuid import uuid4

import anyio

from ..budgets import Limit, RunLimits
from ..budgets.budget import is_in_flight
from ..collectors import Collector
from ..errors import StepExecutionError, is_pause
from ..leases.run_lease import Held
from ..ledger.entries import Attribution, LedgerEntry
from ..ledger.filters import LedgerFilter
from ..ledger.history import WholeRun
from ..ledger.recorder import DurableLedger, RequestRecorder
from ..ledger.store import configured_store
from ..metering.scope import DispatchScope, current_scope
from ..pipelines.map_state import MapProgress, MapState
from ..pipelines.plan import ExecutionPlan, PlannedStep
from ..pipelines.schemas import ConversationState, StepUsage
from ..pipelines.step_state import RunBooks
from ..pricing.price_file import with_readable_prices
from ..rate_limits import LIMITERS, limit_requests
from ..settings import FastroAISettings, load_settings
from ..tracing.tracer import NoOpTracer, Tracer
from .protocol import ExecutionResult
from .scheduler import Outcome
from .step_codec import StepCodec

_NO_TRACER = NoOpTracer()
IN_FLIGHT_SECONDS = 120.0
"""How long a run that pauses waits for answers to what its steps have sent, and no longer await."""
METRICS = ("request_count", "replayed_count", "input_tokens", "output_tokens", "cost_microcents")
"""What the spans of a run and of its steps report."""


_recorders: Collector[RequestRecorder] = Collector("fastroai_recorders")

# A run that is cancelled returns and raises nothing that could carry its entries.
recorders_of_runs = _recorders.collected
"""The recorders of the runs that start in a context, for what is spent even if they are
cancelled.
"""


class RunSession(RunBooks):
    """The state of one execution; an executor opens one for each run and keeps none of it.

    While its `async with` block lasts, requests of agents that belong to no step are booked to the
    run, and so are those of a `StepContext` that is made by hand. Steps may run in threads.

    Args:
        identity: Whom all that the run sends is booked to.
        store: Where the entries are written, too; None: nowhere.
        settings: As they were when the run began.
        leases: What the run holds, with what the runs around it hold.
        began_before: When earlier executions of this very run began, whose spend counts for its
            budgets, too; None: there are none. Those of its key always count.

    Attributes:
        plan: What is run.
        inputs: What steps read with `get_input`.
        deps: The caller's live objects.
        tracer: Never None; one that does nothing where the run is not traced.
        name: The pipeline's name.
        outputs: Outputs of the steps that have finished.
        span_id: The run's span, while the block lasts and where there is one.
        is_traced: Whether its steps have spans, too.
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
        settings: FastroAISettings,
        leases: Held = (),
        began_before: datetime | None = None,
    ) -> None:
        recorder = RequestRecorder(store, refuses_unpriced=settings.unpriced == "fail")
        super().__init__(identity, recorder)
        if settings.rate_limits or LIMITERS[recorder.ledger_url]:
            limit_requests(settings, recorder.ledger_url)
        recorder.limits = self.limits = _limits_of(plan, identity.pipeline)
        self.cheaper_model = plan.config.cheaper_model
        self.is_planned = True
        self._began_before = began_before
        _recorders.add(recorder)
        self.plan = plan
        self.inputs = inputs
        self.deps = deps
        self.tracer = tracer if tracer is not None and plan.config.trace else _NO_TRACER
        self.name = identity.pipeline or "pipeline"
        self.settings = settings
        self.leases = leases
        self.outputs: dict[str, Any] = {}
        self.span_id: str | None = None
        self.is_traced = type(self.tracer) is not NoOpTracer
        self._began = time.perf_counter()

    async def _note_earlier(self, limits: RunLimits) -> None:
        """Have its budgets hold for what earlier executions have spent, too."""
        at, since = self.identity, self._began_before
        if at.run_key is not None:
            earlier = LedgerFilter(run_key=at.run_key, pipeline=at.pipeline)
        elif since is not None:
            earlier = LedgerFilter(run_id=at.run_id, since=since)
        else:
            return
        limits.note_earlier(await self.recorder.stored(earlier))

    async def __aenter__(self) -> RunSession:
        if self.limits is not None:
            await self._note_earlier(self.limits)
        self._scope = DispatchScope(self.recorder, self.identity, run=self)
        of_run = f"pipeline.{self.name}"
        self._span = self.tracer.span(of_run) if self.is_traced else nullcontext()
        self.span_id = await self._span.__aenter__()
        self._scope.__enter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._scope.__exit__()
        self.is_over = True
        return await self._span.__aexit__(exc_type, exc, traceback)

    def all_limits(self) -> tuple[Limit, ...]:
        """The budgets of the run, of its steps, and of the step around it."""
        if self.limits is None:
            return ()
        found: dict[Limit, None] = {}
        for step_id in (None, *self.plan.steps):
            found.update(dict.fromkeys(self.limits.of_step(step_id)))
        return tuple(found)

    def map_state(self, step_id: str) -> MapState:
        """What a mapped step shares, made when it is first asked for: by itself, or by a step that
        is mapped over its outputs.
        """
        state = self.step_state(step_id)
        if state.mapped is None:
            codec = StepCodec.of(step_id, self.plan.steps[step_id].step)
            state.mapped = MapState(MapProgress(step_id, waits=self.waiting), codec)
        return state.mapped

    def prepare_map(self, node: PlannedStep, outputs: dict[str, Any]) -> None:
        """Have a mapped step find its state, and the outputs that it is mapped over as they
        come.
        """
        self.map_state(node.step_id)
        if node.streams_from is not None:
            outputs[node.streams_from] = self.map_state(node.streams_from).outputs

    def log_metrics(self, span_id: str | None, entries: Iterable[LedgerEntry]) -> None:
        """Report to a span what its requests came to, as the ledger has them: replayed ones are no
        spend.
        """
        if span_id is None:
            return
        if booked := tuple(entries):
            usage = StepUsage.from_entries(booked)
            for name in METRICS:
                self.tracer.log_metric(span_id, name, getattr(usage, name))

    async def conclude(self, outcome: Outcome) -> ExecutionResult:
        """The run's result, once its books are written and its span has been told of them.

        Raises:
            StepExecutionError: The first failure, when the run does not go on after one. Its
                `partial_result` is what would have been returned.
        """
        if any(map(is_pause, outcome.failures.values())):
            await self._let_settle()
        outputs = {step_id: record.output for step_id, record in outcome.records.items()}
        latest_first = reversed(outputs.values())
        states = (output for output in latest_first if isinstance(output, ConversationState))
        result = await self.complete(
            ExecutionResult(
                outputs=outputs,
                conversation_state=next(states, None),
                stopped_early=outcome.stopped_early,
                errors={
                    step_id: _as_step_error(step_id, error)
                    for step_id, error in outcome.failures.items()
                },
                skipped=outcome.skipped,
            )
        )
        if result.errors and self.plan.config.on_error == "fail":
            error = next(iter(result.errors.values()))
            error.partial_result = result
            raise error
        return result

    async def _let_settle(self) -> None:
        """Wait for the answers to what was sent at once with a request that was refused: they are
        paid for, and recorded, so that nobody asks again when the run goes on.
        """
        with anyio.move_on_after(IN_FLIGHT_SECONDS):
            while any(map(is_in_flight, self.recorder.entries)):  # noqa: ASYNC110
                await anyio.sleep(0.05)

    def _whole_run(self) -> WholeRun:
        at = self.identity
        return WholeRun(
            run_id=at.run_id or "",
            run_key=at.run_key,
            pipeline=self.name,
            shape=self.plan.shape,
            ended_at=datetime.now(UTC),
        )

    async def complete(self, result: ExecutionResult) -> ExecutionResult:
        """A result with what the books say of the run, once they are written."""
        if self.recorder.entries and set(self.plan.steps) == set(result.outputs):
            self.recorder.end_run(self._whole_run())
        await self.recorder.flush()
        entries = self.recorder.entries
        self.log_metrics(self.span_id, entries)
        booked = {id_: self.step_state(id_).usage for id_ in self.recorder.step_ids}
        return replace(
            result,
            usages={**result.usages, **booked},
            entries=entries,
            run_id=self.identity.run_id,
            unmetered=self.recorder.unmetered,
            wall_time_ms=round((time.perf_counter() - self._began) * 1000),
        )


def _as_step_error(step_id: str, error: BaseException) -> StepExecutionError:
    return error if isinstance(error, StepExecutionError) else StepExecutionError(step_id, error)


def _limits_of(plan: ExecutionPlan, name: str | None) -> RunLimits | None:
    """The budgets of a run, of its steps, and of the step around it; None: there are none."""
    run, steps = plan.budgets
    scope = current_scope()
    around: tuple[Limit, ...] = ()
    if scope is not None and isinstance(scope.run, RunBooks) and scope.run.limits is not None:
        around = scope.run.limits.of_step(scope.attribution.step_id)
    if not run and not around and not steps:
        return None
    limits = RunLimits(run, name=name, around=around)
    for step_id, budgets in steps.items():
        limit = limits.limit_items if plan.steps[step_id].is_mapped else limits.limit_step
        limit(step_id, budgets)
    return limits


def leases_around() -> Held:
    """The leases of the run in one of whose steps this is called, if it is."""
    scope = current_scope()
    run = scope.run if scope is not None else None
    return run.leases if isinstance(run, RunSession) else ()


@asynccontextmanager
async def open_session(
    plan: ExecutionPlan,
    inputs: Mapping[str, Any],
    deps: Any,
    tracer: Tracer | None = None,
    *,
    name: str = "pipeline",
    run_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> AsyncGenerator[RunSession]:
    """Open the session of one run, booked in the ledger of `FASTROAI_LEDGER_URL`, if that is set.

    Args: as of `Executor.execute`, with its plan.

    Raises:
        LedgerUnavailableError: The ledger can't be written, and must be.
        SettingsError: A variable has a value it may not have, or `FASTROAI_PRICES` can't be read.
    """
    identity = Attribution(run_id=str(uuid4()), run_key=run_key, pipeline=name, tags=tags or {})
    settings = with_readable_prices(load_settings())
    store = await configured_store(settings)
    async with RunSession(
        plan,
        inputs,
        deps,
        tracer,
        identity=identity,
        store=store,
        settings=settings,
    ) as session:
        yield session
