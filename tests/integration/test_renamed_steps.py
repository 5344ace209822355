"""Results of a step, or a pipeline, that was renamed since; and why a result is not found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fastroai import Pipeline, PipelineConfig, StepConfig, StepContext, step
from fastroai.cli import main
from fastroai.executors.prefect import MissExplanation, PrefectExecutor
from fastroai.executors.stored_results import explain_miss
from tests.integration.models import CountingModel

pytestmark = pytest.mark.usefixtures("prefect_api")


def asking(model: CountingModel, prompt: str) -> Any:
    agent = model.agent()

    @step
    async def ask(context: StepContext[Any]) -> str:
        return (await context.run(agent, prompt)).output

    return ask


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


def pipeline(
    model: CountingModel,
    folder: Path,
    *,
    name: str = "letters",
    first: str = "read",
    last: str = "write",
    formerly: dict[str, str] | None = None,
    prompt: str = "write",
    pipeline_formerly: str | None = None,
    cache_policy: str = "inputs",
) -> Pipeline[Any, Any, Any]:
    steps = {first: asking(model, "read"), last: asking(model, prompt)}
    configs = {id_: StepConfig(formerly=old) for id_, old in (formerly or {}).items()}
    config = PipelineConfig(cache_policy=cache_policy, formerly=pipeline_formerly)
    executor = PrefectExecutor(result_storage=str(folder))
    return Pipeline(name, steps, {last: [first]}, None, config, configs, executor=executor)


ALL_RENAMED = {
    "name": "post",
    "pipeline_formerly": "letters",
    "first": "parse",
    "last": "compose",
    "formerly": {"parse": "read", "compose": "write"},
}
RENAMED = [
    pytest.param({"last": "compose", "formerly": {"compose": "write"}}, marks=pytest.mark.long),
    pytest.param({"first": "parse", "formerly": {"parse": "read"}}, marks=pytest.mark.long),
    pytest.param({"name": "post", "pipeline_formerly": "letters"}, marks=pytest.mark.long),
    ALL_RENAMED,
]


@pytest.mark.parametrize("renamed", RENAMED)
async def test_results_are_found_under_former_names(
    model: CountingModel, tmp_path: Path, renamed: dict[str, Any]
) -> None:
    before = await pipeline(model, tmp_path).execute({"topic": "t"})
    after = await pipeline(model, tmp_path, **renamed).execute({"topic": "t"})
    assert model.prompts == ["read", "write"]
    assert list(after.step_outputs.values()) == list(before.step_outputs.values())
    assert {entry.attribution.step_id for entry in after.entries} == set(after.step_outputs)
    again = await pipeline(model, tmp_path, **renamed).execute({"topic": "t"})
    assert (again.output, model.calls) == (before.output, 2)


async def test_a_step_that_was_not_renamed_is_paid_for_anew(
    model: CountingModel, tmp_path: Path
) -> None:
    await pipeline(model, tmp_path).execute({"topic": "t"})
    await pipeline(model, tmp_path, last="compose").execute({"topic": "t"})
    assert model.prompts == ["read", "write", "write"]


MISSES = [
    ({"last": "compose"}, "compose", "StepConfig(formerly='write')"),
    pytest.param(
        {"name": "post"}, "read", "PipelineConfig(formerly='letters')", marks=pytest.mark.long
    ),
    ({"prompt": "write more"}, "write", "code, prompts, model or configuration"),
    pytest.param(
        {"first": "parse"}, "write", "did not depend on step 'parse'", marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize(("changed", "step_id", "reason"), MISSES)
async def test_a_miss_is_explained_by_what_was_found(
    model: CountingModel, tmp_path: Path, changed: dict[str, Any], step_id: str, reason: str
) -> None:
    await pipeline(model, tmp_path).execute({"topic": "t"})
    run = await pipeline(model, tmp_path, **changed).execute({"topic": "t"})
    assert reason in await told(run.run_id, step_id, tmp_path)


async def test_another_input_and_another_run_are_told_apart(
    model: CountingModel, tmp_path: Path
) -> None:
    within_runs = pipeline(model, tmp_path, cache_policy="run")
    await within_runs.execute({"topic": "one"})
    run = await within_runs.execute({"topic": "one"})
    assert "of another run" in await told(run.run_id, "read", tmp_path)
    other = await within_runs.execute({"topic": "other"})
    assert "another input" in await told(other.run_id, "read", tmp_path)


async def test_the_command_says_so_too(
    model: CountingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await pipeline(model, tmp_path).execute({"topic": "t"})
    run = await pipeline(model, tmp_path, prompt="write more").execute({"topic": "t"})
    arguments = ["results", "why", str(run.run_id), "write", "--storage", str(tmp_path)]
    assert await asyncio.to_thread(main, arguments) == 0
    assert "code, prompts, model or configuration" in capsys.readouterr().out


async def told(run_id: str | None, step_id: str, folder: Path) -> str:
    assert run_id is not None
    explanation = await explain_miss(run_id, step_id, storage=str(folder))
    assert isinstance(explanation, MissExplanation)
    return "\n".join(explanation.lines())
