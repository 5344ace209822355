"""A map over a map, the first of which fails: it is the first that has failed, whichever of the two
is heard of first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from fastroai import Pipeline, PipelineConfig, StepContext, StepExecutionError, step
from fastroai.budgets import Budget
from fastroai.errors import SourceStepError
from fastroai.executors import ExecutionResult, PlanExecutor, open_session, run_attempts, run_plan
from fastroai.executors.protocol import StepRecord
from fastroai.executors.session import RunSession
from fastroai.pipelines.plan import ExecutionPlan, PlannedStep
from tests.support.models import COST, counted_agent

TURNS = 50
"""Of the loop, by which a failure is heard of later: enough for all that waits for it to end."""


@step
async def shout(context: StepContext[Any]) -> str:
    return str(context.item).upper()


@step
async def fails(context: StepContext[Any]) -> str:
    raise RuntimeError("no")


class HeardLate(PlanExecutor):
    """Tells of the failure of a step named `one` when all else has ended."""

    async def _run(self, session: RunSession, node: PlannedStep) -> StepRecord:
        try:
            return await run_attempts(session, node)
        except Exception:
            for _ in range(TURNS if node.step_id == "one" else 0):
                await asyncio.sleep(0)
            raise

    async def execute_plan(
        self,
        plan: ExecutionPlan,
        inputs: dict[str, Any],
        deps: Any,
        tracer: Any,
        *,
        name: str = "pipeline",
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecutionResult:
        opened = open_session(plan, inputs, deps, tracer, name=name, run_key=run_key, tags=tags)
        async with opened as session:
            return await session.conclude(await run_plan(plan, partial(self._run, session)))


def chain(first: Any, **config: Any) -> Pipeline[Any, Any, Any]:
    """Three maps, each over the one before."""
    return Pipeline(
        "chain",
        {
            "one": first.map(over="xs"),
            "two": shout.map(over="one"),
            "three": shout.map(over="two"),
        },
        config=PipelineConfig(**config),
        executor=HeardLate(),
    )


async def test_a_run_names_the_map_that_failed() -> None:
    with pytest.raises(StepExecutionError, match=r"Step 'one' failed: item .*: no"):
        await chain(fails).execute({"xs": ["a"]})


async def test_maps_over_a_failed_one_are_skipped_however_far() -> None:
    result = await chain(fails, on_error="continue").execute({"xs": ["a"]})
    assert (set(result.errors), result.skipped) == ({"one"}, ("two", "three"))


async def test_such_an_error_of_a_steps_own_is_its_failure() -> None:
    @step
    async def raises(context: StepContext[Any]) -> str:
        raise SourceStepError("another", RuntimeError("no"))

    with pytest.raises(SourceStepError, match="Step 'another' failed"):
        await Pipeline("p", {"alone": raises}, executor=HeardLate()).execute({})


async def test_maps_over_one_that_a_budget_left_out_are_left_out() -> None:
    agent, _ = counted_agent("yes")

    @step(optional=True)
    async def asks(context: StepContext[Any]) -> str:
        for number in range(2):
            await context.run(agent, str(number))
        return "asked"

    budget = Budget(usd=Decimal(COST) / 1_000_000, at_limit="skip")
    result = await chain(asks, budget=budget).execute({"xs": ["a"]})
    assert (result.errors, result.skipped) == ({}, ("one", "two", "three"))
