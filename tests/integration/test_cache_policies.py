"""When a stored result is used instead of running a step, read back from a real server: policy,
expiry, scope.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fastroai import Pipeline, PipelineConfig, StepConfig
from fastroai.executors import PrefectExecutor
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import read_run
from tests.support.steps import Give

pytestmark = pytest.mark.usefixtures("prefect_api")


def asking(
    model: CountingModel, config: PipelineConfig | None = None, **options: Any
) -> Pipeline[Any, Any, Any]:
    agent = model.agent()
    return Pipeline(
        "asking",
        {"ask": Ask(agent), "sum": Ask(agent, "ask")},
        {"sum": ["ask"]},
        config=config,
        **options,
    )


async def test_a_hit_shows_on_the_server_as_cached_replayed_and_with_what_it_saved(tmp_path: Path):
    model = CountingModel()
    executor = PrefectExecutor(result_storage=str(tmp_path / "r"))
    pipeline = asking(model, PipelineConfig(cache_policy="inputs"), executor=executor)
    first = await pipeline.execute({"topic": "t"}, None)
    second = await pipeline.execute({"topic": "t"}, None)
    runs = [await read_run(result.run_id, tasks=2, artifacts=3) for result in (first, second)]
    assert [{t.state_name for t in run.task_runs.values()} for run in runs] == [
        {"Completed"},
        {"Cached"},
    ]
    for step_id in ("ask", "sum"):
        [sent], [replayed] = (run.rows(step_id) for run in runs)
        assert (sent["state"], sent["requests"], sent["replayed"], sent["saved_usd"]) == (
            "charged",
            1,
            0,
            "0",
        )
        assert (replayed["state"], replayed["requests"], replayed["replayed"]) == ("replayed", 0, 1)
        assert (replayed["cost_usd"], replayed["saved_usd"]) == ("0", str(PRICE))
        assert f"which saved ${PRICE}" in str(runs[1].artifact(step_id).description)
    assert [row["saved_usd"] for row in runs[1].rows()] == [str(PRICE)] * 2
    assert f"2 replayed, which saved ${(2 * PRICE).normalize():f}" in str(
        runs[1].artifact().description
    )
    assert model.calls == 2


async def test_the_policy_of_the_environment_holds_for_steps_that_do_not_say(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("FASTROAI_CACHE_POLICY", "inputs")
    model = CountingModel()
    for _ in range(2):
        await asking(model).execute({"topic": "t"}, None)
    assert model.calls == 2
    for _ in range(2):
        await asking(model, PipelineConfig(cache_policy="off")).execute({"topic": "t"}, None)
    assert model.calls == 6


async def test_the_executors_policy_beats_the_environments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_CACHE_POLICY", "inputs")
    model = CountingModel()
    executor = PrefectExecutor(default_task_config={"cache_policy": "run"})
    for _ in range(2):
        await asking(model, executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 4


async def test_with_caching_off_in_the_environment_a_retried_flow_runs_steps_again(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("FASTROAI_CACHE_POLICY", "off")
    first = Give("x")
    steps = {"a": first, "b": Give(ConnectionError("once"), "done")}
    result = await Pipeline("off", steps, {"b": ["a"]}).to_flow(retries=1)({})
    assert result.output == "done"
    assert first.runs == 2


async def test_a_result_is_reused_until_it_expires():
    model = CountingModel()
    pipeline = asking(
        model, PipelineConfig(cache_policy="inputs", cache_expiration=timedelta(hours=1))
    )
    for _ in range(2):
        await pipeline.execute({"topic": "t"}, None)
    assert model.calls == 2
    moment = asking(
        model, PipelineConfig(cache_policy="inputs", cache_expiration=0.001, cache_scope="moment")
    )
    results = []
    for _ in range(2):
        results.append(await moment.execute({"topic": "t"}, None))
        await asyncio.sleep(0.01)
    assert model.calls == 6
    run = await read_run(results[1].run_id, tasks=2)
    assert {t.state_name for t in run.task_runs.values()} == {"Completed"}


async def test_a_steps_expiration_beats_the_executors():
    model = CountingModel()
    executor = PrefectExecutor(
        default_task_config={"cache_policy": "inputs", "cache_expiration": timedelta(seconds=-1)}
    )
    for _ in range(2):
        await asking(model, PipelineConfig(cache_expiration=3600), executor=executor).execute(
            {"topic": "t"}, None
        )
    assert model.calls == 2


async def test_scopes_do_not_share_results():
    model = CountingModel()
    for scope in ("tenant-a", None, "tenant-a"):
        await asking(model, PipelineConfig(cache_policy="inputs", cache_scope=scope)).execute(
            {"topic": "t"}, None
        )
    assert model.calls == 4


async def test_a_scope_forks_one_step_and_what_depends_on_what_it_gives():
    model = CountingModel()
    for scope in ("one", "other"):
        configs = {"ask": StepConfig(cache_scope=scope)}
        await asking(model, PipelineConfig(cache_policy="inputs"), step_configs=configs).execute(
            {"topic": "t"}, None
        )
    assert [prompt.split("|")[0] for prompt in model.prompts] == ["ask", "sum", "ask"]


@pytest.mark.long
async def test_a_scope_holds_under_prefects_own_policies_too():
    from prefect.cache_policies import INPUTS

    model = CountingModel()
    for scope in ("tenant-a", "tenant-b", "tenant-a"):
        await asking(model, PipelineConfig(cache_policy=INPUTS, cache_scope=scope)).execute(
            {"topic": "t"}, None
        )
    assert model.calls == 4


async def test_live_deps_are_no_part_of_a_key():
    model = CountingModel()
    for deps in (None, {"client": object()}):
        await asking(model, PipelineConfig(cache_policy="inputs")).execute({"topic": "t"}, deps)
    assert model.calls == 2


async def test_a_number_of_the_other_type_is_the_same_input():
    model = CountingModel()
    for topic in (0, -0.0):
        await asking(model, PipelineConfig(cache_policy="inputs")).execute({"topic": topic}, None)
    assert model.calls == 2
