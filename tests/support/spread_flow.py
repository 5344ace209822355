"""A pipeline whose items are spread over the workers of a pool, as these import it."""

from __future__ import annotations

import os
from typing import Any

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.executors import PrefectExecutor, Spread
from fastroai.testing import fixed_prices
from tests.support.killed_runs import WORKER

NAME = "spread"


class Desk:
    """What the deps factory makes in each process."""

    def __init__(self) -> None:
        self.worker = os.environ.get(WORKER, "the test")
        self.agent: FastroAgent[Any] = FastroAgent(
            model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices("gpt-5-mini")
        )


@step
async def read(context: StepContext[Desk]) -> list[dict[str, str]]:
    return [
        {"id": f"doc-{number}", "text": f"document {number:04}"}
        for number in range(context.get_input("documents"))
    ]


@step(retries=1, retry_delay=0.0)
async def summarise(context: StepContext[Desk]) -> list[str]:
    answer = (await context.run(context.deps.agent, context.item["text"])).output
    return [context.deps.worker, context.item_key, answer]


pipeline = Pipeline(
    NAME,
    {
        "read": read,
        "summaries": summarise.map(over="read", key="id", max_concurrency=8),
    },
)


@step(retries=1, retry_delay=0.0)
async def check(context: StepContext[Desk]) -> list[str]:
    asked = f"check {context.item_key}: {context.item[2]}"
    answer = (await context.run(context.deps.agent, asked)).output
    return [context.deps.worker, context.item_key, answer]


twice = Pipeline(
    NAME,
    {
        "read": read,
        "summaries": summarise.map(over="read", key="id", max_concurrency=4),
        "checks": check.map(over="summaries", max_concurrency=4),
    },
)


def flow_of(items: int, runs: int, pipeline: Pipeline[Any, Any, Any] = pipeline) -> Any:
    """The flow, whose runs work on so many items each."""
    spread = Spread(items=items, runs=runs, patience=20)
    return pipeline.with_executor(PrefectExecutor(spread=spread)).to_flow(
        name=NAME, version="1", deps_factory=Desk
    )


flow, flow_twice = flow_of(200, 2), flow_of(8, 2, twice)
