"""Runs a chain of steps under Prefect with and without what shows its costs at a glance; driven by
JSON lines.

There is no switch for that: `silent` cuts it out, to show what it adds.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

from pydantic_ai.usage import RequestUsage

from benchmarks.answering import answer
from fastroai import BaseStep, FastroAgent, Pipeline
from fastroai.executors import prefect
from fastroai.executors._prefect import artifacts, step_task, tasks
from fastroai.testing import ScriptedModel

MODEL = ScriptedModel(
    "It grinds slowly.", usage=RequestUsage(input_tokens=1_200, output_tokens=180), repeat=True
)
AGENT: FastroAgent[str] = FastroAgent(model=MODEL)


class Ask(BaseStep[None, str]):
    async def execute(self, context: Any) -> str:
        return str((await context.run(AGENT, "What does the mill do?")).content)


def chain(steps: int) -> Pipeline[None, Any, str]:
    names = [f"s{number}" for number in range(steps)]
    waits = {name: [before] for before, name in pairwise(names)}
    return Pipeline("shown", {n: Ask() for n in names}, waits, names[-1], executor="prefect")


class NoLog:
    def info(self, *args: Any) -> None: ...


def untold(entries: Any) -> str:
    return ""


def without_message(message: str, data: Any) -> Any:
    return data


async def as_it_is(value: Any, execution: Any) -> Any:
    return value


def not_beside(writer: Any, work: Any) -> None:
    work.close()


@contextmanager
def silent() -> Iterator[None]:
    """Without the log lines, the states' messages and the standing artifacts."""
    with (
        patch.object(tasks, "get_run_logger", NoLog),
        patch.object(step_task, "cost_line", untold),
        patch.object(step_task, "Completed", without_message),
        patch.object(prefect, "as_ended", as_it_is),
        patch.object(artifacts.ArtifactWriter, "beside", not_beside),
    ):
        yield


@contextmanager
def shown() -> Iterator[None]:
    yield


WAYS = {"shown": shown, "silent": silent}
built: dict[int, Pipeline[None, Any, str]] = {}


def handle(steps: int, way: str) -> dict[str, float]:
    pipeline = built.setdefault(steps, chain(steps))
    gc.collect()
    with WAYS[way]():
        started, worked = perf_counter(), process_time()
        asyncio.run(pipeline.execute({}, None))
        return {"seconds": perf_counter() - started, "processor": process_time() - worked}


def main() -> None:
    answer(lambda command: handle(**command))


if __name__ == "__main__":
    main()
