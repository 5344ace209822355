"""What Prefect's server shows of a mapped step: one task run, its progress, and what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from fastroai import Pipeline, PipelineConfig, StepContext, step
from tests.integration.models import CountingModel
from tests.integration.read_back import read_run, table

pytestmark = pytest.mark.usefixtures("prefect_api")

PATIENCE = 60.0


async def artifacts(key: str) -> list[Artifact]:
    async with get_client() as client:
        return list(
            await client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            )
        )


async def once(look: Callable[[], Awaitable[Any]]) -> Any:
    """What is there, as soon as it is."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await look()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_the_progress_moves_while_a_map_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastroai.executors._prefect.progress_artifact.SECONDS", 0.05)
    may_go_on = asyncio.Event()
    agent = CountingModel().agent()

    @step
    async def ask(context: StepContext[Any]) -> str:
        if context.item >= 3:
            await may_go_on.wait()
        return (await context.run(agent, str(context.item))).output

    pipeline = Pipeline("moving", {"each": ask.map(over="xs")}, executor="prefect")
    running = asyncio.create_task(pipeline.execute({"xs": list(range(4))}))

    async def at(percent: float) -> list[Artifact]:
        found = await artifacts("progress-moving--each")
        return [one for one in found if float(str(one.data)) == percent]

    [shown] = await once(lambda: at(75.0))
    assert "**each**: 3 of 4 items done (1 running) · $0.00135" in str(shown.description)
    may_go_on.set()
    await running
    [ended] = await once(lambda: at(100.0))
    assert ended.id == shown.id
    assert "4 of 4 items done · $0.0018" in str(ended.description)
    assert len(await artifacts("progress-moving--each")) == 1


async def test_each_item_is_a_task_run_where_that_is_asked_for() -> None:
    @step
    async def check(context: StepContext[Any]) -> int:
        if context.item == 2:
            raise ValueError("even")
        return int(context.item)

    each = check.map(over="xs", key=str, task_runs="each", max_failures=1)
    result = await Pipeline("shown", {"each": each}, executor="prefect").execute({"xs": [1, 2, 3]})
    assert dict(result.output) == {"1": 1, "3": 3}
    run = await read_run(result.run_id, tasks=4)
    states = {name: task_run.state_name for name, task_run in run.task_runs.items()}
    assert states == {
        "each": "Completed",
        "each[1]": "Completed",
        "each[2]": "Failed",
        "each[3]": "Completed",
    }


async def test_what_failed_is_listed_with_its_errors_and_without_secrets() -> None:
    @step
    async def fail(context: StepContext[Any]) -> str:
        raise ValueError(f"item {context.item} with sk-proj-{'a1B2' * 12}")

    each = fail.map(over="xs", key=str, max_failures=1200)
    pipeline = Pipeline("failing", {"each": each}, executor="prefect")
    result = await pipeline.execute({"xs": list(range(1002))})
    assert len(result.output.errors) == 1002
    run = await read_run(result.run_id, tasks=1)
    [listed] = [a for a in run.artifacts if a.key == "failures-failing--each"]
    rows = table(listed)
    assert len(rows) == 1001
    assert (rows[0]["item"], rows[0]["error"]) == ("0", "ValueError")
    assert "item 0" in rows[0]["message"]
    assert "a1B2a1B2" not in str(listed.data)
    assert rows[-1]["item"] == "2 more"
    assert "1002 items failed" in str(listed.description)


async def test_what_is_answered_after_the_first_failure_is_in_the_cost_table() -> None:
    sent, may_answer = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[Any]] = []

    async def answer_late(prompt: str) -> str:
        sent.set()
        await may_answer.wait()
        return "late"

    agent = CountingModel(answer_late).agent()

    @step
    async def ask(context: StepContext[Any]) -> str:
        left.append(asyncio.create_task(context.run(agent, "a")))
        await sent.wait()
        raise ValueError("does not wait for its answer")

    @step
    async def beside(context: StepContext[Any]) -> None:
        await once(lambda: artifacts("failures-leaving--each"))
        may_answer.set()
        await asyncio.wait(left)

    steps = {"each": ask.map(over="xs", key=str), "beside": beside}
    config = PipelineConfig(on_error="continue")
    pipeline = Pipeline("leaving", steps, output_step="beside", config=config, executor="prefect")
    await pipeline.execute({"xs": ["a"]})
    for key, column, name in (("leaving--each", "item", "a"), ("leaving", "step", "each")):
        [costs] = await once(lambda key=key: artifacts(f"costs-{key}"))
        [row] = [row for row in table(costs) if row[column] == name]
        assert (row["state"], row["requests"], row["cost_usd"]) == ("failed", 1, "0.00045")
