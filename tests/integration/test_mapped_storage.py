"""What is kept of the items of a mapped step, under Prefect: through outages and cancellations, new
names and configurations; what was answered is not asked again.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.cache_policies import INPUTS as INPUTS_OF_PREFECT

from fastroai import (
    ConversationState,
    ConversationStatus,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.cli import main
from fastroai.errors import CostBudgetExceededError, ResultStorageError
from fastroai.executors import PrefectExecutor
from fastroai.executors.prefect import resume_run, tracked_runs
from fastroai.settings import load_settings
from fastroai.storage import result_store
from fastroai.storage.folder import FolderStore
from fastroai.storage.retention import prune
from fastroai.usage import EntryState
from tests.integration.models import PRICE, CountingModel
from tests.integration.read_back import read_run
from tests.support.deployed_runs import deployed, work
from tests.support.fragile_s3 import FragileS3, fragile_s3

__all__ = ["fragile_s3"]

pytestmark = pytest.mark.usefixtures("prefect_api")

INPUTS = {"cache_policy": "inputs"}
LETTERS = [*"abcdef"]
NOT_FOR_EVER = 60.0


def long(*values: Any) -> Any:
    """A case that is left to the long tests."""
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))


def chunks(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results" / "items").glob("*"))


def asking(model: CountingModel, **config: Any) -> Any:
    agent = model.agent()

    @step(**config)
    async def ask(context: StepContext[Any]) -> str:
        return (await context.run(agent, str(context.item))).output

    return ask


def letters(
    model: CountingModel, executor: Any = "prefect", config: Any = None, **options: Any
) -> Pipeline[Any, Any, Any]:
    """A pipeline that asks for each letter of its input."""
    each = asking(model, **(INPUTS if config is None else config))
    return Pipeline("letters", {"each": each.map(over="xs", **options)}, executor=executor)


async def run(
    pipeline: Pipeline[Any, Any, Any], xs: list[Any] = LETTERS, **options: Any
) -> PipelineResult[Any]:
    async with asyncio.timeout(NOT_FOR_EVER):
        return await pipeline.execute({"xs": xs}, **options)


class TestOutages:
    async def test_a_map_goes_on_without_its_storage_and_says_what_is_not_stored(
        self, fragile_s3: FragileS3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0.2")

        async def kill_it(prompt: str) -> str:
            if prompt == "a":
                await asyncio.to_thread(fragile_s3.kill)
            return f"answer:{prompt}"

        model = CountingModel(kill_it)
        result = await run(letters(model, max_concurrency=1))
        assert list(result.output) == [f"answer:{letter}" for letter in LETTERS]
        assert set(result.not_stored) == {"each"}
        state = (await read_run(result.run_id, tasks=1)).flow_run.state
        assert state is not None
        assert state.name == "ResultsNotStored"
        assert model.prompts == LETTERS

        await asyncio.to_thread(fragile_s3.start)
        # What waits in this process is written as soon as the storage is there again.
        assert (await run(letters(model))).not_stored == {}
        assert model.prompts == LETTERS

    @pytest.mark.long
    async def test_a_storage_that_comes_back_gets_everything(self, fragile_s3: FragileS3) -> None:
        async def restart_it(prompt: str) -> str:
            if prompt in ("b", "e"):
                await asyncio.to_thread(fragile_s3.kill if prompt == "b" else fragile_s3.start)
            return f"answer:{prompt}"

        model = CountingModel(restart_it)
        result = await run(letters(model, max_concurrency=1))
        assert result.not_stored == {}

    @pytest.mark.parametrize("comes_back", [pytest.param(True, marks=pytest.mark.long), False])
    async def test_a_map_begins_nothing_more_while_too_much_waits_for_its_storage(
        self,
        fragile_s3: FragileS3,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        comes_back: bool,
    ) -> None:
        monkeypatch.setattr(result_store, "WAITING_BYTES", 0)
        monkeypatch.setattr(result_store, "HOLD_UP_SECONDS", 0.1)
        monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "30" if comes_back else "0.2")

        async def kill_it(prompt: str) -> str:
            if prompt == "a":
                await asyncio.to_thread(fragile_s3.kill)
            return f"answer:{prompt}"

        model = CountingModel(kill_it)
        running = asyncio.create_task(run(letters(model, max_concurrency=1)))
        while "Nothing more is begun" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert model.prompts == ["a"]
        if comes_back:
            await asyncio.to_thread(fragile_s3.start)
            assert (await running).not_stored == {}
        else:
            with pytest.raises(StepExecutionError) as failed:
                await running
            assert isinstance(failed.value.original_error, ResultStorageError)
            await asyncio.to_thread(fragile_s3.start)
            # What the run before has left is written first, for which it has its time.
            monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "30")
            await run(letters(model))
        assert model.prompts == LETTERS

    async def test_a_map_that_can_not_tell_what_was_finished_asks_for_nothing(
        self, tmp_path: Path
    ) -> None:
        model = CountingModel()
        await run(letters(model), LETTERS[:2])
        [folder] = {path.parent for path in chunks(tmp_path)}
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(tmp_path / "not mounted")
        with pytest.raises(StepExecutionError) as failed:
            await run(letters(model))
        assert isinstance(failed.value.original_error, ResultStorageError)
        assert len(model.prompts) == 2

    async def test_a_damaged_chunk_is_asked_for_again(self, tmp_path: Path) -> None:
        model = CountingModel()
        await run(letters(model), LETTERS[:1])
        for chunk in chunks(tmp_path):
            chunk.write_bytes(chunk.read_bytes()[:-3])
        result = await run(letters(model), LETTERS[:2])
        assert (len(result.output), model.prompts) == (2, ["a", "a", "b"])


class TestCancellation:
    async def test_a_run_that_is_cancelled_keeps_what_was_answered(self) -> None:
        all_answered = asyncio.Event()

        async def hang_at_d(prompt: str) -> str:
            if prompt == "d" and not all_answered.is_set():
                all_answered.set()
                await asyncio.sleep(NOT_FOR_EVER)
            return f"answer:{prompt}"

        model = CountingModel(hang_at_d)
        pipeline = letters(model, config={}, max_concurrency=1)
        running = asyncio.create_task(run(pipeline, run_key="k"))
        await asyncio.wait_for(all_answered.wait(), NOT_FOR_EVER)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        result = await run(pipeline, run_key="k")
        assert len(result.output) == len(LETTERS)
        assert model.prompts == [*"abcd", *"def"]

    async def test_an_answer_that_comes_while_the_map_is_cancelled_is_kept(self) -> None:
        asked = asyncio.Event()

        async def fail_at_once(prompt: str) -> str:
            if prompt == "f":
                await asked.wait()
                raise RuntimeError("no")
            if len(model.prompts) == len(LETTERS) - 1:
                asked.set()
            await asyncio.sleep(0)
            return f"answer:{prompt}"

        model = CountingModel(fail_at_once)
        pipeline = letters(model, config={})
        with pytest.raises(StepExecutionError) as failed:
            await run(pipeline, run_key="k")
        assert failed.value.partial_result is not None
        entries = failed.value.partial_result.entries
        charged = [e.attribution.item for e in entries if e.state is EntryState.CHARGED]
        before = list(model.prompts)
        model._answer = None
        result = await run(pipeline, run_key="k")
        assert len(result.output) == len(LETTERS)
        assert len(model.prompts) - len(before) == len(LETTERS) - len(charged)


class TestBudgets:
    async def test_a_map_that_pauses_at_its_budget_goes_on_where_it_was(self) -> None:
        model = CountingModel()
        config = PipelineConfig(budget=Budget(usd=3 * PRICE, at_limit="pause"))
        each = asking(model).map(over="xs", max_concurrency=2)
        flow = Pipeline("pausing-map", {"each": each}, config=config).to_flow()
        flow_run = await deployed(flow, {"xs": LETTERS})
        assert await work(flow, flow_run) is None
        assert len(model.prompts) in (3, 4)  # what ran along with the third was let finish
        [paused], _ = await tracked_runs(load_settings())
        await resume_run(paused, load_settings(), 10 * PRICE)
        result = await work(flow, flow_run)
        assert list(result.output) == [f"answer:{letter}" for letter in LETTERS]
        assert sorted(model.prompts) == LETTERS

    async def test_a_map_that_may_have_failures_pauses_all_the_same(self) -> None:
        model = CountingModel()
        config = PipelineConfig(budget=Budget(usd=2 * PRICE, at_limit="pause"))
        each = asking(model).map(over="xs", max_concurrency=1, max_failures=6)
        pipeline = Pipeline("p", {"each": each}, config=config, executor="prefect")
        with pytest.raises(StepExecutionError) as failed:
            await run(pipeline, run_key="k")
        refusal = failed.value.original_error
        assert isinstance(refusal, CostBudgetExceededError)
        assert model.prompts == ["a", "b"]


class TestReuse:
    async def test_an_item_is_used_as_long_as_it_may_be(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = CountingModel()
        pipeline = letters(model, config=INPUTS | {"cache_expiration": 3600})
        await run(pipeline)
        await run(pipeline)
        assert len(model.prompts) == len(LETTERS)

        class Later(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) + timedelta(hours=2)

        monkeypatch.setattr("fastroai.executors._prefect.kept_items.datetime", Later)
        await run(pipeline)
        assert len(model.prompts) == 2 * len(LETTERS)
        await run(pipeline)  # by what was stored last
        assert len(model.prompts) == 2 * len(LETTERS)

    @pytest.mark.parametrize(
        ("renamed", "formerly"),
        [
            long({"each": "asked"}, {"asked": "each"}),
            long({"read": "words"}, {"words": "read"}),
            long({"other": "tone"}, {"tone": "other"}),
            (
                {"read": "words", "each": "asked", "other": "tone"},
                {"words": "read", "asked": "each", "tone": "other"},
            ),
        ],
    )
    async def test_items_are_found_under_former_names(
        self, renamed: dict[str, str], formerly: dict[str, str]
    ) -> None:
        model = CountingModel()
        each = asking(model)

        @step
        async def read(context: StepContext[Any]) -> list[str]:
            return LETTERS

        @step
        async def other(context: StepContext[Any]) -> str:
            return "kind"

        def pipeline(names: dict[str, str], former: dict[str, str]) -> Pipeline[Any, Any, Any]:
            first, mapped, beside = (names.get(id_, id_) for id_ in ("read", "each", "other"))
            steps = {first: read, beside: other, mapped: each.map(over=first)}
            configs = {id_: StepConfig(formerly=old) for id_, old in former.items()}
            config = PipelineConfig(cache_policy="inputs")
            edges = {mapped: [beside]}
            return Pipeline("p", steps, edges, mapped, config, configs, executor="prefect")

        await pipeline({}, {}).execute({})
        assert len(model.prompts) == len(LETTERS)
        await pipeline(renamed, formerly).execute({})
        assert len(model.prompts) == len(LETTERS)

    async def test_what_is_mapped_over_a_step_that_can_not_begin_does_not_wait_for_it(self) -> None:
        @step
        async def each(context: StepContext[Any]) -> Any:
            return context.item

        config = PipelineConfig(on_error="continue")
        of_prefect = {"one": StepConfig(cache_policy=INPUTS_OF_PREFECT)}
        steps = {"one": each.map(over="letters"), "two": each.map(over="one")}
        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p", steps, config=config, step_configs=of_prefect, executor="prefect"
        )
        async with asyncio.timeout(NOT_FOR_EVER):
            result = await pipeline.execute({"letters": LETTERS})
        assert (set(result.errors), result.skipped) == ({"one"}, ("two",))

    async def test_nothing_is_kept_of_a_step_that_says_so(self, tmp_path: Path) -> None:
        model = CountingModel()
        pipeline = letters(model, config=INPUTS | {"persist_result": False})
        await run(pipeline)
        await run(pipeline)
        assert len(model.prompts) == 2 * len(LETTERS)
        assert not chunks(tmp_path)

    async def test_two_runs_at_once_lose_nothing_of_each_other(self) -> None:
        model = CountingModel()
        await asyncio.gather(run(letters(model), LETTERS[:4]), run(letters(model), LETTERS[2:]))
        asked = len(model.prompts)
        result = await run(letters(model))
        assert list(result.output) == [f"answer:{letter}" for letter in LETTERS]
        assert len(model.prompts) == asked

    async def test_options_of_the_executor_are_those_of_each_item(self, tmp_path: Path) -> None:
        options = {"cache_policy": "inputs", "retries": 1, "retry_delay_seconds": 0}
        executor = PrefectExecutor(default_task_config=options)
        failing = {"b"}

        async def fail_once(prompt: str) -> str:
            if prompt in failing:
                failing.discard(prompt)
                raise RuntimeError("not yet")
            return f"answer:{prompt}"

        model = CountingModel(fail_once)
        for _ in range(2):
            result = await run(letters(model, executor, config={}))
            assert list(result.output) == [f"answer:{letter}" for letter in LETTERS]
        assert sorted(model.prompts) == sorted([*LETTERS, "b"])

    async def test_an_executor_that_keeps_nothing_keeps_no_items(self, tmp_path: Path) -> None:
        model = CountingModel()
        executor = PrefectExecutor(default_task_config={"persist_result": False})
        await run(letters(model, executor))
        assert not chunks(tmp_path)


class TestOutputs:
    async def test_an_output_that_can_not_be_stored_is_still_given(self) -> None:
        made: list[Any] = []

        @step
        async def make(context: StepContext[Any]) -> Any:
            made.append(object())
            return made[-1] if context.item == "b" else context.item

        pipeline = Pipeline("p", {"each": make.map(over="xs")}, executor="prefect")
        result = await run(pipeline, LETTERS[:3], run_key="k")
        assert list(result.output) == ["a", made[1], "c"]
        again = await run(pipeline, LETTERS[:3], run_key="k")
        assert list(again.output) == ["a", made[3], "c"]

    async def test_an_output_that_can_not_be_stored_and_must_be_fails_its_item(self) -> None:
        @step(persist_result=True)
        async def make(context: StepContext[Any]) -> Any:
            return object() if context.item == "b" else context.item

        pipeline = Pipeline("p", {"each": make.map(over="xs", max_failures=1)}, executor="prefect")
        result = await run(pipeline, LETTERS[:3])
        assert len(result.output) == 2
        [error] = result.output.errors.values()
        assert isinstance(error, ResultStorageError)

    async def test_conversations_come_back_as_they_were(self) -> None:
        times = 0

        @step(**INPUTS)
        async def talk(context: StepContext[Any]) -> ConversationState[dict[str, str]]:
            nonlocal times
            times += 1
            return ConversationState(
                status=ConversationStatus.COMPLETE, data={"about": context.item}
            )

        pipeline = Pipeline("p", {"each": talk.map(over="xs")}, executor="prefect")
        first = await run(pipeline, LETTERS[:2])
        second = await run(pipeline, LETTERS[:2])
        assert list(first.output) == list(second.output)
        assert [state.data["about"] for state in second.output] == ["a", "b"]
        assert times == 2


async def test_old_chunks_are_pruned_by_the_age_of_what_is_in_them(tmp_path: Path) -> None:
    model = CountingModel()
    await run(letters(model))
    folder = FolderStore(tmp_path / "results")
    assert len(chunks(tmp_path)) >= 2  # of items and of their requests
    assert (await prune(folder, "f", older_than=timedelta(hours=1))).items == 0
    later = datetime.now(UTC) + timedelta(hours=2)
    pruned = await prune(folder, "f", older_than=timedelta(hours=1), now=later)
    assert pruned.items >= 2
    assert not chunks(tmp_path)
    await run(letters(model))
    assert len(model.prompts) == 2 * len(LETTERS)


async def test_costs_are_listed_by_item(capsys: pytest.CaptureFixture[str]) -> None:
    result = await run(letters(CountingModel(), key=str))
    await asyncio.to_thread(main, ["costs", "--by", "item", "--run", str(result.run_id)])
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line[:2].strip() in LETTERS] == LETTERS


async def test_the_items_that_a_run_kept_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail_at_d(prompt: str) -> str:
        if prompt == "d":
            raise RuntimeError("no")
        return f"answer:{prompt}"

    pipeline = letters(CountingModel(fail_at_d), key=str, max_concurrency=1)
    with pytest.raises(StepExecutionError) as failed:
        await run(pipeline)
    assert failed.value.partial_result is not None
    show = ["results", "show", str(failed.value.partial_result.run_id), "each"]
    await asyncio.to_thread(main, show)
    items = json.loads(capsys.readouterr().out)["items"]
    assert {key: kept["output"] for key, kept in items.items()} == {
        letter: {"codec": "json", "value": f"answer:{letter}"} for letter in "abc"
    }
    await asyncio.to_thread(main, [*show, "--item", "b"])
    [entry] = json.loads(capsys.readouterr().out)["entries"]
    assert entry["attribution"]["item"] == "b"
    assert await asyncio.to_thread(main, [*show, "--item", "d"]) != 0
    assert "Nothing is kept of an item 'd'" in capsys.readouterr().err


async def test_a_budget_of_each_item_bounds_no_map_whose_items_nobody_knows() -> None:
    config = StepConfig(budget=Budget(usd=PRICE, strength="reserved"))
    mapped = {"each": asking(CountingModel()).map(over="xs")}
    pipeline: Pipeline[Any, Any, Any] = Pipeline("p", mapped, step_configs={"each": config})
    [of_list] = (await pipeline.estimate({"xs": LETTERS})).steps
    assert of_list.upper_bound_usd == len(LETTERS) * PRICE
    [of_stream] = (await pipeline.estimate({"xs": iter(LETTERS)})).steps
    assert of_stream.upper_bound_usd is None
    assert "items" in (of_stream.no_upper_bound or "")
