"""Runs whose process died are told from living ones, and go on with one command."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from fastroai.cli import main
from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseRecord, LeaseRequest
from fastroai.settings import load_settings
from tests.integration.read_back import read_run
from tests.support import forked
from tests.support.gated_run import REPOSITORY, Gate, RunProcess, prompts, until
from tests.support.provider_process import ProviderProcess

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(500)]

PATIENCE = 150.0

Runs = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def run(gate: Gate, tmp_path: Path) -> Iterator[RunProcess]:
    started = RunProcess(f"dead-{uuid4()}", gate, tmp_path)
    yield started
    started.kill()


async def runs(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`fastroai runs`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = await asyncio.to_thread(main, ["runs", *arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


async def holdings() -> list[LeaseRecord]:
    return await asyncio.wrap_future(configured_heartbeat(load_settings()).holdings("flow_run"))


async def dead(flow_run_id: str) -> None:
    """Wait until a run counts as dead, and see that the list says so."""
    async with asyncio.timeout(60):
        while [h for h in await holdings() if h.claim.name == flow_run_id and h.is_alive]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    [line] = [line for line in (await runs()).stdout.splitlines() if line.startswith(flow_run_id)]
    assert line.endswith("DEAD")
    assert " gated " in line
    assert f"/runs/flow-run/{flow_run_id}" in line


async def under_way(gate: Gate) -> LeaseRecord:
    """Wait until the run is at its gate."""
    await until(lambda: gate.is_reached)
    [holding] = await holdings()
    return holding


async def test_a_deployed_run_whose_worker_was_killed_is_finished_by_another(
    provider: ProviderProcess, gate: Gate
) -> None:
    flow_run_id = await deploy_and_run(gate)
    worker = start_worker()
    try:
        holding = await under_way(gate)
        assert holding.claim.name == str(flow_run_id)
        alive = await runs("resume", str(flow_run_id)[:12])
        assert alive.returncode == 1
        assert "is alive: process" in alive.stderr
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    with suppress(ProcessLookupError):
        os.kill(holding.claim.pid, signal.SIGKILL)
    await dead(str(flow_run_id))
    assert (await state_of(flow_run_id)).name == "Running"

    resumed = await runs("resume", str(flow_run_id)[:12])
    assert resumed.returncode == 0, resumed.stderr
    assert "Scheduled again for a worker of 'gated/nightly'" in resumed.stdout
    assert (await state_of(flow_run_id)).name == "AwaitingRetry"
    gate.open()
    worker = start_worker("--run-once")
    assert await asyncio.to_thread(worker.wait, PATIENCE) == 0
    stored = await read_run(flow_run_id, tasks=4)
    assert stored.flow_run.state_name == "Completed"
    assert stored.flow_run.run_count == 2
    assert prompts(provider.lines) == ["first", "second"]
    shown = json.loads((await runs("show", str(flow_run_id), "--json")).stdout)
    assert (shown["name"], shown["state"]) == (stored.flow_run.name, "Completed")
    assert (shown["deployment"], shown["requests"]) == ("gated/nightly", 2)
    states = {step["step"]: (step["state"], step["requests"]) for step in shown["steps"]}
    assert (states["first"], states["second"]) == (("Cached", 1), ("Completed", 1))
    assert states["gate"] == ("Completed", 0)
    [recent] = json.loads((await runs("--json", "--run", str(flow_run_id))).stdout)["runs"]
    assert (recent["url"], recent["process"]) == (shown["url"], None)
    assert shown["url"].endswith(str(flow_run_id))
    assert [t.state_name for t in stored.all_task_runs if t.name == "gate"].count("Running") == 0
    assert await holdings() == []


async def test_a_run_that_execute_started_is_marked_as_crashed_and_says_how_it_goes_on(
    provider: ProviderProcess, gate: Gate, run: RunProcess, tmp_path: Path
) -> None:
    flow_run_id = (await under_way(gate)).claim.name
    run.kill()
    await dead(flow_run_id)
    resumed = await runs("resume", "--all")
    assert resumed.returncode == 0, resumed.stderr
    state = await state_of(flow_run_id)
    assert state.name == "Crashed"
    assert f"Execute 'gated' again with run_key={run.run_key!r}" in (state.message or "")
    assert state.message is not None
    assert state.message.partition("state. ")[2] in resumed.stdout
    assert (await runs()).stdout.endswith("\nNo active or dead runs.\n")
    gate.open()
    again = RunProcess(run.run_key, gate, tmp_path)
    assert (await again.ended())["states"] == ["replayed", "charged"]
    assert prompts(provider.lines) == ["first", "second"]


@pytest.mark.long
async def test_a_process_that_only_slept_stops_when_its_run_was_taken_up(
    provider: ProviderProcess, gate: Gate, run: RunProcess
) -> None:
    flow_run_id = (await under_way(gate)).claim.name
    await run.sleep()
    await dead(flow_run_id)
    assert (await runs("resume", flow_run_id)).returncode == 0
    gate.open()
    run.process.send_signal(signal.SIGCONT)
    ended = await run.ended()
    assert ended["error"] == "RunLeaseError", run.output
    assert prompts(provider.lines) == ["first"]
    assert (await state_of(flow_run_id)).name == "Crashed"


async def test_what_ended_after_all_is_forgotten_and_what_is_unknown_is_left_alone(
    gate: Gate,
) -> None:
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("ended by hand")
        ended, unknown = await _flow_run(client, flow_id), uuid4()
        await client.set_flow_run_state(ended, _completed(), force=True)
    for id_ in (ended, unknown):
        claim = LeaseRequest(kind="flow_run", name=str(id_), seconds=0.001)
        await asyncio.wrap_future(configured_heartbeat(load_settings()).take(claim, lambda: None))
    configured_heartbeat(load_settings()).stop(5)  # as if its process had died
    # This process has no heartbeat any more: another one looks.
    command = [sys.executable, "-m", "fastroai", "runs"]
    listed = await asyncio.to_thread(
        forked.run, command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    assert listed.stdout == (
        "No active or dead runs.\n1 more of this ledger are unknown to this Prefect server.\n"
    )


async def test_a_run_that_nothing_is_known_of_is_named() -> None:
    nothing = await runs("resume", "0192abcd")
    assert nothing.returncode == 2
    assert "'0192abcd'" in nothing.stderr


@pytest.mark.parametrize("arguments", [(), ("--all", "abc")])
async def test_resuming_needs_runs_or_all(arguments: tuple[str, ...]) -> None:
    done = await runs("resume", *arguments)
    assert done.returncode == 2
    assert "RUN …, or --all" in done.stderr


POOL = "gated-pool"


async def deploy_and_run(gate: Gate) -> UUID:
    """A deployment for a worker's pool, and a run of it."""
    from tests.support.gated_flow import flow

    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        deployment_id = await client.create_deployment(
            flow_id=await client.create_flow(flow),
            name="nightly",
            work_pool_name=POOL,
            # With a path, a worker copies the whole checkout for each run; one that is killed
            # leaves its copies behind.
            pull_steps=[
                {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
            ],
            entrypoint="tests/support/gated_flow.py:flow",
            enforce_parameter_schema=False,
        )
        inputs = {"gate": str(gate.path), "busy": False}
        run = await client.create_flow_run_from_deployment(
            deployment_id, parameters={"inputs": inputs}
        )
    return run.id


def start_worker(*options: str) -> subprocess.Popen[bytes]:
    """A worker in a process group of its own."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, *options]
    return forked.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, start_new_session=True)


async def state_of(flow_run_id: UUID | str) -> Any:
    async with get_client() as client:
        return (await client.read_flow_run(UUID(str(flow_run_id)))).state


async def _flow_run(client: Any, flow_id: UUID) -> UUID:
    response = await client._client.post("/flow_runs/", json={"flow_id": str(flow_id)})
    return UUID(response.json()["id"])


def _completed() -> Any:
    from prefect.states import Completed

    return Completed()
