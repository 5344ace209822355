"""The deployment that a flow run's requests are booked to."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from prefect.client.orchestration import get_client

logger = logging.getLogger("fastroai.executors")

ANSWER_SECONDS = 5


async def deployment_name(deployment_id: UUID) -> str:
    """The deployment's name, or its id where the server does not say: a run does not fail for want
    of it.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS), get_client() as client:
            return str((await client.read_deployment(deployment_id)).name)
    except Exception as error:
        logger.warning("The name of deployment %s could not be read: %r", deployment_id, error)
        return str(deployment_id)
