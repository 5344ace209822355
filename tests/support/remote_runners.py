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

RUNNERS = ("dask", "ray")
MISSING = {
    name: f"prefect-{name} is not installed: pip install 'fastroai[{name}]'"
    for name in RUNNERS
    if not find_spec(f"prefect_{name}")
}
"""Why nothing runs on some of them here."""

_STILL = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "10s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "10s",
}
"""Has a cluster that nobody uses take less of the processor from the other tests."""
_TOKEN = {"RAY_AUTH_MODE": "token"}
"""A cluster that `ray.init()` starts wants a token, which who connects by an address does not send
unless told to; it is in `HOME`, which is this run's.
"""
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
    return node._replace(config=config)


def is_given(found: object, given: BaseException, executor: object) -> bool:
    """Whether an error is the one that a step was given: the very object, or what it reads as where
    it has come from another process.
    """
    if not isinstance(executor, AllRemote):
        return found is given
    return type(found) is type(given) and str(found) == str(given)


def all_remote(name: str) -> AllRemote:
    """The executor on this run's cluster of a kind, which is started when nobody did so yet; the
    test is skipped where its packages are missing.
    """
    if name in MISSING:
        pytest.skip(MISSING[name])
    address = _address(name, Path(os.environ[SHARED_DIR]))
    return AllRemote(_on_ray(address) if name == "ray" else _on_dask(address))


def _on_dask(address: str) -> Any:
    from prefect_dask import DaskTaskRunner

    return DaskTaskRunner(address=address)


def _on_ray(address: str) -> Any:
    """Connected once for each process of tests: for each connection Ray starts workers anew."""
    os.environ |= _TOKEN
    import ray
    from prefect_ray import RayTaskRunner

    if not ray.is_initialized():
        ray.init(address, namespace="prefect", log_to_driver=False, configure_logging=False)
    return RayTaskRunner(address=address)


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
            executable=sys.executable,  # Ray's own processes are no forks
            cwd=folder,
            env=environment | _STILL | _TOKEN | {"PYTHONPATH": str(REPOSITORY)},
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
    """Leave a cluster behind, which ends with the pytest run that wanted it, not with the worker
    that did so first.
    """
    address = folder / f"{name}-address"
    if name == "ray":
        if not os.fork():
            _be_ray(address)
        return
    import distributed  # noqa: F401  # once, for all of them

    for serve in (_schedule, *[_work] * _WORKERS):
        if not os.fork():
            Thread(target=_die_with_owner, args=(folder,), daemon=True).start()
            asyncio.run(serve(address))
            return


def _be_ray(address: Path) -> None:
    import ray

    folder = address.parent
    with ray.init(
        num_cpus=_WORKERS * _THREADS,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
    ) as context:
        partial_file = address.with_suffix(".partial")
        partial_file.write_text(context.address_info["gcs_address"])
        partial_file.rename(address)
        _await_owner(folder)


def _die_with_owner(folder: Path) -> None:
    _await_owner(folder)
    os._exit(0)


def _await_owner(folder: Path) -> None:
    owner = int((folder / "owner").read_text())
    with suppress(ProcessLookupError):
        while folder.exists():
            os.kill(owner, 0)
            time.sleep(0.5)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
