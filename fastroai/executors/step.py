"""run_step(): the only place where a step's code is executed, the same under every executor."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ..metering.retries import is_permanent
from ..pipelines.config import retry_delay
from ..pipelines.context import StepContext
from ..pipelines.plan import PlannedStep
from ..pipelines.step_state import StepState
from ..replay.journal import Journal
from ..retries import retry
from .protocol import StepRecord
from .session import RunSession


def run_attempts(session: RunSession, node: PlannedStep) -> Awaitable[StepRecord]:
    """Execute a step, again after each failure that may pass, as often as its `retries` say.

    Agent calls that succeeded in a failed attempt are replayed in the next one.

    Raises:
        BaseException: When it is awaited: what the last attempt raised, unchanged.
    """
    attempts = node.whole.retries + 1
    if attempts == 1:
        return run_step(session, node)
    if node.config.durable != "step":
        session.step_state(node.step_id).journal = Journal(node.step_id)

    def delay_after(error: Exception, failures: int) -> float | None:
        if failures == attempts or not may_retry(session, node, error):
            return None
        return retry_delay(node.whole, failures)

    return retry(partial(run_step, session, node), delay_after)


async def run_step(session: RunSession, node: PlannedStep, attempt: int = 1) -> StepRecord:
    """Execute one attempt of a step.

    Only the outputs of declared dependencies are handed to it. What it spends is in the run's
    ledger whatever happens. Its deadline is held here and not by Prefect, whose cancellation would
    not let it clean up with an await.

    Raises:
        TimeoutError: The attempt took longer than the step's `timeout`.
        BaseException: What the step raised, unchanged.
    """
    step_id, recorder = node.step_id, session.recorder
    state = session.step_state(step_id)
    state.begin_attempt(attempt)
    outputs: dict[str, Any] = {}
    for dependency in node.dependencies:
        if dependency in session.outputs:  # not that of an optional step that was left out
            outputs[dependency] = session.outputs[dependency]
    if node.is_mapped:
        session.prepare_map(node, outputs)
    context = StepContext(
        step_id, session.inputs, session.deps, outputs, session.tracer, node.config, state=state
    )
    # Neither span nor deadline where there is none: a step that does nothing takes little longer.
    if session.is_traced:
        output = await _traced(session, state, partial(_execute, node, context, state))
    else:
        output = await _execute(node, context, state)
    entries = recorder.of_step(step_id)
    if entries:
        # What a step's record says was paid must not be unknown to the ledger after a crash.
        await recorder.flush()
    session.outputs[step_id] = output
    return StepRecord(
        step_id=step_id,
        output=output,
        entries=entries,
        usage=state.usage if entries else None,
        attempts=attempt,
        duration_ms=round((time.perf_counter() - state.started) * 1000),
    )


async def _execute(node: PlannedStep, context: StepContext[Any], state: StepState) -> Any:
    with state.scope_of():
        if not node.whole.timeout:
            return await node.step.execute(context)
        async with state.in_time(node.whole):
            return await node.step.execute(context)


async def _traced(
    session: RunSession, state: StepState, execute: Callable[[], Awaitable[Any]]
) -> Any:
    """Execute a step's code within a span that is told what it came to."""
    attempt = state.attempt
    async with session.tracer.span(f"step.{state.step_id}") as span_id:
        try:
            return await execute()
        finally:
            of_attempt = [e for e in state.entries if e.attribution.attempt == attempt]
            session.log_metrics(span_id, of_attempt)


def may_retry(session: RunSession, node: PlannedStep, error: BaseException) -> bool:
    """Whether the step may be retried after this error."""
    return not (is_permanent(error) or session.step_state(node.step_id).is_final(error))
