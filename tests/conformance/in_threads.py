"""An executor as docs/executors.md describes it: each step in a thread, with a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

from fastroai.executors import (
    ExecutionPlan,
    ExecutionResult,
    PlanExecutor,
    PlannedStep,
    RunSession,
    StepRecord,
    open_session,
    run_attempts,
    run_plan,
)
from fastroai.tracing import Tracer


class InThreads(PlanExecutor):
    """Runs each step of a plan in a thread of its own."""

    async def execute_plan(
        self,
        plan: ExecutionPlan,
        inputs: Mapping[str, Any],
        deps: Any,
        tracer: Tracer,
        **options: Any,
    ) -> ExecutionResult:
        async with open_session(plan, inputs, deps, tracer, **options) as session:
            # One for each: a step that is mapped over another one's items waits for those.
            with ThreadPoolExecutor(max_workers=len(plan.steps)) as threads:
                outcome = await run_plan(plan, partial(_run_in, threads, session))
            return await session.conclude(outcome)


async def _run_in(
    threads: ThreadPoolExecutor, session: RunSession, node: PlannedStep
) -> StepRecord:
    context, begun = copy_context(), list[asyncio.Task[Any]]()

    async def attempts() -> StepRecord | BaseException:
        task = asyncio.current_task()
        assert task is not None
        begun.append(task)
        try:
            return await run_attempts(session, node)
        except BaseException as error:
            return error

    def work() -> StepRecord | BaseException:
        with asyncio.Runner() as runner:
            return runner.run(attempts(), context=context)

    running = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        result = await asyncio.shield(running)
    except asyncio.CancelledError:
        for task in begun:
            task.get_loop().call_soon_threadsafe(task.cancel)
        await running
        raise
    if isinstance(result, BaseException):
        raise result
    return result
