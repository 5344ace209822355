"""InMemoryExecutor: runs a plan in the caller's event loop, without server or storage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..pipelines.plan import ExecutionPlan
from .protocol import ExecutionResult, PlanExecutor
from .scheduler import run_plan
from .session import open_session
from .step import run_attempts

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
        async with open_session(
            plan, inputs, deps, tracer, name=name, run_key=run_key, tags=tags
        ) as session:
            return await session.conclude(await run_plan(plan, partial(run_attempts, session)))
