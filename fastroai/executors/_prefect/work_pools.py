"""Work pools and deployments of a server: made for a local stack, and looked at by a check."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from .deployments import read_deployment_name
from .pool_templates import PROCESS, process_template

LOOK_EVERY = 0.3

Wanted = tuple[str | None, str]
"""A deployment's entrypoint and name."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """A work pool as a server has it.

    Attributes:
        exists: Whether it does.
        is_paused: Whether it gives out no runs.
        workers: How many workers are at work on it.
    """

    name: str
    exists: bool = False
    is_paused: bool = False
    workers: int = 0


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A flow run, as far as it got.

    Attributes:
        state: The name of its state.
        has_ended: Whether that is final.
        message: What Prefect says of the state.
    """

    run_id: str
    name: str
    state: str
    has_ended: bool
    succeeded: bool
    message: str


class RunRefusedError(Exception):
    """The server did not create a run; the text is its own."""


def client_at(api_url: str) -> PrefectClient:
    """A client of the server at a URL, without the keys that the settings have for another."""
    return PrefectClient(api_url)


async def make_process_pools(client: PrefectClient, names: Iterable[str]) -> list[str]:
    """Make those work pools that are not there, for workers that run processes; gives their
    names.
    """
    made: list[str] = []
    template = process_template()
    for name in names:
        wanted = WorkPoolCreate(name=name, type=PROCESS, base_job_template=template)
        try:
            await client.create_work_pool(wanted)
        except ObjectAlreadyExists:
            continue
        made.append(name)
    return made


async def look_at(
    pools: Iterable[str], deployments: Iterable[Wanted]
) -> tuple[list[PoolState], list[str]]:
    """Of the server that is set: how work pools are doing, and which deployments it has, as
    `flow/deployment`.
    """
    async with get_client() as client:
        states = [await pool_state(client, name) for name in pools]
        return states, list(await deployed(client, deployments))


def server_url() -> str | None:
    """The URL of the API of the server that is set; None: none is."""
    url: str | None = PREFECT_API_URL.value()
    return url or None


async def pool_state(client: PrefectClient, name: str) -> PoolState:
    """How a work pool is doing."""
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        return PoolState(name)
    workers = await client.read_workers_for_work_pool(name)
    online = sum(str(getattr(one.status, "value", one.status)) == "ONLINE" for one in workers)
    return PoolState(name, exists=True, is_paused=bool(pool.is_paused), workers=online)


async def deployed(client: PrefectClient, wanted: Iterable[Wanted]) -> dict[str, Any]:
    """The ids of those deployments that a server has, by `flow/deployment`."""
    wanted = set(wanted)
    by_name = DeploymentFilter(name=DeploymentFilterName(any_=sorted({one[1] for one in wanted})))
    # Others may have the same name: the flow's is only known where the flow is.
    found = await client.read_deployments(deployment_filter=by_name)
    return {
        await read_deployment_name(client, one.id): one.id
        for one in found
        if (one.entrypoint, one.name) in wanted
    }


async def run_deployment(
    client: PrefectClient, deployment_id: Any, environment: Mapping[str, str], seconds: float
) -> EndedRun:
    """Have a worker run a deployment with the parameters that it has, and wait for the end.

    Args:
        environment: Variables of the run beside those of its deployment.
        seconds: How long it is waited for.

    Raises:
        RunRefusedError: The server takes no such run, for example as it needs an input.
    """
    try:
        run = await client.create_flow_run_from_deployment(
            deployment_id, job_variables={"env": dict(environment)}
        )
    except PrefectHTTPStatusError as error:
        raise RunRefusedError(error.response.text[:500]) from error
    deadline = asyncio.get_running_loop().time() + seconds
    while not is_final(run) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(LOOK_EVERY)
        run = await client.read_flow_run(run.id)
    state = run.state
    return EndedRun(
        run_id=str(run.id),
        name=run.name,
        state=run.state_name or "unknown",
        has_ended=is_final(run),
        succeeded=state is not None and state.is_completed(),
        message=(state.message if state is not None else None) or "",
    )


def is_final(run: FlowRun) -> bool:
    """Whether a flow run has ended."""
    return run.state is not None and run.state.is_final()
