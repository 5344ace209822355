"""run_step(): the only place where a step's code is executed, the same under every engine."""

from __future__ import annotations

import asyncio
from typing import Any

from ..metering.retries import is_permanent
from ..pipelines.context import StepContext
from ..pipelines.plan import PlannedStep
from .protocol import StepRecord
from .session import Run


async def run_step(run: Run, node: PlannedStep, attempt: int = 1) -> StepRecord:
    """Execute one attempt of a step.

    Only the outputs of declared dependencies are handed to it. What it spends is in the run's
    ledger whatever happens. Its deadline is held here and not by Prefect, whose cancellation would
    not let it clean up with an await.

    Raises:
        TimeoutError: The attempt took longer than the step's `timeout`.
        BaseException: What the step raised, unchanged.
    """
    step_run = run.step_run(node.step_id)
    step_run.begin_attempt(attempt)
    outputs = {step_id: run.outputs[step_id] for step_id in node.dependencies}
    context = StepContext(
        node.step_id, run.inputs, run.deps, outputs, run.tracer, node.config, step_run=step_run
    )
    async with run.span(f"step.{node.step_id}") as span_id:
        try:
            with step_run.own_scope():
                output = await _execute(node, context, attempt)
        finally:
            run.log_metrics(
                span_id, (e for e in step_run.entries if e.attribution.attempt == attempt)
            )
    if step_run.entries:
        # What a step's record says was paid must not be unknown to the ledger after a crash.
        await run.books.ledger.flush()
    run.outputs[node.step_id] = output
    return run.record(step_run, output)


def may_retry(run: Run, node: PlannedStep, error: BaseException) -> bool:
    """Whether another attempt of a step could end better than with this error."""
    return not (is_permanent(error) or run.step_run(node.step_id).is_final(error))


async def _execute(node: PlannedStep, context: StepContext[Any], attempt: int) -> Any:
    seconds = node.config.timeout
    if not seconds:
        return await node.step.execute(context)
    try:
        async with asyncio.timeout(seconds) as deadline:
            return await node.step.execute(context)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise TimeoutError(
            f"Step '{node.step_id}' timed out after {seconds}s (attempt "
            f"{attempt}/{node.config.retries + 1}). "
            "Its `timeout` bounds one attempt."
        ) from error
