"""Runs one list of items in one of several ways; a script that stands alone, driven by JSON lines.

`mapped` is a mapped step, `handwritten` a Prefect flow with `task.map`, `steps` a pipeline with a
step for each item, `agents` pydantic-ai's `Agent.run` gathered by hand. What an item does: `answer`
asks a model that answers at once, `ask` one behind a port, `nothing` returns, `carry` gives back
the 100 kB that it is given.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic_ai.usage import RequestUsage

from benchmarks.answering import answer
from benchmarks.plain_agents import plain_agent
from fastroai import BaseStep, FastroAgent, Pipeline, StepContext, step
from fastroai.testing import ScriptedModel, fixed_prices

USAGE = RequestUsage(input_tokens=1_200, output_tokens=180)
LARGE = 100_000
numbers = count()

Run = Callable[[int], Awaitable[object]]


def model_of(work: str) -> Any:
    """What answers the items, or None."""
    if work == "answer":
        return ScriptedModel("It grinds slowly.", usage=USAGE, repeat=True)
    if work == "ask":
        return "openai-chat:gpt-5-mini"  # with the client that each makes itself
    return None


def step_of(work: str) -> Any:
    """The step that an item goes through."""
    model = model_of(work)
    agent = FastroAgent(model=model, cost_calculator=fixed_prices()) if model is not None else None

    @step
    async def ask(context: StepContext[Any]) -> str:
        assert agent is not None
        return (await context.run(agent, f"What does mill {context.item} do?")).output

    @step
    async def carry(context: StepContext[Any]) -> str:
        return str(context.item) if work == "carry" else ""

    return carry if agent is None else ask


def mapped(work: str, executor: str) -> Run:
    each = step_of(work)

    @step(cache_policy="off", persist_result=False)  # a stream can't be kept
    async def read(context: StepContext[int]) -> AsyncIterator[Any]:
        async def items() -> AsyncIterator[Any]:
            for number in range(context.deps):
                yield f"{number:08d}" * (LARGE // 8) if work == "carry" else number

        return items()

    async def run(items: int) -> object:
        concurrent = items if work == "ask" else 100
        steps = {"read": read, "each": each.map(over="read", max_concurrency=concurrent)}
        pipeline: Any = Pipeline(f"mapped-{work}", steps, executor=executor)
        result = await pipeline.execute({}, items, run_key=f"run-{os.getpid()}-{next(numbers)}")
        if len(result.output) != items:
            raise RuntimeError(f"{len(result.output)} outputs of {items} items")
        return result

    return run


class Asks(BaseStep[Any, str]):
    """One of many plain steps."""

    def __init__(self, agent: FastroAgent[str], number: int) -> None:
        self.agent = agent
        self.number = number

    async def execute(self, context: StepContext[Any]) -> str:
        return (await context.run(self.agent, f"What does mill {self.number} do?")).output


def steps(work: str, executor: str) -> Run:
    agent: FastroAgent[str] = FastroAgent(model=model_of(work), cost_calculator=fixed_prices())

    async def run(items: int) -> object:
        asking: dict[str, BaseStep[Any, Any]] = {f"s{n}": Asks(agent, n) for n in range(items)}
        pipeline: Any = Pipeline(f"steps-{work}", asking, output_step="s0", executor=executor)
        return await pipeline.execute({}, None)

    return run


def agents(work: str, executor: str) -> Run:
    agent = plain_agent(model_of(work))

    async def run(items: int) -> object:
        return await asyncio.gather(*(agent.run(f"What does mill {n} do?") for n in range(items)))

    return run


def handwritten(work: str, executor: str) -> Run:
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner
    from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket

    parameters = AwsClientParameters(endpoint_url=os.environ["FASTROAI_S3_ENDPOINT_URL"])
    credentials = AwsCredentials(
        aws_access_key_id=os.environ["FASTROAI_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["FASTROAI_S3_SECRET_ACCESS_KEY"],
        region_name=os.environ["FASTROAI_S3_REGION"],
        aws_client_parameters=parameters,
    )
    bucket: Any = S3Bucket(bucket_name="results", bucket_folder="hand", credentials=credentials)
    bucket.save("bench", overwrite=True, _sync=True)
    agent = plain_agent(model_of(work))

    @task(persist_result=True)
    async def ask(number: int) -> str:
        return (await agent.run(f"What does mill {number} do?")).output

    @flow(
        persist_result=True,
        result_storage="s3-bucket/bench",
        task_runner=ThreadPoolTaskRunner(max_workers=100),  # type: ignore[arg-type]
    )
    def digest(items: int) -> int:
        return len([future.result() for future in ask.map(list(range(items)))])

    async def run(items: int) -> object:
        return await asyncio.to_thread(digest, items)

    return run


WAYS = {"mapped": mapped, "handwritten": handwritten, "steps": steps, "agents": agents}


class Memory:
    """The most memory that this process had while this was open, in bytes over what it had
    before.
    """

    def __enter__(self) -> Memory:
        gc.collect()
        self.before = self.most = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, resident())

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def added(self) -> int:
        return self.most - self.before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def timed(run: Run, items: int) -> dict[str, float]:
    started, used = perf_counter(), sum(os.times()[:2])
    await run(items)
    took = perf_counter() - started
    return {"seconds": took, "cpu": sum(os.times()[:2]) - used}


def handle(way: str, work: str, executor: str, items: int) -> dict[str, float]:
    run = WAYS[way](work, executor)  # anew: clients belong to the loop that they were used in
    with Memory() as memory:
        figures = asyncio.run(timed(run, items))
    return {**figures, "bytes": memory.added}


def main() -> None:
    way, work, executor = sys.argv[1:]
    answer(lambda command: handle(way, work, executor, command["items"]))


if __name__ == "__main__":
    main()
