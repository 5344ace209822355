"""Pipelines that pause at a budget, as flows to deploy."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

from fastroai import FastroAgent, Pipeline, PipelineConfig, StepContext, step
from fastroai.budgets import Budget
from fastroai.testing import fixed_prices

PRICE = Decimal("0.00018")
"""USD of each of its requests, of which there are five."""
LIMIT = 2 * PRICE


def pipeline(
    name: str, budget: Budget | None = None, executor: Any = None
) -> Pipeline[Any, Any, list[str]]:
    """Asks `start`; `slow` and `quick` at once, and then `late`; `end` at last.

    Each step leaves a file with the id of its process at the input's `pids`.
    """
    agent = FastroAgent(model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices())

    async def ask(ctx: StepContext[Any], prompt: str) -> str:
        return f"{prompt}: {(await ctx.run(agent, prompt)).output}"

    def note_process(ctx: StepContext[Any]) -> None:
        (Path(ctx.get_input("pids")) / f"{os.getpid()}").touch()

    @step
    async def start(ctx: StepContext[Any]) -> str:
        note_process(ctx)
        return await ask(ctx, "start")

    @step
    async def wide(ctx: StepContext[Any]) -> list[str]:
        note_process(ctx)

        async def two() -> list[str]:
            return [await ask(ctx, "quick"), await ask(ctx, "late")]

        slow, quick = await asyncio.gather(ask(ctx, "slow"), two())
        return [slow, *quick]

    @step
    async def end(ctx: StepContext[Any]) -> list[str]:
        note_process(ctx)
        before = [ctx.get_dependency("start"), *ctx.get_dependency("wide")]
        return [*before, await ask(ctx, "end")]

    return Pipeline(
        name,
        {"start": start, "wide": wide, "end": end},
        {"wide": ["start"], "end": ["start", "wide"]},
        config=PipelineConfig(budget=budget),
        executor=executor,
    )


own = pipeline("own-budget", Budget(usd=LIMIT, at_limit="pause")).to_flow(publish_output=True)
standing = pipeline("standing-budget").to_flow(publish_output=True)
