"""One run key, several processes: one executes, the others wait for it or for its death, and pay
nothing twice.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fastroai import Pipeline, StepContext, StepExecutionError, step
from fastroai.errors import LedgerUnavailableError, RunLeaseError
from fastroai.leases.heartbeat import BEATS
from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseRequest
from fastroai.settings import load_settings
from fastroai.usage import EntryState, Ledger
from tests.support.gated_run import Gate, RunProcess, prompts, until
from tests.support.models import counted_agent
from tests.support.provider_process import ProviderProcess
from tests.support.steps import Give

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(500)]

Start = Callable[..., RunProcess]
RENEWED = "SELECT renewed_at FROM fastroai_leases WHERE kind = 'run_key'"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def ledger_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    return url


@pytest.fixture
def sqlite_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def start(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    # Longer than a busy machine keeps a process from running.
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "10")
    started: list[RunProcess] = []
    run_key = f"work-{uuid4()}"

    def start(**options: Any) -> RunProcess:
        started.append(RunProcess(run_key, gate, tmp_path, **options))
        return started[-1]

    yield start
    for run in started:
        run.kill()


@pytest.fixture
def short_lease(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody has to die first."""
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")


async def waiting_behind(
    holder: RunProcess, gate: Gate, start: Start, **options: Any
) -> RunProcess:
    """A second process that waits for the first one, which waits at the gate."""
    await until(lambda: gate.is_reached or holder.process.poll() is not None)
    other = start(**options)
    await other.says("Waiting for it to finish")
    return other


async def left_over() -> list[str]:
    """Leases that nobody gave up."""
    heartbeat = configured_heartbeat(load_settings())
    return [
        holding.claim.name
        for kind in ("run_key", "flow_run")
        for holding in await asyncio.wrap_future(heartbeat.holdings(kind))  # type: ignore[arg-type]
    ]


async def test_the_second_process_waits_says_for_whom_and_takes_the_results(
    ledger_url: str, provider: ProviderProcess, gate: Gate, start: Start
) -> None:
    holder = start()
    other = await waiting_behind(holder, gate, start)
    assert f"is executed by process {holder.process.pid} on " in other.output
    assert "at most 10 s" in other.output
    gate.open()
    first, second = await holder.ended(), await other.ended()
    assert prompts(provider.lines) == ["first", "second"]
    assert first["output"] == second["output"]
    assert (first["states"], second["states"]) == (["charged"] * 2, ["replayed"] * 2)
    assert await left_over() == []


async def test_a_holder_that_was_killed_is_followed_by_the_one_that_waits(
    sqlite_ledger: None, short_lease: None, provider: ProviderProcess, gate: Gate, start: Start
) -> None:
    holder = start()
    other = await waiting_behind(holder, gate, start)
    holder.kill()
    await other.says("continues here")
    gate.open()
    assert (await other.ended())["states"] == ["replayed", "charged"]
    assert prompts(provider.lines) == ["first", "second"]


async def test_a_holder_that_slept_until_another_took_over_stops_and_sends_nothing(
    ledger_url: str, short_lease: None, provider: ProviderProcess, gate: Gate, start: Start
) -> None:
    holder = start()
    other = await waiting_behind(holder, gate, start)
    await holder.sleep()
    await other.says("continues here")
    gate.open()
    assert (await other.ended())["states"] == ["replayed", "charged"]
    holder.process.send_signal(signal.SIGCONT)
    ended = await holder.ended()
    assert ended["error"] == "RunLeaseError"
    assert "Lost the lease on the run of 'gated'" in ended["said"]
    assert prompts(provider.lines) == ["first", "second"]
    async with Ledger.open() as ledger:
        sent = [entry.state for entry in await ledger.entries() if entry.is_spend]
    assert sent == [EntryState.CHARGED] * 2


