"""Steps that a task runner has worked on in other processes: on Dask."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastroai import (
    MappedResults,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    PipelineValidationError,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.executors import PrefectExecutor
from fastroai.usage import EntryState, Ledger
from tests.support.provider import LoopbackProvider
from tests.support.remote_runners import dask_cluster
from tests.support.remote_steps import (
    BadNumberError,
    Desk,
    Notes,
    Square,
    asks_remotely,
    asks_while_it_computes,
    look_at_squares,
    plain_square,
    raises_from_deep_within,
    reads_all,
    square,
    square_of_item,
    where_the_run_is,
)
from tests.support.steps import Give

__all__ = ["dask_cluster"]

dask = pytest.importorskip("prefect_dask")

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def provider() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def ledger_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))
    return url


@pytest.fixture
def executor(dask_cluster: str, provider: LoopbackProvider) -> PrefectExecutor:
    runner = dask.DaskTaskRunner(address=dask_cluster)
    return PrefectExecutor(task_runner=runner, deps_factory=partial(Desk, provider.port))


def prompts(provider: LoopbackProvider) -> list[str]:
    """What reached the provider."""
    return sorted(line.prompt for line in provider.invoice.lines)


def states(result: PipelineResult[Any]) -> list[EntryState]:
    return [entry.state for entry in result.entries]


class TestComputing:
    async def test_plain_functions_run_in_a_worker_and_coroutines_where_the_run_is(
        self, executor: PrefectExecutor
    ) -> None:
        steps = {"square": square, "here": where_the_run_is, "kept": square}
        configs = {"kept": StepConfig(remote=False)}
        pipeline = Pipeline(
            "where", steps, {"here": ["square", "kept"]}, step_configs=configs, executor=executor
        )
        result = await pipeline.execute({"number": 4}, None)
        found = result.step_outputs["square"]
        assert isinstance(found, Square)
        assert found.value == 16
        assert found.pid != os.getpid()
        assert result.step_outputs["here"] == result.step_outputs["kept"].pid == os.getpid()

    async def test_an_error_is_what_it_was_and_says_where_it_was_raised(
        self, executor: PrefectExecutor
    ) -> None:
        pipeline = Pipeline("bad", {"square": square}, executor=executor)
        with pytest.raises(StepExecutionError) as caught:
            await pipeline.execute({"number": -1}, None)
        error = caught.value.original_error
        assert isinstance(error, BadNumberError)
        assert error.number == -1
        assert "in square" in error.__notes__[0]

    async def test_an_error_from_deep_within_is_what_it_was(
        self, executor: PrefectExecutor, provider: LoopbackProvider
    ) -> None:
        """Its traceback is deeper than a pickle may be."""
        pipeline = Pipeline("deep", {"deep": raises_from_deep_within}, executor=executor)
        with pytest.raises(StepExecutionError) as caught:
            await pipeline.execute({"number": 7}, None)
        assert isinstance(caught.value.original_error, BadNumberError)
        assert caught.value.original_error.number == 7

    @pytest.mark.long
    async def test_what_was_computed_is_not_computed_again(self, executor: PrefectExecutor) -> None:
        pipeline = Pipeline("again", {"square": square}, executor=executor)
        first = await pipeline.execute({"number": 5}, None, run_key="k")
        again = await pipeline.execute({"number": 5}, None, run_key="k")
        assert again.output == first.output
        assert again.run_id != first.run_id

    async def test_a_step_that_computes_asks_no_model(
        self, executor: PrefectExecutor, provider: LoopbackProvider
    ) -> None:
        pipeline = Pipeline("asks", {"asks": asks_while_it_computes}, executor=executor)
        with pytest.raises(StepExecutionError, match="remote=True") as caught:
            await pipeline.execute({}, None)
        assert isinstance(caught.value.original_error, PipelineValidationError)
        assert prompts(provider) == []


class TestItems:
    async def test_items_are_computed_in_workers_and_only_what_is_new(
        self, executor: PrefectExecutor, tmp_path: Path
    ) -> None:
        steps = {
            "offset": Give(100),
            "squares": square_of_item.map(over="numbers", key=str, max_failures=1),
        }
        config = PipelineConfig(cache_policy="inputs")
        pipeline = Pipeline(
            "map", steps, {"squares": ["offset"]}, "squares", config=config, executor=executor
        )
        inputs = {"numbers": [1, 2, -3], "folder": str(tmp_path)}
        result = (await pipeline.execute(inputs, None)).output
        assert isinstance(result, MappedResults)
        assert {key: found.value for key, found in result.items()} == {"1": 101, "2": 104}
        assert os.getpid() not in {found.pid for found in result.values()}
        assert isinstance(result.errors["-3"], BadNumberError)
        inputs["numbers"] = [1, 2, 3]
        again = (await pipeline.execute(inputs, None)).output
        assert again["3"].value == 109
        assert Notes(tmp_path).items() == ["1", "2", "3"]

    async def test_a_step_in_a_worker_reads_the_outputs_of_a_map_and_what_failed(
        self, executor: PrefectExecutor
    ) -> None:
        steps = {
            "squares": plain_square.map(over="numbers", key=str, max_failures=1),
            "look": look_at_squares,
        }
        pipeline = Pipeline("look", steps, {"look": ["squares"]}, executor=executor)
        result = await pipeline.execute({"numbers": [1, 2, -3]}, None)
        assert result.output == {"1": 1, "2": 4, "-3": "BadNumberError"}

    @pytest.mark.long
    async def test_an_item_does_not_read_all_that_is_mapped_over(
        self, executor: PrefectExecutor
    ) -> None:
        steps = {"all": reads_all.map(over="numbers")}
        with pytest.raises(StepExecutionError, match="can't read all of 'numbers'"):
            await Pipeline("all", steps, executor=executor).execute({"numbers": [1]}, None)


class TestAsking:
    async def test_it_is_booked_as_anywhere_and_what_was_answered_is_not_asked_again(
        self,
        executor: PrefectExecutor,
        provider: LoopbackProvider,
        tmp_path: Path,
        ledger_url: str,
    ) -> None:
        Notes(tmp_path).fail_once()
        pipeline = Pipeline("asks", {"asks": asks_remotely}, executor=executor)
        result = await pipeline.execute({"folder": tmp_path}, None)
        assert result.output[2] != os.getpid()
        assert prompts(provider) == ["one", "two"]
        assert states(result) == [EntryState.CHARGED, EntryState.REPLAYED, EntryState.CHARGED]
        assert {entry.attribution.run_id for entry in result.entries} == {result.run_id}
        async with Ledger.open(ledger_url) as ledger:
            booked = await ledger.entries(run_id=result.run_id)
        assert {entry.id: entry.cost_usd for entry in booked} == {
            entry.id: entry.cost_usd for entry in result.entries
        }
        assert result.usage is not None
        assert result.usage.steps["asks"].request_count == 2


class TestRefused:
    """Before anything is sent, with what it is and what to do."""

    async def refused(
        self, executor: PrefectExecutor, remote: Any, inputs: Any = None, deps: Any = None
    ) -> str:
        first = Give(1)
        steps = {"first": first, "remote": remote}
        config = PipelineConfig(budget=Budget(usd="1", strength="reserved"))
        pipeline = Pipeline("refused", steps, {"remote": ["first"]}, config=config)
        with pytest.raises(PipelineValidationError) as caught:
            await pipeline.with_executor(executor).execute(inputs or {}, deps)
        assert first.runs == 0
        return str(caught.value)

    async def test_code_that_holds_something_live(self, executor: PrefectExecutor) -> None:
        lock = threading.Lock()

        @step
        def locked(context: StepContext[Any]) -> bool:
            return lock.locked()

        refusal = await self.refused(executor, locked)
        assert "its code can't be pickled" in refusal
        assert "deps factory" in refusal

    async def test_an_input_that_is_live(self, executor: PrefectExecutor) -> None:
        refusal = await self.refused(executor, square, {"lock": threading.Lock()})
        assert "the input 'lock' can't be pickled" in refusal

    async def test_deps_without_a_factory(self, dask_cluster: str) -> None:
        executor = PrefectExecutor(task_runner=dask.DaskTaskRunner(address=dask_cluster))
        assert "deps_factory" in await self.refused(executor, square, deps=object())

    async def test_a_ledger_in_memory(
        self, executor: PrefectExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_LEDGER_URL", "memory://")
        assert "memory://" in await self.refused(executor, asks_remotely)

    async def test_a_budget_that_the_process_keeps(self, executor: PrefectExecutor) -> None:
        assert "'reserved'" in await self.refused(executor, asks_remotely)
