"""Runs of a deployment that reach a budget wait for a person, without a process, and go on."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate

from fastroai.budgets import Budget, Budgets
from fastroai.cli import main
from fastroai.ledger.entries import total_usd
from fastroai.ledger.ledger import Ledger
from tests.acceptance.conftest import PATIENCE, REPOSITORY
from tests.integration.read_back import read_run
from tests.support import forked, paused_flows
from tests.support.behaviours import Answer
from tests.support.paused_flows import LIMIT, PRICE
from tests.support.provider_process import ProviderProcess

POOL = "paused-pool"
PROMPTS = ["start", "quick", "slow", "late", "end"]
ENOUGH = 10 * PRICE


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.mark.long
@pytest.mark.timeout(500)
async def test_runs_that_paused_have_no_process_and_go_on_once_their_budget_is_raised(
    provider: ProviderProcess, prefect_api: str, tmp_path: Path
) -> None:
    provider.script("slow", Answer(slowest=1.0))
    pids = tmp_path / "pids"
    pids.mkdir()
    async with Budgets.open() as budgets:
        await budgets.set(
            Budget(name="all of it", usd=LIMIT, at_limit="pause", pipeline="standing-budget")
        )
    async with get_client() as client:
        own, standing = [await deployed_run(client, name, pids) for name in ("own", "standing")]
    await work()

    # A worker that ran them has ended, and so has each process that ran a step of them.
    for pid in pids.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.name), 0)
    resume = f"fastroai runs resume {own}"
    await is_paused(own, "run budget 'own-budget' of 0.00036 USD (0.000", resume)
    raises = f"fastroai budgets raise --ledger sqlite:///{tmp_path}/ledger.db 'all of it' 0.00072"
    await is_paused(standing, raises, f"fastroai runs resume {standing}")
    assert asked(provider) == sorted(2 * PROMPTS[:3])
    listed = (await said_by("runs")).splitlines()
    assert sum(line.endswith("PAUSED") for line in listed) == 2
    assert "2 paused: `fastroai runs resume RUN`" in listed[-1]

    refused = await said_by("runs", "resume", str(standing), "--budget", "1", code=1)
    assert "fastroai budgets raise 'all of it' USD" in refused
    raised = await said_by("runs", "resume", str(own)[:18], "--budget", str(ENOUGH))
    assert "The run budget 'own-budget' is 0.0018 USD for it. Resumed" in raised
    await said_by("budgets", "raise", "all of it", str(ENOUGH))
    async with get_client() as client:
        await client.resume_flow_run(standing)  # as the button in the UI does
    await work()
    assert asked(provider) == sorted(2 * PROMPTS)
    undisturbed = paused_flows.pipeline("alone", executor="memory")
    expected = (await undisturbed.execute({"pids": str(pids)}, None)).output
    async with Ledger.open() as ledger:
        for run in (own, standing):
            stored = await read_run(run, tasks=3)
            assert stored.flow_run.state_name == "Completed"
            assert json.loads(stored.output().strip("`json\n")) == expected
            assert total_usd(await ledger.entries(run_id=str(run))) == 5 * PRICE
    assert "No active or dead runs." in await said_by("runs")


async def deployed_run(client: PrefectClient, name: str, pids: Path) -> UUID:
    """A run of a deployment of one of the flows."""
    await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    deployment_id = await client.create_deployment(
        flow_id=await client.create_flow(getattr(paused_flows, name)),
        name="nightly",
        work_pool_name=POOL,
        pull_steps=[
            {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
        ],
        entrypoint=f"tests/support/paused_flows.py:{name}",
        enforce_parameter_schema=False,
    )
    parameters = {"inputs": {"pids": str(pids)}}
    run = await client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
    return run.id


async def work() -> None:
    """Have a worker run what is scheduled, and wait for its end."""
    worker = forked.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--run-once"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    assert await asyncio.to_thread(worker.wait, PATIENCE) == 0


async def is_paused(run: UUID, *said: str) -> None:
    """Check the state of a run, and that an event tells of it."""
    async with get_client() as client:
        state = (await client.read_flow_run(run)).state
        assert state is not None
        assert (state.name, state.type.value) == ("Suspended", "PAUSED"), state.message
        for text in said:
            assert text in (state.message or "")
        assert state.state_details.pause_timeout is None
        async with asyncio.timeout(PATIENCE):
            while not await events_of(client, run):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def events_of(client: PrefectClient, run: UUID) -> list[dict[str, Any]]:
    """Those that say that a run paused."""
    related = {"id": [f"prefect.flow-run.{run}"]}
    body = {"related": related, "event": {"name": ["fastroai.budget.paused"]}}
    answer = await client._client.post("/events/filter", json={"filter": body})
    return list(answer.raise_for_status().json()["events"])


async def said_by(*arguments: str, code: int = 0) -> str:
    """What `fastroai` says, in this process."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert await asyncio.to_thread(main, list(arguments)) == code
    return said.getvalue()


def asked(provider: ProviderProcess) -> list[str]:
    """What the provider was asked."""
    return sorted(line.prompt for line in provider.billed)
