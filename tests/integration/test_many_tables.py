"""Which steps of a run under Prefect have a cost table of their own."""

from __future__ import annotations

import pytest

from fastroai import Pipeline, StepContext, step
from fastroai.errors import StepExecutionError
from tests.integration.models import CountingModel
from tests.integration.read_back import read_run, table

pytestmark = pytest.mark.usefixtures("prefect_api")


async def test_of_very_many_steps_only_those_have_a_table_of_which_their_states_do_not_tell_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastroai.executors._prefect.tasks.MOST_WITH_TABLES", 2)
    agent = CountingModel().agent()

    @step
    async def ask(ctx: StepContext[None]) -> str:
        return (await ctx.run(agent, "What does the mill do?")).output

    @step
    async def fails(ctx: StepContext[None]) -> str:
        await ctx.run(agent, "What does the mill do?")
        raise ValueError("no answer")

    steps = {"a": ask, "b": ask, "mapped": ask.map(over="xs"), "fails": fails}
    pipeline = Pipeline("many", steps, {"fails": ["a", "b", "mapped"]}, executor="prefect")
    with pytest.raises(StepExecutionError) as failure:
        await pipeline.execute({"xs": [1]})
    run = await read_run(failure.value.partial_result.run_id, tasks=4)
    told = {artifact.key for artifact in run.cost_tables()}
    assert told == {"costs-many", "costs-many--mapped", "costs-many--fails"}
    assert [row["requests"] for row in table(run.artifact())] == [1, 1, 1, 1]
    state = run.task_runs["a"].state
    assert state is not None
    assert "$0.00045" in str(state.message)
