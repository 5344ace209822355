"""Executors that have every step run in another process, on a cluster that all tests share."""

from __future__ import annotations

import asyncio
import copy
import fcntl
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fastroai.executors import PrefectExecutor
from fastroai.executors.protocol import ExecutionResult, PlanExecutor
from fastroai.pipelines.plan import ExecutionPlan, PlannedStep
from tests.support import forked
from tests.support.forked import REPOSITORY, SHARED_DIR

RUNNERS = tuple(name for name in ("dask",) if find_spec(f"prefect_{name}"))
"""Those whose packages are there."""

_STILL = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "10s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
}
"""Has a cluster that nobody uses take less of the processor from the other tests."""
_START_TIMEOUT = 120.0
_WORKERS, _THREADS = 2, 8


@dataclass(frozen=True)
class AllRemote(PlanExecutor):
    """Runs pipelines under Prefect, each step that does not say otherwise in a worker of a task
    runner, where it gets the run's deps pickled.
    """

    runner: Any

    async def execute_plan(
        self, plan: ExecutionPlan, inputs: dict[str, Any], deps: Any, *args: Any, **options: Any
    ) -> ExecutionResult:
        factory = partial(copy.copy, deps)
        executor = PrefectExecutor(task_runner=self.runner, deps_factory=factory)
        steps = {step_id: _sent(node) for step_id, node in plan.steps.items()}
        plan = replace(plan, steps=steps)
        return await executor.execute_plan(plan, inputs, deps, *args, **options)


def _sent(node: PlannedStep) -> PlannedStep:
    if node.config.remote is not None:
        return node
    config = copy.copy(node.config)
    config.remote = True
    return replace(node, config=config)


def is_given(found: object, given: BaseException, executor: object) -> bool:
    """Whether an error is the one that a step was given: the very object, or what it reads as where
    it has come from another process.
    """
    if not isinstance(executor, AllRemote):
        return found is given
    return type(found) is type(given) and str(found) == str(given)


def all_remote(name: str) -> AllRemote:
    """The executor on this run's cluster of a kind, which is started when nobody did so yet."""
    address = _address(name, Path(os.environ[SHARED_DIR]))
    from prefect_dask import DaskTaskRunner

    return AllRemote(DaskTaskRunner(address=address))


@pytest.fixture(scope="session")
def dask_cluster() -> str:
    """Address of a scheduler with two worker processes."""
    return _address("dask", Path(os.environ[SHARED_DIR]))


def _address(name: str, folder: Path) -> str:
    address = folder / f"{name}-address"
    with (folder / f"{name}-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _start(name, folder, address)
    return address.read_text()


def _start(name: str, folder: Path, address: Path) -> None:
    log = folder / f"{name}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API_")}
    with log.open("wb") as output:
        # A fork, as are its workers: each of the three would import all of fastroai.
        started = forked.run(
            [sys.executable, "-m", "tests.support.remote_runners", name, str(folder)],
            cwd=folder,
            env=environment | _STILL | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT
    while not address.exists():
        if started.returncode or time.monotonic() > deadline:
            pytest.fail(f"No cluster of {name}:\n{log.read_text()[-4000:]}", pytrace=False)
        time.sleep(0.02)


async def _schedule(address: Path) -> None:
    """Be the scheduler, and say where it listens once it has all its workers."""
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        partial_file = address.with_suffix(".partial")
        partial_file.write_text(scheduler.address)
        while len(scheduler.workers) < _WORKERS:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        partial_file.rename(address)
        await scheduler.finished()


async def _work(address: Path) -> None:
    from distributed import Worker

    partial_file = address.with_suffix(".partial")
    while not partial_file.exists() or not partial_file.read_text():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    scratch = {"local_directory": str(address.parent)}
    async with Worker(partial_file.read_text(), nthreads=_THREADS, **scratch) as worker:
        await worker.finished()


def _serve(name: str, folder: Path) -> None:
    """Leave a scheduler and its workers behind, which end with the pytest run that wanted them, not
    with the worker that did so first.
    """
    import distributed  # noqa: F401  # once, for all of them

    owner, address = int((folder / "owner").read_text()), folder / f"{name}-address"
    for serve in (_schedule, *[_work] * _WORKERS):
        if not os.fork():
            Thread(target=_die_with, args=(owner, folder), daemon=True).start()
            asyncio.run(serve(address))
            return


def _die_with(owner: int, folder: Path) -> None:
    with suppress(ProcessLookupError):
        while folder.exists():
            os.kill(owner, 0)
            time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
