"""Runs of a deployment that this process runs, as a worker would."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect.states import Pending


async def deployed(flow: Any, inputs: dict[str, Any]) -> UUID:
    """A flow run of a deployment `d` that no worker looks for."""
    async with get_client() as client:
        deployment = await client.create_deployment(
            flow_id=await client.create_flow(flow), name="d", enforce_parameter_schema=False
        )
        run = await client.create_flow_run_from_deployment(
            deployment, parameters={"inputs": inputs}
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
