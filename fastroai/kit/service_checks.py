"""Checks that ask the services: Prefect's server, result storage, the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..database.engine import database_url, open_database
from ..database.location import ledger_url
from ..settings import FastroAISettings
from .finding import Check, Finding
from .prefect_file import PREFECT_YAML, Deployment, pools_of

if TYPE_CHECKING:
    from ..executors.prefect import PoolState

PREFECT, POOLS, DEPLOYMENTS = Check("prefect"), Check("work pools"), Check("deployments")
STORAGE, LEDGER = Check("result storage"), Check("ledger")


async def check_prefect(
    settings: FastroAISettings, deployments: list[Deployment], findings: list[Finding]
) -> None:
    """The server, and on it the work pools, the workers and the deployments of prefect.yaml."""
    if settings.executor == "memory" and not deployments:
        findings.append(PREFECT.skipped("FASTROAI_EXECUTOR=memory: runs need no server."))
        return
    from ..executors.prefect import check_server, look_at, server_url

    url = server_url()
    if url is None:
        findings.append(
            PREFECT.warning(
                "PREFECT_API_URL is not set: each run starts a server for itself (10 s), and "
                "nothing can be deployed.",
                "`fastroai up` starts one here; or set PREFECT_API_URL to one that stays.",
            )
        )
        return
    before = len(findings)
    with PREFECT.noting(findings, _remedy_of(url)):
        await check_server()
    if len(findings) > before:
        return
    findings.append(PREFECT.ok(f"The server at {url} answers."))
    with POOLS.noting(findings):
        wanted = {(one.entrypoint, one.name) for one in deployments}
        pools, deployed = await look_at(pools_of(deployments), wanted)
        findings += check_deployments(deployments, deployed)
        findings += check_pools(pools, deployments, deployed)


def check_deployments(
    deployments: Iterable[Deployment], deployed: Iterable[str]
) -> Iterable[Finding]:
    """Whether what prefect.yaml lists is on the server."""
    names = {name.rpartition("/")[2] for name in deployed}
    missing = sorted({one.name for one in deployments} - names)
    if names:
        absent = f"; not deployed: {', '.join(missing)}" if missing else ""
        yield DEPLOYMENTS.ok(f"{', '.join(sorted(deployed))}{absent}")
    elif missing:
        yield DEPLOYMENTS.failed(
            f"Nothing of {PREFECT_YAML} is deployed.", "`prefect deploy --all`, in this folder"
        )


def _remedy_of(url: str) -> str:
    """What to do where no server answers at a URL; empty where that looks right."""
    if url.rstrip("/").endswith("/api") or "cloud" in url:
        return ""
    return f"Its API's URL ends in /api: did you mean {url}/api?"


def check_pools(
    pools: Iterable[PoolState], deployments: Iterable[Deployment], deployed: Iterable[str]
) -> Iterable[Finding]:
    """Whether each work pool is there, gives out runs, and has a worker where it has runs."""
    names = {name.rpartition("/")[2] for name in deployed}
    used = {one.pool for one in deployments if one.name in names}
    for pool in pools:
        what = f"Work pool {pool.name!r}"
        if not pool.exists:
            yield POOLS.failed(
                f"{what} does not exist.",
                f"prefect work-pool create --type process {pool.name}",
            )
        elif pool.is_paused:
            yield POOLS.failed(f"{what} is paused.", f"prefect work-pool resume {pool.name}")
        elif pool.workers:
            yield POOLS.ok(f"{what} has {pool.workers} worker(s).")
        elif pool.name in used:
            yield POOLS.failed(
                f"{what} has no worker: its runs wait for one.",
                f"prefect worker start --pool {pool.name}",
            )
        else:
            yield POOLS.ok(f"{what} has no worker, and nothing is deployed on it.")


async def check_storage(settings: FastroAISettings, findings: list[Finding]) -> None:
    """One write, read and delete where results are kept."""
    if settings.executor == "memory" and settings.result_storage is None:
        findings.append(STORAGE.skipped("FASTROAI_EXECUTOR=memory: results are kept for the run."))
        return
    from ..executors.prefect import probe_storage

    with STORAGE.noting(findings):
        described = await probe_storage(settings)
        findings.append(STORAGE.ok(f"{described}: written, read, deleted."))


async def check_ledger(settings: FastroAISettings, findings: list[Finding]) -> None:
    """Whether the ledger can be written; as a run does, it is made where there is none."""
    if settings.executor == "memory" and settings.ledger_url is None:
        findings.append(LEDGER.skipped("FASTROAI_EXECUTOR=memory: runs keep their own entries."))
        return
    with LEDGER.noting(findings):
        # In a thread, as PostgreSQL's driver has an event loop of its own.
        name = await asyncio.to_thread(prepared, ledger_url(settings))
        findings.append(LEDGER.ok(f"{name} can be written."))


def prepared(url: str) -> str:
    """Have a ledger at a URL, and write to it; gives its name.

    Raises:
        LedgerUnavailableError: It can't be used.
    """
    database = open_database(database_url(url), writes=True)
    try:
        database.prepare()
        return database.name
    finally:
        database.close()
