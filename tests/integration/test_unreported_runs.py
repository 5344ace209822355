"""Runs whose end Prefect's server did not see are found later, and get their true final state."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from fastroai import Pipeline, StepContext, StepExecutionError, step
from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseRecord
from fastroai.settings import load_settings
from tests.support import forked
from tests.support.gated_run import REPOSITORY, Gate, RunProcess, prompts, until
from tests.support.provider_process import ProviderProcess
from tests.support.restartable_server import RestartableServer

pytestmark = pytest.mark.timeout(500)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")
    monkeypatch.setenv("FASTROAI_ARTIFACT_TIMEOUT", "1")
    monkeypatch.setenv("FASTROAI_EXECUTOR", "prefect")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


async def runs(*arguments: str) -> str:
    """What `fastroai runs` writes."""
    command = [sys.executable, "-m", "fastroai.cli", "runs", *arguments]
    done = await asyncio.to_thread(
        forked.run, command, cwd=REPOSITORY, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def ended() -> list[LeaseRecord]:
    return await asyncio.wrap_future(configured_heartbeat(load_settings()).ended())


async def records_are(expected: Callable[[list[LeaseRecord]], bool]) -> None:
    async with asyncio.timeout(150):
        while not expected(await ended()):  # noqa: ASYNC110  # only the database knows
            await asyncio.sleep(0.05)


async def flow_run(id_: str) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(UUID(id_))


async def task_states(id_: str) -> dict[str, str | None]:
    async with get_client() as client:
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(id_)]))
        task_runs = await client.read_task_runs(flow_run_filter=of_run)
    return {task_run.name: task_run.state_name for task_run in task_runs}


@pytest.mark.long
async def test_a_run_that_ended_while_the_server_was_dead_is_completed_by_the_runs_command(
    restartable_server: RestartableServer, provider: ProviderProcess, gate: Gate, tmp_path: Path
) -> None:
    run = RunProcess(f"unreported-{uuid4()}", gate, tmp_path)
    await until(lambda: gate.is_reached)
    restartable_server.kill()
    gate.open()
    assert (await run.ended())["states"] == ["charged", "charged"]
    [record] = await ended()
    assert record.outcome == "completed"

    restartable_server.start()
    assert (await flow_run(record.claim.name)).state_name == "Running"
    listed = await runs()
    assert record.claim.name in listed
    assert "Completed" in listed
    reported = await flow_run(record.claim.name)
    assert reported.state_name == "Completed"
    assert set((await task_states(record.claim.name)).values()) == {"Completed"}
    assert await ended() == []
    assert "Ended while" not in await runs()  # what was reported is not reported again
    assert prompts(provider.lines) == ["first", "second"]


@pytest.mark.long
async def test_a_process_killed_after_its_last_step_leaves_the_outcome_of_its_run(
    restartable_server: RestartableServer, provider: ProviderProcess, gate: Gate
) -> None:
    code = (
        "import asyncio, sys; from tests.support.gated_flow import flow; "
        "asyncio.run(flow({'gate': sys.argv[1], 'busy': False}))"
    )
    command = [sys.executable, "-c", code, str(gate.path)]
    process = forked.Popen(command, cwd=REPOSITORY)
    await until(lambda: gate.is_reached)
    restartable_server.kill()
    gate.open()
    await records_are(lambda records: bool(records))
    process.kill()
    process.wait()

    restartable_server.start()
    [record] = await ended()
    assert (await flow_run(record.claim.name)).state_name == "Running"
    await records_are(lambda records: not records[0].is_alive)
    assert "Completed" in await runs()
    assert (await flow_run(record.claim.name)).state_name == "Completed"
    assert len(provider.lines) == 2


async def test_a_run_that_failed_meanwhile_is_reported_by_the_next_run_of_its_process(
    restartable_server: RestartableServer,
) -> None:
    @step
    async def loses_its_server(ctx: StepContext[Any]) -> str:
        restartable_server.kill()
        raise ValueError("on its own account")

    @step
    async def goes_on(ctx: StepContext[Any]) -> str:
        return "done"

    failing = Pipeline("failing", {"only": loses_its_server}, executor="prefect")
    with pytest.raises(StepExecutionError, match="on its own account"):
        await failing.execute({}, None)
    [record] = await ended()
    assert record.outcome == "failed"
    assert record.claim.pid == os.getpid()

    restartable_server.start()
    later = Pipeline("later", {"only": goes_on}, executor="prefect")
    assert (await later.execute({}, None)).output == "done"
    failed = await flow_run(record.claim.name)
    assert failed.state_name == "Failed"
    assert "Running" not in (await task_states(record.claim.name)).values()
    assert await ended() == []


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_that_the_server_saw_ending_leaves_nothing() -> None:
    @step
    async def only(ctx: StepContext[Any]) -> str:
        return "done"

    pipeline = Pipeline("seen", {"only": only}, executor="prefect")
    await pipeline.execute({}, None)
    await asyncio.create_task(pipeline.to_flow()())
    await records_are(lambda records: not records)
    assert "No active or dead runs." in await runs()
