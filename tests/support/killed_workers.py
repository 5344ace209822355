"""Workers that are killed at random moments together with their runs, which others take up
until they end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType

from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseRecord
from fastroai.settings import load_settings
from tests.support import forked
from tests.support.killed_runs import RESULTS, SLOWEST, WORKER, Attempt, kept
from tests.support.provider_process import ProviderProcess

REPOSITORY = Path(__file__).parents[2]
POOL = "killed"
RUNS = 2
"""Under way at once, so that one kill hits several.

More would only be slower to start, on two cores.
"""
STEPS, RECORDS = 12, 38
"""How many results, and how many results and answers, are kept of a run."""
LENGTH = 6.0
"""About so many seconds pass from the start of a run's process to its end."""
LEASE_SECONDS = 2
SETTLING = 1.0
"""Seconds in which the server has done what it was asked for just before a kill: a run may end
after its process.
"""
PATIENCE = 120.0
"""Seconds after which a run or a command counts as hanging."""
KINDS = ("asked", "at some time", "asked", "stored", "answered")
"""When a kill comes: as a request waits for its answer, a while after a result or an answer
was stored, or whenever.
"""
PUT_BACK = {"state": {"type": "SCHEDULED"}, "force": True}

Moment = Callable[[], bool]
"""Whether it has come."""
_TICK = 0.01
_LOOK = 0.3


def environment(results: Path) -> dict[str, str]:
    """What the workers need besides the addresses of provider, ledger and server."""
    return {
        "PYTHONPATH": str(REPOSITORY),
        "FASTROAI_LEASE_SECONDS": str(LEASE_SECONDS),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "0.3",
        RESULTS: str(results),
    }


