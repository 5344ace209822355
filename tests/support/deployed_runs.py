"""Runs of a deployment that this process runs, as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect.states import Pending


async def deployment_of(flow: Any) -> UUID:
    """Its deployment `d`, which no worker looks for."""
    async with get_client() as client:
        return await client.create_deployment(
            flow_id=await client.create_flow(flow), name="d", enforce_parameter_schema=False
        )


async def deployed(flow: Any, inputs: dict[str, Any], **options: Any) -> UUID:
    """A flow run of that deployment."""
    deployment = await deployment_of(flow)
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(
            deployment, parameters={"inputs": inputs}, **options
        )
    return run.id


async def work(flow: Any, run: UUID) -> Any:
    """Run it here; None: it is suspended."""
    async with get_client() as client:
        await client.set_flow_run_state(run, Pending())
        flow_run = await client.read_flow_run(run)
    try:
        # Its end is reported when its task has ended.
        running = run_flow_async(flow, flow_run=flow_run, parameters=flow_run.parameters)
        return await asyncio.create_task(running)
    except Pause:
        await asyncio.sleep(0)  # what is done at the task's end comes after whoever awaits it
        return None


@asynccontextmanager
async def worked_on(flow: Any, deployment: UUID) -> AsyncIterator[list[FlowRun]]:
    """Work on all runs that runs of a deployment have scheduled, in this process; gives those so
    far.
    """
    begun: list[FlowRun] = []

    async def look() -> None:
        scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]), state=scheduled
        )
        async with get_client() as client, asyncio.TaskGroup() as group:
            while True:
                for run in await client.read_flow_runs(flow_run_filter=wanted):
                    if run.parent_task_run_id is None:
                        continue
                    begun.append(run)
                    await client.set_flow_run_state(run.id, Pending())
                    group.create_task(_end_of(flow, run))
                await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield begun
    finally:
        looking.cancel()
        await asyncio.wait({looking})


async def _end_of(flow: Any, run: FlowRun) -> None:
    running = run_flow_async(flow, flow_run=run, parameters=run.parameters, return_type="state")
    task = asyncio.create_task(running)
    try:
        await asyncio.wait({task})  # however it ends
    finally:
        task.cancel()
