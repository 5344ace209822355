"""Where a flow run comes from: its deployment, and who started it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun

from ...ledger.entries import Attribution

logger = logging.getLogger("fastroai.executors")

ANSWER_SECONDS = 5


async def identity_of(flow_run: FlowRun, said: Attribution) -> Attribution:
    """Whom a flow run is booked to: what its caller says of it, and what Prefect knows."""
    deployment = flow_run.deployment_id
    return replace(
        said,
        run_id=str(flow_run.id),
        deployment=None if deployment is None else await deployment_name(deployment),
        flow_tags=tuple(sorted(flow_run.tags)),
        created_by=creator(flow_run),
    )


async def deployment_name(deployment_id: UUID) -> str:
    """The deployment as `flow/deployment`, or its id where the server does not say: a run does not
    fail for want of it.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS), get_client() as client:
            return await read_deployment_name(client, deployment_id)
    except Exception as error:
        logger.warning("The name of deployment %s could not be read: %r", deployment_id, error)
        return str(deployment_id)


async def read_deployment_name(client: PrefectClient, deployment_id: UUID) -> str:
    """The deployment as `flow/deployment`: deployments of two flows may have one name."""
    deployment = await client.read_deployment(deployment_id)
    flow = await client.read_flow(deployment.flow_id)
    return f"{flow.name}/{deployment.name}"


def creator(flow_run: FlowRun) -> str | None:
    """Who or what created a flow run, as `kind:name` or the kind alone; None: Prefect does not
    know.
    """
    by = flow_run.created_by
    if by is None or by.type is None:
        return "schedule" if flow_run.auto_scheduled else None
    kind = by.type.lower()
    return f"{kind}:{by.display_value}" if by.display_value else kind