async def deploy(client: PrefectClient) -> UUID:
    """A deployment for the workers' pool."""
    await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    return await client.create_deployment(
        flow_id=await client.create_flow_from_name("killed"),
        name="often",
        work_pool_name=POOL,
        # With a path, a worker copies the whole checkout for each run; one that is killed leaves
        # its copies behind.
        pull_steps=[
            {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
        ],
        entrypoint="tests/support/killed_flow.py:flow",
        enforce_parameter_schema=False,
    )


class Worker:
    """`prefect worker start` in a session of its own.

    Args:
        options: Further ones of the command.
    """

    def __init__(self, name: str, pool: str = POOL, *options: str) -> None:
        self.name = name
        self.began = time.time()
        self._process = forked.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, *options],
            cwd=REPOSITORY,
            env=os.environ | {WORKER: name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def descendants(self) -> set[int]:
        """The processes it has started, and those that these have, in whatever group."""
        parents = {pid: parent for pid, (_, parent) in _processes().items()}
        found: set[int] = set()
        more = {self._process.pid}
        while more:
            more = {pid for pid, parent in parents.items() if parent in more}
            found |= more
        return found

    def kill(self) -> None:
        """End it and all its descendants without a word."""
        if self._process.poll() is not None:
            return
        # Stopped first, it neither starts another process meanwhile nor notes that one was killed.
        self._process.send_signal(signal.SIGSTOP)
        while _processes()[self._process.pid][0] not in "TZ":
            time.sleep(_TICK)
        killed = self.descendants
        for pid in (self._process.pid, *killed):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while [
            pid for pid, (state, _) in _processes().items() if pid in killed and state not in "ZX"
        ]:
            time.sleep(_TICK)


def _processes() -> dict[int, tuple[str, int]]:
    """State and parent of each process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                found[int(folder.name)] = state, int(parent)
    return found


@dataclass
class Killing:
    """Starts runs of a deployment, kills them with their worker, and has another take them up.

    Args:
        kills: How often, not counting those that no run had had a heartbeat before.
        results: An empty folder. For each flow run it gets a folder with one for each step.

    Attributes:
        attempts: By worker and run. Those of a run one after the other.
        done: How many kills there were.
        hit: How many runs they hit.
        unheard: State, and number of steps done, of runs that had no heartbeat yet, or no
            longer, when they were killed.
    """

    client: PrefectClient
    provider: ProviderProcess
    deployment_id: UUID
    kills: int
    chance: random.Random
    results: Path
    attempts: list[Attempt] = field(default_factory=list)
    done: int = 0
    hit: int = 0
    unheard: list[tuple[str, int]] = field(default_factory=list)
    _worker: Worker = field(init=False)
    _workers: int = 0

    async def go(self) -> None:
        """Go on until so many kills were done and all runs have ended."""
        runs = await self._start_runs()
        self._start_worker()
        moment = self._when_one_has_started()
        try:
            while runs:
                runs = await (
                    self._kill(runs) if await self._comes(moment, runs) else self._tell(runs)
                )
                if self.done < self.kills:
                    runs = runs or await self._start_runs()
                    moment = self._random_moment(runs)
                else:
                    moment = _never
        finally:
            self._worker.kill()
        order = list(dict.fromkeys(attempt.run for attempt in self.attempts))
        self.attempts.sort(key=lambda attempt: order.index(attempt.run))

    def _start_worker(self) -> None:
        self._workers += 1
        self._worker = Worker(f"worker-{self._workers}")

    async def _start_runs(self) -> list[UUID]:
        create = self.client.create_flow_run_from_deployment
        return [(await create(self.deployment_id)).id for _ in range(RUNS)]

    async def _comes(self, moment: Moment, runs: Iterable[UUID]) -> bool:
        """Whether a moment comes before all runs have ended."""
        look_at = 0.0
        async with asyncio.timeout(PATIENCE):
            while not moment():
                if time.monotonic() >= look_at:
                    if all([_has_ended(await self.client.read_flow_run(run)) for run in runs]):
                        return False
                    look_at = time.monotonic() + _LOOK
                await asyncio.sleep(_TICK)
        return True

    def _random_moment(self, runs: Iterable[UUID]) -> Moment:
        """By turns of the kinds, and random within each."""
        kind = KINDS[self._workers % len(KINDS)]
        if kind == "at some time":
            return _later(self._when_one_has_started(), self.chance.uniform(0, LENGTH))
        depth, most = ("*/*", STEPS) if kind == "stored" else ("**/*", RECORDS)
        folders = [self.results / str(run) for run in runs]

        def count() -> int:
            return sum(file.is_file() for folder in folders for file in folder.glob(depth))

        there = count()
        wanted = there + self.chance.randint(1, max(1, len(folders) * most - there))
        if kind == "asked":
            return lambda: count() >= wanted and self._is_asked()
        return _later(lambda: count() >= wanted, self.chance.uniform(0, SLOWEST))

    def _is_asked(self) -> bool:
        return any(line.delivered is None for line in self.provider.lines_when(lambda _: True))

    def _when_one_has_started(self) -> Moment:
        """When the worker has started a run's process, which takes seconds until it gives a
        heartbeat.
        """
        return lambda: bool(self._worker.descendants)

    async def _kill(self, runs: Iterable[UUID]) -> list[UUID]:
        """Kill the worker and its runs, and put these back for another; returns those that had
        not ended.
        """
        self._worker.kill()
        await asyncio.sleep(SETTLING)
        running = {pid for pid, (state, _) in _processes().items() if state not in "ZX"}
        pid_by_run = {holding.claim.name: holding.claim.pid for holding in await _holdings()}
        left = await self._tell(runs)
        heard = [run for run in left if str(run) in pid_by_run]
        # No descendants of the worker's where they are forks, which end as it does.
        assert running.isdisjoint(pid_by_run[str(run)] for run in heard)
        self.hit += len(heard)
        self.done += bool(heard)
        unheard = [await self.client.read_flow_run(run) for run in left if run not in heard]
        taken = [run for run in unheard if run.state_type is not StateType.SCHEDULED]
        self.unheard += [
            (run.state_name or "", len(kept(self.results / str(run.id))[0])) for run in taken
        ]
        self._start_worker()  # it is up when they count as dead
        await _resume(heard)
        for run in taken:
            await self._put_back(run)
        return left

    async def _tell(self, runs: Iterable[UUID]) -> list[UUID]:
        """Note what became of runs; returns those that have not ended."""
        left = []
        for run in runs:
            ended = _has_ended(await self.client.read_flow_run(run))
            folder = self.results / str(run)
            attempt = Attempt(
                f"{self._worker.name}-{run}",
                str(run),
                self._worker.began,
                time.time(),
                not ended,
                *kept(folder),
                output=_output(folder) if ended else None,
            )
            self.attempts.append(attempt)
            left += [] if ended else [run]
        return left

    async def _put_back(self, run: FlowRun) -> None:
        """What docs/resuming.md says of runs that `fastroai runs` knows nothing of."""
        assert run.state_type in (StateType.PENDING, StateType.RUNNING)
        answer = await self.client._client.post(f"/flow_runs/{run.id}/set_state", json=PUT_BACK)
        answer.raise_for_status()


def _never() -> bool:
    return False


def _later(moment: Moment, seconds: float) -> Moment:
    """So long after a moment."""
    came: list[float] = []

    def is_over() -> bool:
        if not came and moment():
            came.append(time.monotonic())
        return bool(came) and time.monotonic() >= came[0] + seconds

    return is_over


def _has_ended(run: FlowRun) -> bool:
    assert run.state is not None
    assert not run.state.is_failed(), run.state.message
    return run.state.is_completed()


def _output(folder: Path) -> Any:
    """What the stored result of the last step says."""
    [file] = (folder / "end").glob("[!.]*")
    return json.loads(json.loads(file.read_bytes())["result"])["output"]["value"]


async def _holdings() -> list[LeaseRecord]:
    return await asyncio.wrap_future(configured_heartbeat(load_settings()).holdings("flow_run"))


async def _resume(runs: list[UUID]) -> None:
    """`fastroai runs resume --all`, once the runs count as dead."""
    if not runs:
        return
    names = {str(run) for run in runs}
    async with asyncio.timeout(PATIENCE):
        while any(  # noqa: ASYNC110
            holding.is_alive and holding.claim.name in names for holding in await _holdings()
        ):
            await asyncio.sleep(_TICK)
    command = [sys.executable, "-m", "fastroai.cli", "runs", "resume", "--all"]
    done = await asyncio.to_thread(
        forked.run, command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names)
