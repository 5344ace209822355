"""Times one graph as a Prefect flow; a script that stands alone, driven by JSON lines.

`handwritten` is the flow a careful engineer writes without fastroai: tasks awaited in the flow's
loop, true edges, results persisted, a table artifact per task and one for the run.
`handwritten-bare` has no artifacts. `fastroai` is the same graph as a pipeline, `fastroai-bare`
with its artifacts cut out.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic_ai.usage import RequestUsage

from benchmarks.answering import answer
from benchmarks.mapped_worker import resident
from benchmarks.plain_agents import plain_agent
from fastroai.testing import ScriptedModel

Graph = dict[str, list[str]]
Run = Callable[[], Awaitable[object]]
Table = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """What each step does before it doubles its number.

    Attributes:
        wait: Seconds.
        asks: A scripted model, once.
    """

    wait: float
    asks: bool


def model() -> ScriptedModel:
    usage = RequestUsage(input_tokens=1_200, output_tokens=180)
    return ScriptedModel("Twice as much.", usage=usage, repeat=True)


def build_fastroai(name: str, dependencies: Graph, work: Work, artifacts: bool) -> Run:
    from fastroai import BaseStep, FastroAgent, Pipeline

    if not artifacts:
        # There is no switch for them: this subject exists to show what they add.
        from fastroai.executors._prefect.artifacts import ArtifactWriter

        ArtifactWriter.add = lambda *args, **kwargs: None  # type: ignore[method-assign]

    agent: FastroAgent[str] = FastroAgent(model=model())

    class Double(BaseStep[Any, int]):
        def __init__(self, number: int) -> None:
            self.number = number

        async def execute(self, context: Any) -> int:
            if work.wait:
                await asyncio.sleep(work.wait)
            if work.asks:
                await context.run(agent, f"What is twice {self.number}?")
            return 2 * self.number

    pipeline: Any = Pipeline(
        name=name,
        steps={step_id: Double(number) for number, step_id in enumerate(dependencies)},
        dependencies={step_id: upstream for step_id, upstream in dependencies.items() if upstream},
        output_step=next(reversed(dependencies)),
        executor="prefect",
    )
    return lambda: pipeline.execute({}, None)


def build_handwritten(name: str, dependencies: Graph, work: Work, artifacts: bool) -> Run:
    from prefect import flow, task
    from prefect.artifacts import acreate_table_artifact

    agent = plain_agent(model())

    def costs(step_id: str) -> Table:
        return [
            {
                "step": step_id,
                "model": "none",
                "requests": 0,
                "input": 0,
                "output": 0,
                "usd": "0.000000",
            }
        ]

    @task(persist_result=True)
    async def double(step_id: str, number: int) -> int:
        if work.wait:
            await asyncio.sleep(work.wait)
        if work.asks:
            await agent.run(f"What is twice {number}?")
        if artifacts:
            await acreate_table_artifact(
                key=f"{name}-{step_id}", table=costs(step_id), description="Cost of a step"
            )
        return 2 * number

    @flow(name=name)
    async def handwritten() -> dict[str, int]:
        running: dict[str, asyncio.Task[Any]] = {}

        async def step(step_id: str, number: int) -> Any:
            states = [await running[upstream] for upstream in dependencies[step_id]]
            configured: Any = double.with_options(name=step_id)
            return await configured(step_id, number, wait_for=states, return_state=True)

        for number, step_id in enumerate(dependencies):
            running[step_id] = asyncio.create_task(step(step_id, number))
        states = {step_id: await task for step_id, task in running.items()}
        outputs = {step_id: await state.aresult() for step_id, state in states.items()}
        if artifacts:
            table = [row for step_id in outputs for row in costs(step_id)]
            await acreate_table_artifact(
                key=f"{name}-run", table=table, description="Cost of the run"
            )
        return outputs

    return handwritten


def stored_results() -> int:
    from prefect.settings import get_current_settings

    return sum(
        1
        for path in Path(get_current_settings().results.local_storage_path).rglob("*")
        if path.is_file()
    )


async def counts() -> dict[str, int]:
    """What the server and the result storage hold by now; proof that every subject does the same
    work.
    """
    from prefect import get_client

    async with get_client() as client:
        artifacts = await client._client.post("/artifacts/count", json={})
        task_runs = await client._client.post("/task_runs/count", json={})
    return {
        "artifacts": artifacts.json(),
        "task_runs": task_runs.json(),
        "results": stored_results(),
    }


async def time_run(run: Run) -> float:
    started = perf_counter()
    await run()
    return perf_counter() - started


def grown(run: Run, number: int) -> dict[str, float]:
    """Bytes that a process has more after so many runs, and of what most objects are."""

    async def several() -> None:
        for _ in range(number):
            await run()

    gc.collect()
    before = resident()
    asyncio.run(several())
    gc.collect()
    return {"bytes": resident() - before}


def handle(command: dict[str, Any], subject: str, runs: dict[str, Run]) -> dict[str, Any]:
    if command["op"] == "counts":
        return asyncio.run(counts())
    if command["op"] == "build":
        name = f"{command['name']}-{subject}"
        build = build_fastroai if subject.startswith("fastroai") else build_handwritten
        runs["built"] = build(
            name,
            command["dependencies"],
            Work(command["wait"], command["asks"]),
            artifacts=not subject.endswith("-bare"),
        )
        return {}
    if command["op"] == "grow":
        return grown(runs["built"], command["runs"])
    gc.collect()
    gc.freeze()
    try:
        return {"seconds": asyncio.run(time_run(runs["built"]))}
    finally:
        gc.unfreeze()


def main() -> None:
    subject = sys.argv[1]
    runs: dict[str, Run] = {}
    answer(lambda command: handle(command, subject, runs), subject=subject)


if __name__ == "__main__":
    main()
