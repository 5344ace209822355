"""Two workers of one pool share a map: each item once, one cost table, books that balance; also
when one of them is killed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Pending

from fastroai.usage import EntryState, Ledger
from tests.integration.read_back import read_run, usd
from tests.support.behaviours import Answer
from tests.support.deployed_runs import work
from tests.support.invoice import fixed_price, invoiced_usd
from tests.support.killed_workers import REPOSITORY, Worker, environment
from tests.support.provider_process import ProviderProcess
from tests.support.s3 import S3Service
from tests.support.spread_flow import NAME, flow, flow_twice

pytestmark = pytest.mark.timeout(300)

POOL = "spread"
DOCUMENTS = 400
HALF = DOCUMENTS // 2
AT_ONCE = 8
"""The step's `max_concurrency`."""


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    for name, value in environment(tmp_path / "results").items():
        monkeypatch.setenv(name, value)
    return url


@asynccontextmanager
async def two_workers(
    flow: str = "flow", documents: int = DOCUMENTS
) -> AsyncIterator[tuple[UUID, list[Worker]]]:
    """A run that this process is to run, and two workers for those that work on its items."""
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        here = {"directory": str(REPOSITORY)}
        deployment = await client.create_deployment(
            flow_id=await client.create_flow_from_name(NAME),
            name="often",
            work_pool_name=POOL,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": here}],
            entrypoint=f"tests/support/spread_flow.py:{flow}",
            enforce_parameter_schema=False,
        )
        run = await client.create_flow_run_from_deployment(
            deployment, parameters={"inputs": {"documents": documents}}
        )
        await client.set_flow_run_state(run.id, Pending())  # so that no worker takes it
        workers = [Worker(name, POOL, "--limit", "1", "--name", name) for name in ("one", "two")]
        try:
            async with asyncio.timeout(60):
                while len(await client.read_workers_for_work_pool(POOL)) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            yield run.id, workers
        finally:
            for worker in workers:
                worker.kill()


async def asked_more_than(provider: ProviderProcess, number: int) -> None:
    """Wait until more than so many were asked; the workers' runs have still to start."""
    await asyncio.to_thread(provider.lines_when, lambda lines: len(lines) > number, 120.0)


def summaries_by_worker(output: Any) -> Counter[str]:
    assert [key for _, key, _ in output] == [f"doc-{number}" for number in range(DOCUMENTS)]
    return Counter(worker for worker, _, _ in output)


@pytest.mark.long
async def test_two_workers_share_a_map(provider: ProviderProcess, ledger: str) -> None:
    async with two_workers() as (run, _):
        result = await work(flow, run)
    assert summaries_by_worker(result.output) == {"one": HALF, "two": HALF}
    assert max(Counter(line.prompt for line in provider.billed).values()) == 1
    async with Ledger.open(ledger) as books:
        booked = await books.entries(run_id=str(run))
    assert {entry.id: entry for entry in booked} == {entry.id: entry for entry in result.entries}
    assert len(booked) == DOCUMENTS
    invoiced = invoiced_usd(provider.billed, fixed_price)
    assert sum((entry.cost_usd or Decimal(0) for entry in booked), Decimal(0)) == invoiced
    on_server = await read_run(run, tasks=2, artifacts=2)
    assert usd(on_server.rows()) == invoiced


@pytest.mark.long
async def test_one_of_two_workers_is_killed_and_the_other_finishes(
    provider: ProviderProcess, ledger: str
) -> None:
    provider.script("document", Answer(slowest=0.3))
    async with two_workers() as (run, workers):
        running = asyncio.create_task(work(flow, run))
        await asked_more_than(provider, HALF // 2)
        await asyncio.to_thread(workers[0].kill)
        result = await running
    by_worker = summaries_by_worker(result.output)
    assert by_worker["one"] < HALF < by_worker["two"]
    asked = Counter(line.prompt for line in provider.lines_when(lambda _: True))
    again = sum(asked.values()) - len(asked)
    # What was under way, and what had been answered a moment before.
    assert again <= 3 * AT_ONCE
    async with Ledger.open(ledger) as books:
        booked = await books.entries(run_id=str(run))
    assert {entry.id for entry in booked} == {entry.id for entry in result.entries}
    sent = [entry for entry in booked if entry.state is not EntryState.REPLAYED]
    assert len(sent) == sum(asked.values())
    unknown = [entry for entry in sent if entry.state is EntryState.UNSETTLED]
    assert len(unknown) <= 2 * AT_ONCE


@pytest.mark.long
async def test_a_map_over_a_map_is_shared_by_postgresql_and_s3_and_a_worker_is_killed(
    provider: ProviderProcess,
    postgres_url: str,
    s3: S3Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = {"FASTROAI_RESULT_STORAGE": f"s3://{s3.bucket}/results"}
    for name, value in (s3.environment | storage).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_LEDGER_URL", postgres_url)
    provider.script("document", Answer(slowest=0.5))
    provider.script("check", Answer(slowest=0.5))
    documents, at_once = 40, 4
    async with two_workers("flow_twice", documents) as (run, workers):
        running = asyncio.create_task(work(flow_twice, run))
        await asked_more_than(provider, documents // 2)
        await asyncio.to_thread(workers[0].kill)
        result = await running
    assert [key for _, key, _ in result.output] == [f"doc-{number}" for number in range(documents)]
    asked = Counter(line.prompt for line in provider.lines_when(lambda _: True))
    assert len(asked) == 2 * documents
    # What was under way, and what had been answered a moment before.
    assert sum(asked.values()) - len(asked) <= 3 * at_once
    async with Ledger.open(postgres_url) as books:
        booked = await books.entries(run_id=str(run))
    assert {entry.id for entry in booked} == {entry.id for entry in result.entries}
    sent = [entry for entry in booked if entry.state is not EntryState.REPLAYED]
    assert len(sent) == sum(asked.values())
    assert Counter(entry.attribution.step_id for entry in sent).keys() == {"summaries", "checks"}
    assert any("items/" in key for key in s3.keys("results"))
