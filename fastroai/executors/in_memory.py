"""InMemoryExecutor: runs a plan in the caller's process and event loop, with no server and no
storage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..ledger.entries import Attribution
from ..ledger.store import configured_store
from ..pipelines.config import retry_delay
from ..pipelines.plan import ExecutionPlan, PlannedStep
from ..replay.journal import Journal
from .protocol import ExecutionResult, PlanExecutor, StepRecord
from .scheduler import run_plan
from .session import Run
from .step import may_retry, run_step

if TYPE_CHECKING:
    from ..tracing.tracer import Tracer


class InMemoryExecutor(PlanExecutor):
    """For development and tests, and for programs that need neither durability nor a UI.

    Steps are asyncio tasks of the caller's loop. Agent calls that succeeded in a failed attempt of
    a step are replayed in the next one; nothing outlives the process.
    """

    async def execute_plan(
        self,
        plan: ExecutionPlan,
        inputs: dict[str, Any],
        deps: Any,
        tracer: Tracer | None,
        *,
        name: str = "pipeline",
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecutionResult:
        """See `PlanExecutor.execute_plan`."""
        identity = Attribution(run_id=str(uuid4()), run_key=run_key, pipeline=name, tags=tags or {})
        run = Run(plan, inputs, deps, tracer, identity=identity, store=await configured_store())
        async with run.span(f"pipeline.{name}") as span_id:
            outcome = await run_plan(plan, lambda node: _run_attempts(run, node))
            return await run.conclude(outcome, span_id)


async def _run_attempts(run: Run, node: PlannedStep) -> StepRecord:
    attempts = node.config.retries + 1
    if attempts > 1 and node.config.durable != "step":
        run.step_run(node.step_id).journal = Journal(node.step_id)
    for attempt in range(1, attempts):
        try:
            return await run_step(run, node, attempt)
        except Exception as error:
            if not may_retry(run, node, error):
                raise
        await asyncio.sleep(retry_delay(node.config, attempt))
    return await run_step(run, node, attempts)
