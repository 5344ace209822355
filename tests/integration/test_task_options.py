"""StepConfig and the executor's defaults as Prefect's task options."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.cache_policies import INPUTS
from prefect.filesystems import LocalFileSystem

from fastroai import (
    BaseStep,
    DispatchSkippedError,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.executors import PrefectExecutor
from tests.integration.models import Ask, CountingModel
from tests.integration.read_back import read_run
from tests.support.steps import Give, WaitsForever

pytestmark = pytest.mark.usefixtures("prefect_api")


def one(
    body: BaseStep[Any, Any], config: StepConfig | None = None, **options: Any
) -> Pipeline[Any, Any, Any]:
    return Pipeline("one", {"a": body}, step_configs={"a": config} if config else None, **options)


async def test_retries_and_delays_are_the_tasks_own():
    pipeline = Pipeline(
        "policies",
        {name: Give(1) for name in ("doubled", "listed", "repeated", "none", "many")},
        output_step="none",
        step_configs={
            "doubled": StepConfig(retries=3, retry_delay=0.5),
            "listed": StepConfig(retries=2, retry_delay=[1.0, 7.0]),
            "repeated": StepConfig(retries=3, retry_delay=[2.0]),
            "many": StepConfig(retries=60, retry_delay=[1.0]),
        },
    )
    result = await pipeline.execute({}, None)
    policies = {
        name: t.empirical_policy
        for name, t in (await read_run(result.run_id, tasks=5)).task_runs.items()
    }
    assert {name: p.retries for name, p in policies.items()} == {
        "doubled": 3,
        "listed": 2,
        "repeated": 3,
        "none": 0,
        "many": 60,
    }
    assert policies["doubled"].retry_delay == [0.5, 1.0, 2.0]
    assert policies["listed"].retry_delay == [1.0, 7.0]
    assert policies["repeated"].retry_delay == [2.0, 2.0, 2.0]
    assert set(policies["many"].retry_delay) == {1.0}


async def test_a_deadline_ends_the_task_as_timed_out_and_the_step_with_a_timeout_error():
    waits = WaitsForever()
    with pytest.raises(StepExecutionError) as caught:
        await one(waits, StepConfig(timeout=0.2, retries=1, retry_delay=0.0)).execute({}, None)
    assert isinstance(caught.value.original_error, TimeoutError)
    assert "0.2" in str(caught.value.original_error)
    assert "attempt 2/2" in str(caught.value.original_error)
    assert waits.cleaned_up
    run = await read_run(caught.value.partial_result.run_id, tasks=1)
    assert run.task_runs["a"].state_name == "TimedOut"
    assert run.task_runs["a"].run_count == 2


async def test_a_timeout_that_the_step_raises_itself_is_its_own():
    own = TimeoutError("the provider's")
    with pytest.raises(StepExecutionError) as caught:
        await one(Give(own), StepConfig(timeout=30)).execute({}, None)
    assert caught.value.original_error is own


async def test_a_step_is_tried_again_after_a_timeout():
    class SlowOnce(BaseStep[Any, int]):
        async def execute(self, context: StepContext[Any]) -> int:
            if context.attempt == 1:
                await asyncio.Event().wait()
            return context.attempt

    result = await one(SlowOnce(), StepConfig(timeout=0.3, retries=1, retry_delay=0.0)).execute(
        {}, None
    )
    assert result.output == 2


async def test_nothing_of_a_step_is_stored_that_shall_not_be_persisted(tmp_path: Path):
    executor = PrefectExecutor(result_storage=tmp_path / "r")
    step_ = Give("not kept")
    for _ in range(2):
        await one(
            step_, StepConfig(persist_result=False, cache_policy="inputs"), executor=executor
        ).execute({}, None)
    assert list((tmp_path / "r").iterdir()) == []
    assert step_.runs == 2


async def test_without_caching_a_step_runs_again_in_a_retried_flow_run():
    model = CountingModel()
    pipeline = Pipeline(
        "off",
        {"a": Ask(model.agent()), "b": Give(ConnectionError("once"), "done")},
        {"b": ["a"]},
        step_configs={"a": StepConfig(cache_policy="off")},
    )
    result = await pipeline.to_flow(retries=1)({"topic": "t"})
    assert result.output == "done"
    assert model.calls == 2


async def test_a_policy_of_prefects_is_taken_as_it_is():
    model = CountingModel()
    for _ in range(2):
        await one(Ask(model.agent()), StepConfig(cache_policy=INPUTS)).execute({"topic": "t"}, None)
    assert model.calls == 1


async def test_an_unknown_policy_is_refused_before_anything_is_spent():
    model = CountingModel()
    with pytest.raises(Exception, match="cache_policy='sometimes'"):
        await one(Ask(model.agent()), StepConfig(cache_policy="sometimes")).execute(
            {"topic": "t"}, None
        )
    assert model.calls == 0


async def test_the_executors_task_options_hold_unless_a_step_gives_its_own():
    executor = PrefectExecutor(
        default_task_config={
            "retries": 2,
            "retry_delay_seconds": 3,
            "tags": ["team"],
            "timeout_seconds": 60,
        }
    )
    pipeline = Pipeline(
        "defaults",
        {"plain": Give(1), "own": Give(2)},
        output_step="own",
        step_configs={"own": StepConfig(retries=0, retry_delay=1.0)},
        executor=executor,
    )
    result = await pipeline.execute({}, None)
    runs = (await read_run(result.run_id, tasks=2)).task_runs
    assert runs["plain"].empirical_policy.retries == 2
    assert runs["plain"].empirical_policy.retry_delay in (3, [3.0, 3.0])
    assert runs["own"].empirical_policy.retries == 0
    assert "team" in runs["plain"].tags
    assert "team" in runs["own"].tags


async def test_retries_by_default_take_the_steps_delay():
    executor = PrefectExecutor(default_task_config={"retries": 1})
    flaky = Give(ConnectionError("once"), "done")
    result = await one(flaky, StepConfig(retry_delay=0.0), executor=executor).execute({}, None)
    assert result.output == "done"
    assert flaky.runs == 2


async def test_a_deadline_by_default_says_its_seconds():
    executor = PrefectExecutor(default_task_config={"timeout_seconds": 0.2})
    with pytest.raises(StepExecutionError) as caught:
        await one(WaitsForever(), executor=executor).execute({}, None)
    assert isinstance(caught.value.original_error, TimeoutError)
    assert "0.2" in str(caught.value.original_error)


async def test_a_cache_policy_by_default_may_be_one_of_our_names():
    model = CountingModel()
    executor = PrefectExecutor(default_task_config={"cache_policy": "inputs"})
    for _ in range(2):
        await one(Ask(model.agent()), executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 1


async def test_a_cached_result_expires_as_the_task_option_says():
    model = CountingModel()
    executor = PrefectExecutor(
        default_task_config={"cache_policy": INPUTS, "cache_expiration": timedelta(seconds=-1)}
    )
    for _ in range(2):
        await one(Ask(model.agent()), executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 2


async def test_result_storage_by_default_is_probed_and_used(tmp_path: Path):
    executor = PrefectExecutor(default_task_config={"result_storage": str(tmp_path / "by-default")})
    await one(Give(1), executor=executor).execute({}, None)
    assert len(list((tmp_path / "by-default").iterdir())) == 1


async def test_storage_given_to_the_flow_is_the_steps_too(tmp_path: Path):
    folder = LocalFileSystem(basepath=str(tmp_path / "of-the-flow"))
    await folder.save("storage-of-a-flow", overwrite=True)
    await one(Give(1)).to_flow(result_storage=folder)()
    assert len(list((tmp_path / "of-the-flow").iterdir())) == 1


async def test_an_option_that_no_task_has_is_refused_before_anything_is_spent():
    model = CountingModel()
    executor = PrefectExecutor(default_task_config={"retrys": 2})
    with pytest.raises(Exception, match="retrys"):
        await one(Ask(model.agent()), executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 0


async def test_flow_options_of_the_executor_are_the_flows():
    options = {
        "log_prints": True,
        "version": "7",
        "persist_result": True,
        "flow_run_name": "named",
        "name": "given",
    }
    result = await one(Give(1), executor=PrefectExecutor(flow_config=options)).execute({}, None)
    assert result.output == 1
    run = await read_run(result.run_id, tasks=1)
    assert (run.flow_name, run.flow_run.name, run.flow_run.flow_version) == ("given", "named", "7")


async def test_a_deadline_of_the_flow_is_a_timeout_for_the_caller():
    executor = PrefectExecutor(flow_config={"timeout_seconds": 0.5})
    waits = WaitsForever()
    with pytest.raises(TimeoutError):
        await one(waits, executor=executor).execute({}, None)
    assert waits.cleaned_up


async def test_a_name_that_prefect_does_not_take_is_explained_or_replaced():
    """In memory any name will do; the same pipeline must run, or say what is wrong, under
    Prefect.
    """
    for name in ("a/b: 50% & <x>", "日本 {braces}"):
        pipeline = Pipeline(name, {"a/b": Give(1), "{x}": Give(2)}, output_step="{x}")
        assert (await pipeline.execute({}, None)).output == 2


async def test_permanent_errors_are_not_tried_again():
    skipped = Give(DispatchSkippedError("not today"))
    with pytest.raises(StepExecutionError):
        await one(skipped, StepConfig(retries=3, retry_delay=0.0)).execute({}, None)
    assert skipped.runs == 1


async def test_a_step_in_a_thread_can_have_a_deadline():
    release = threading.Event()

    @step
    def blocking(context: StepContext[Any]) -> None:
        release.wait(20)

    try:
        with pytest.raises(StepExecutionError) as caught:
            await one(blocking, StepConfig(timeout=0.3)).execute({}, None)
        assert isinstance(caught.value.original_error, TimeoutError)
        assert not release.is_set()
    finally:
        release.set()


async def test_a_run_budget_ends_the_run_under_prefect_too():
    model = CountingModel()
    agent = model.agent()
    pipeline = Pipeline(
        "budget",
        {"a": Ask(agent), "b": Ask(agent, "a"), "c": Ask(agent, "b")},
        {"b": ["a"], "c": ["b"]},
        config=PipelineConfig(cost_budget=900),
    )
    with pytest.raises(StepExecutionError, match="budget"):
        await pipeline.execute({"topic": "t"}, None)
    assert model.calls == 2
