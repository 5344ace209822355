"""Times pipelines in whichever environment runs it; a script that stands alone, driven by JSON
lines.

`fastroai` as its argument measures the fastroai installed there, `asyncio` the same graph written
by hand.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

Run = Callable[[], Awaitable[object]]


def build_fastroai(command: dict[str, Any]) -> Run:
    from fastroai import BaseStep, Pipeline

    class NoOp(BaseStep[Any, None]):
        async def execute(self, context: Any) -> None:
            return None

    class Sleep(BaseStep[Any, None]):
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def execute(self, context: Any) -> None:
            await asyncio.sleep(self.seconds)

    dependencies, sleeps = command["dependencies"], command.get("sleeps")
    steps: dict[str, BaseStep[Any, Any]] = {
        step_id: Sleep(sleeps[step_id]) if sleeps else NoOp() for step_id in dependencies
    }
    named = {step_id: upstream for step_id, upstream in dependencies.items() if upstream}
    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        name="bench", steps=steps, dependencies=named, output_step=command["output_step"]
    )

    async def run() -> object:
        result = await pipeline.execute({}, None)
        if len(result.step_outputs) != len(dependencies):
            raise RuntimeError(f"{len(result.step_outputs)} of {len(dependencies)} steps ran")
        return result

    return run


def build_asyncio(command: dict[str, Any]) -> Run:
    dependencies: dict[str, list[str]] = command["dependencies"]
    count = len(dependencies)

    async def no_op() -> None:
        return None

    async def chain() -> None:
        for _ in range(count):
            await asyncio.create_task(no_op())

    async def wide() -> None:
        await asyncio.gather(*(no_op() for _ in range(count)))

    async def node(upstream: list[asyncio.Task[None]]) -> None:
        for task in upstream:
            await task
        await no_op()

    async def graph() -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        for step_id, upstream in dependencies.items():
            tasks[step_id] = asyncio.create_task(node([tasks[other] for other in upstream]))
        for task in tasks.values():
            await task

    return {"chain": chain, "wide": wide}.get(command["shape"], graph)


async def time_runs(run: Run, executions: int) -> float:
    """Seconds of one execution, the mean of several in a row."""
    started = perf_counter()
    for _ in range(executions):
        await run()
    return (perf_counter() - started) / executions


def handle(
    command: dict[str, Any], runs: dict[str, Run], build: Callable[[dict[str, Any]], Run]
) -> dict[str, float]:
    gc.collect()
    # What the imports left behind would be walked by each full collection and charged to whoever
    # imported more.
    gc.freeze()
    try:
        if command["op"] == "build":
            started = perf_counter()
            runs[command["key"]] = build(command)
            return {"seconds": perf_counter() - started}
        return {"seconds": asyncio.run(time_runs(runs[command["key"]], command["executions"]))}
    finally:
        gc.unfreeze()


def version() -> str:
    import fastroai

    return fastroai.__version__


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not land between the answers
    subject = sys.argv[1]
    build = {"fastroai": build_fastroai, "asyncio": build_asyncio}[subject]
    runs: dict[str, Run] = {}
    hello = {"version": version() if subject == "fastroai" else sys.version.split()[0]}
    answers.write(json.dumps(hello) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(handle(json.loads(line), runs, build)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