async def test_a_holder_whose_event_loop_is_busy_keeps_its_lease(
    sqlite_ledger: None,
    provider: ProviderProcess,
    gate: Gate,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")
    holder = start(busy=True)
    other = await waiting_behind(holder, gate, start, busy=True)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        renewed: set[int] = set()

        def outlived_its_lease() -> bool:
            """By its heartbeat, which is told from here."""
            renewed.update(at for (at,) in ledger.execute(RENEWED))
            return len(renewed) > 2 * BEATS

        await until(outlived_its_lease)
    assert "continues here" not in other.output
    gate.open()
    assert (await holder.ended())["states"] == ["charged"] * 2
    assert (await other.ended())["states"] == ["replayed"] * 2


@pytest.mark.long
async def test_three_processes_at_once_pay_once(
    ledger_url: str, provider: ProviderProcess, gate: Gate, start: Start
) -> None:
    gate.open()
    reports = await start(times=3).all_ended(3)
    assert prompts(provider.lines) == ["first", "second"]
    assert sorted(report["states"] for report in reports) == [
        ["charged"] * 2,
        *[["replayed"] * 2] * 2,
    ]
    assert len({report["output"] for report in reports}) == 1
    assert await left_over() == []


@pytest.fixture(params=["sqlite", pytest.param("memory", marks=pytest.mark.long)])
def own_ledger(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)


@pytest.mark.usefixtures("own_ledger")
async def test_two_runs_of_one_process_take_turns() -> None:
    agent, model = counted_agent()

    @step
    async def ask(ctx: StepContext[Any]) -> str:
        return (await ctx.run(agent, "once")).output

    pipeline: Pipeline[Any, Any, str] = Pipeline("turns", {"ask": ask})
    run_key = str(uuid4())
    results = await asyncio.gather(*(pipeline.execute({}, None, run_key=run_key) for _ in range(3)))
    assert model.prompts == ["once"]
    assert [result.output for result in results] == ["answer"] * 3
    assert await left_over() == []


@pytest.mark.usefixtures("own_ledger")
async def test_another_pipeline_may_run_under_the_same_key_within_a_step() -> None:
    inner: Pipeline[Any, Any, int] = Pipeline("inner of the key", {"give": Give(1)})

    @step
    async def outer(ctx: StepContext[Any]) -> int:
        return (await inner.execute({}, None, run_key="same")).output or 0

    pipeline: Pipeline[Any, Any, int] = Pipeline("outer of the key", {"outer": outer})
    assert (await pipeline.execute({}, None, run_key="same")).output == 1


@pytest.mark.usefixtures("own_ledger")
async def test_a_run_that_executes_itself_is_told_so_instead_of_waiting_for_itself() -> None:
    @step(retries=3, retry_delay=0)
    async def itself(ctx: StepContext[Any]) -> Any:
        return await pipeline.execute({}, None, run_key="self")

    pipeline: Pipeline[Any, Any, Any] = Pipeline("itself", {"itself": itself})
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({}, None, run_key="self")
    assert isinstance(caught.value.original_error, RunLeaseError)
    assert "'itself' with run_key='self' is executed from within its own run" in str(caught.value)
    assert await left_over() == []


@pytest.mark.usefixtures("sqlite_ledger")
@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
async def test_a_run_that_ends_badly_gives_its_leases_up(outcome: str) -> None:
    reached = asyncio.Event()

    @step
    async def ends_badly(ctx: StepContext[Any]) -> None:
        assert len(await left_over()) == 2
        reached.set()
        if outcome == "cancelled":
            await asyncio.sleep(60)
        raise ValueError("no")

    pipeline: Pipeline[Any, Any, None] = Pipeline("ends badly", {"a": ends_badly})
    run = asyncio.create_task(pipeline.execute({}, None, run_key="bad"))
    await reached.wait()
    if outcome == "cancelled":
        run.cancel()
    with pytest.raises(asyncio.CancelledError if outcome == "cancelled" else StepExecutionError):
        await run
    assert await left_over() == []


@pytest.mark.usefixtures("sqlite_ledger")
async def test_whoever_stops_waiting_leaves_nothing_behind() -> None:
    claim = LeaseRequest(kind="run_key", name='["waits", "k"]', seconds=60)
    await asyncio.wrap_future(configured_heartbeat(load_settings()).take(claim, lambda: None))
    pipeline: Pipeline[Any, Any, int] = Pipeline("waits", {"a": Give(1)})
    run = asyncio.create_task(pipeline.execute({}, None, run_key="k"))
    await asyncio.sleep(0.5)
    assert not run.done()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.wrap_future(configured_heartbeat(load_settings()).release(claim.token))
    assert await left_over() == []


async def test_without_a_ledger_that_must_be_there_a_run_goes_on_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "no-folder").touch()
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'no-folder' / 'ledger.db'}")
    pipeline: Pipeline[Any, Any, int] = Pipeline("goes on", {"a": Give(1)})
    with pytest.raises(LedgerUnavailableError):
        await pipeline.execute({}, None, run_key="k")
    monkeypatch.setenv("FASTROAI_LEDGER_REQUIRED", "false")
    assert (await pipeline.execute({}, None, run_key="k")).output == 1
    assert "Nothing keeps another process from executing the run of 'goes on'" in caplog.text
