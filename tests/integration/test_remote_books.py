"""Steps that ask models in other processes: each request that was sent is booked once, whoever is
killed, cancelled or too late.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastroai import Pipeline, PipelineResult, StepConfig, StepExecutionError
from fastroai.executors import PrefectExecutor
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support import forked
from tests.support.provider import Answer, Hang, LoopbackProvider
from tests.support.remote_runners import all_remote, dask_cluster
from tests.support.remote_steps import Desk, Notes, asks_many, asks_when_let

__all__ = ["dask_cluster"]

dask = pytest.importorskip("prefect_dask")

pytestmark = pytest.mark.usefixtures("prefect_api")

CHARGED, UNSETTLED = EntryState.CHARGED, EntryState.UNSETTLED


@pytest.fixture
def provider() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")
    return url


on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)


def executor_on(address: str, provider: LoopbackProvider) -> PrefectExecutor:
    return PrefectExecutor(
        task_runner=dask.DaskTaskRunner(address=address), deps_factory=partial(Desk, provider.port)
    )


def one_step(remote: Any, executor: PrefectExecutor, **config: Any) -> Pipeline[Any, Any, Any]:
    configs = {"asks": StepConfig(remote=True, retry_delay=0.0, **config)}
    return Pipeline("remote", {"asks": remote}, step_configs=configs, executor=executor)


def prompts(provider: LoopbackProvider) -> list[str]:
    """What reached the provider."""
    return sorted(line.prompt for line in provider.invoice.lines)


async def until(happens: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not happens():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def booked(url: str) -> list[LedgerEntry]:
    async with Ledger.open(url) as ledger:
        return await ledger.entries()


def sent(entries: Any) -> Counter[EntryState]:
    """How what was sent is booked."""
    return Counter(entry.state for entry in entries if entry.state is not EntryState.REPLAYED)


async def assert_all_booked(
    result: PipelineResult[Any], provider: LoopbackProvider, url: str
) -> None:
    entries = await booked(url)
    assert {entry.id for entry in entries} == {entry.id for entry in result.entries}
    assert sent(entries)[CHARGED] + sent(entries)[UNSETTLED] == len(prompts(provider))


@on_postgres
async def test_a_run_that_is_cancelled_has_nothing_more_sent(
    dask_cluster: str,
    provider: LoopbackProvider,
    tmp_path: Path,
    ledger_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within a second, however long its lease would last."""
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "300")
    provider.script("question", Answer(slowest=0.05))
    pipeline = one_step(asks_many, executor_on(dask_cluster, provider))
    notes, inputs = Notes(tmp_path), {"folder": tmp_path, "questions": 500}
    run = asyncio.create_task(pipeline.execute(inputs, None))
    await until(lambda: len(prompts(provider)) > 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await until(notes.ended)
    assert notes.ended() == ["RunLeaseError"]
    assert len(prompts(provider)) < 500
    assert sent(await booked(ledger_url))[CHARGED] == len(prompts(provider))


@pytest.mark.long
@on_postgres
async def test_a_request_that_is_too_late_is_unknown_and_the_next_attempt_asks_again(
    dask_cluster: str, provider: LoopbackProvider, tmp_path: Path, ledger_url: str
) -> None:
    provider.script("question 1", Hang(), Answer("late"))
    pipeline = one_step(asks_many, executor_on(dask_cluster, provider), retries=1, timeout=3.0)
    result = await pipeline.execute({"folder": tmp_path, "questions": 2}, None)
    assert result.output[1] == "late"
    assert prompts(provider) == ["question 0", "question 1", "question 1"]
    assert sent(result.entries) == {CHARGED: 2, UNSETTLED: 1}
    assert [entry.state for entry in result.entries].count(EntryState.REPLAYED) == 1
    await assert_all_booked(result, provider, ledger_url)


@pytest.mark.long
async def test_workers_that_are_killed_at_any_moment_lose_nothing(
    provider: LoopbackProvider, tmp_path: Path, ledger_url: str
) -> None:
    """Once more than Dask goes on by itself, so that a retry of the step is needed, too."""
    from dask import config
    from distributed import LocalCluster

    with (
        config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        executor = executor_on(cluster.scheduler_address, provider)
        pipeline = one_step(asks_many, executor, retries=2)
        await assert_kills_lose_nothing(pipeline, provider, tmp_path, ledger_url)


@pytest.mark.long
@on_postgres
async def test_workers_of_ray_that_are_killed_lose_nothing(
    provider: LoopbackProvider, tmp_path: Path, ledger_url: str
) -> None:
    """It goes on three times by itself."""
    runner, deps_factory = all_remote("ray").runner, partial(Desk, provider.port)
    executor = PrefectExecutor(task_runner=runner, deps_factory=deps_factory)
    pipeline = one_step(asks_many, executor)
    await assert_kills_lose_nothing(pipeline, provider, tmp_path, ledger_url)


async def assert_kills_lose_nothing(
    pipeline: Pipeline[Any, Any, Any], provider: LoopbackProvider, folder: Path, url: str
) -> None:
    provider.script("question", Answer(slowest=0.05))
    questions, kills = 40, 3
    run = asyncio.create_task(pipeline.execute({"folder": folder, "questions": questions}, None))
    notes, killed = Notes(folder), set[int]()
    for kill in range(1, kills + 1):
        asked = random.randint(1, 8)
        begun = len(prompts(provider))
        await until(
            lambda asked=asked, begun=begun: (
                len(prompts(provider)) >= begun + asked and notes.pid() not in killed
            )
        )
        killed.add(notes.pid())
        os.kill(notes.pid(), signal.SIGKILL)
        assert len(killed) == kill
    result = await run
    assert len(result.output) == questions
    again = Counter(prompts(provider))
    # What was under way, or had come back a moment before.
    assert sum(again.values()) - questions <= kills
    assert max(again.values()) <= 1 + kills
    assert sent(result.entries)[CHARGED] >= questions
    assert sent(result.entries)[UNSETTLED] <= kills
    await assert_all_booked(result, provider, url)


RUN = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_remote_books import asks_when_let, executor_on, one_step

class Port:
    port = int(sys.argv[2])

pipeline = one_step(asks_when_let, executor_on(sys.argv[1], Port))
asyncio.run(pipeline.execute({"folder": Path(sys.argv[3])}, None, run_key="k"))
"""


@pytest.mark.long
@on_postgres
async def test_a_run_that_is_killed_goes_on_elsewhere_and_its_worker_asks_nothing_again(
    dask_cluster: str, provider: LoopbackProvider, tmp_path: Path, ledger_url: str
) -> None:
    notes = Notes(tmp_path)
    arguments = [dask_cluster, str(provider.port), str(tmp_path)]
    with forked.Popen(
        [sys.executable, "-c", RUN, *arguments], cwd=forked.REPOSITORY, stdin=subprocess.DEVNULL
    ) as process:
        await until(notes.is_held)
        process.kill()
    pipeline = one_step(asks_when_let, executor_on(dask_cluster, provider))
    result = await pipeline.execute({"folder": tmp_path}, None, run_key="k")
    notes.let_go()
    await until(lambda: len(notes.ended()) == 2)
    # It finds what the other was answered, and would be refused anything else.
    assert notes.ended() == ["well", "well"]
    assert prompts(provider) == ["one", "two"]
    entries = await booked(ledger_url)
    assert sent(entries) == {CHARGED: 2}
    assert [entry.state for entry in result.entries].count(EntryState.REPLAYED) == 1


@pytest.mark.long
@on_sqlite
async def test_a_pool_of_processes_that_breaks_fails_the_attempt_and_the_next_goes_on(
    provider: LoopbackProvider, tmp_path: Path, ledger_url: str
) -> None:
    """A pool that lost a process takes nothing more, so the run fails, and another one goes on."""
    from prefect.task_runners import ProcessPoolTaskRunner

    provider.script("question 1", Hang(), Answer("late"))
    runner = ProcessPoolTaskRunner(max_workers=1)
    executor = PrefectExecutor(task_runner=runner, deps_factory=partial(Desk, provider.port))
    pipeline = one_step(asks_many, executor)
    inputs = {"folder": tmp_path, "questions": 2}
    run = asyncio.create_task(pipeline.execute(inputs, None, run_key="k"))
    await until(lambda: prompts(provider) == ["question 0", "question 1"])
    os.kill(Notes(tmp_path).pid(), signal.SIGKILL)
    with pytest.raises(StepExecutionError, match="was lost"):
        await run
    result = await pipeline.execute(inputs, None, run_key="k")
    assert result.output[1] == "late"
    assert prompts(provider) == ["question 0", "question 1", "question 1"]
    assert sent(await booked(ledger_url)) == {CHARGED: 2, UNSETTLED: 1}
