"""Attribution of a flow run's requests: its id, tags and deployment."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from ...ledger.entries import Attribution

logger = logging.getLogger("fastroai.executors")

ANSWER_SECONDS = 5


async def with_flow_run(attribution: Attribution, flow_run: FlowRun) -> Attribution:
    """What the caller says of a run, with what Prefect knows of it."""
    return replace(
        attribution,
        run_id=str(flow_run.id),
        deployment=None
        if flow_run.deployment_id is None
        else await _deployment_name(flow_run.deployment_id),
        flow_tags=tuple(sorted(flow_run.tags)),
    )


async def _deployment_name(deployment_id: UUID) -> str:
    """The deployment's name, or its id where the server does not say: a run does not fail for want
    of it.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS), get_client() as client:
            return str((await client.read_deployment(deployment_id)).name)
    except Exception as error:
        logger.warning("The name of deployment %s could not be read: %r", deployment_id, error)
        return str(deployment_id)
