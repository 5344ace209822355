"""Times the requests of one step under Prefect; driven by JSON lines.

Of each command, the step is executed with as many requests, one after the other, and the time is
taken within it. `replay` is what it takes to execute it once more after it failed at its end, so
that each request was answered before.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any

from pydantic_ai.usage import RequestUsage

from benchmarks.answering import answer
from fastroai import BaseStep, FastroAgent, Pipeline, StepConfig, StepExecutionError
from fastroai.testing import ScriptedModel

MODEL = ScriptedModel(
    "It grinds slowly.", usage=RequestUsage(input_tokens=1_200, output_tokens=180), repeat=True
)
AGENT: FastroAgent[str] = FastroAgent(model=MODEL)

numbers = count()


@dataclass
class Lap:
    """One execution of the step.

    Attributes:
        requests: How many it makes.
        fails: Whether it does not get to its end, once all are answered.
        seconds: What they took together.
    """

    requests: int
    fails: bool
    seconds: float = 0.0


class Ask(BaseStep[Lap, None]):
    async def execute(self, context: Any) -> None:
        started = perf_counter()
        for number in range(context.deps.requests):
            await context.run(AGENT, f"What does mill {number} do?")
        context.deps.seconds = perf_counter() - started
        if context.deps.fails:
            raise ConnectionError("after the last answer")


def pipeline(durable: Any) -> Pipeline[Lap, Any, None]:
    return Pipeline(
        f"durable-{durable}",
        {"ask": Ask()},
        {},
        "ask",
        step_configs={"ask": StepConfig(durable=durable, retries=0)},
        executor="prefect",
    )


PIPELINES = {durable: pipeline(durable) for durable in ("step", "request")}


async def execute(durable: str, run_key: str, lap: Lap) -> float:
    try:
        await PIPELINES[durable].execute({}, lap, run_key=run_key)
    except StepExecutionError:
        if not lap.fails or not lap.seconds:
            raise
    return lap.seconds / lap.requests


async def measure(subject: str, requests: int) -> float:
    """Seconds for one request."""
    run_key = f"run-{next(numbers)}"
    if subject != "replay":
        return await execute(subject, run_key, Lap(requests, fails=False))
    await execute("request", run_key, Lap(requests, fails=True))
    sent_before = MODEL.calls
    seconds = await execute("request", run_key, Lap(requests, fails=False))
    if MODEL.calls != sent_before:
        raise RuntimeError(f"{MODEL.calls - sent_before} requests were sent again")
    return seconds


def handle(command: dict[str, Any]) -> dict[str, float]:
    gc.collect()
    return {"seconds": asyncio.run(measure(command["subject"], command["requests"]))}


def main() -> None:
    answer(handle)


if __name__ == "__main__":
    main()
