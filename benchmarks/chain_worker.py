"""Times a chain of steps that do nothing in one framework; a script that stands alone, driven by
JSON lines, which runs where that framework is installed.

Its arguments: the framework, the number of steps, and a folder for what it keeps.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from time import perf_counter
from typing import Any

Run = Callable[[], Any]
"""Runs the chain once, from 0, adding 1 in each step; gives what comes out."""


@contextmanager
def fastroai(steps: int, folder: str) -> Iterator[Run]:
    from fastroai import BaseStep, Pipeline, PipelineConfig
    from fastroai.executors import InMemoryExecutor

    executor = "prefect" if "PREFECT_API_URL" in os.environ else InMemoryExecutor()
    if executor == "prefect":
        # There is no switch for them.
        from fastroai.executors._prefect.artifacts import ArtifactWriter

        ArtifactWriter.add = lambda *args, **kwargs: None  # type: ignore[method-assign]

    class Add(BaseStep[Any, int]):
        def __init__(self, before: str | None) -> None:
            self.before = before

        async def execute(self, context: Any) -> int:
            return 1 if self.before is None else 1 + int(context.get_dependency(self.before))

    names = [f"s{number}" for number in range(steps)]
    pipeline: Pipeline[Any, Any, int] = Pipeline(
        "chain",
        {name: Add(before) for name, before in zip(names, [None, *names], strict=False)},
        dict(zip(names[1:], ([name] for name in names), strict=False)),
        names[-1],
        PipelineConfig(result_storage=f"{folder}/results") if executor == "prefect" else None,
        executor=executor,
    )

    async def execute() -> Any:
        return (await pipeline.execute({}, None)).output

    yield lambda: asyncio.run(execute())


@contextmanager
def langgraph(steps: int, folder: str) -> Iterator[Run]:
    from typing import TypedDict

    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.graph import END, START, StateGraph

    class Number(TypedDict):
        value: int

    graph = StateGraph(Number)
    names = [f"s{number}" for number in range(steps)]
    for name in names:
        graph.add_node(name, lambda state: {"value": state["value"] + 1})
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    threads = count()
    with SqliteSaver.from_conn_string(f"{folder}/checkpoints.db") as saver:
        compiled = graph.compile(checkpointer=saver)

        def run() -> Any:
            thread: Any = {"thread_id": str(next(threads))}
            config: Any = {"configurable": thread, "recursion_limit": 2 * steps}
            # What a step gave is on disk before the next one begins.
            return compiled.invoke({"value": 0}, config, durability="sync")["value"]

        yield run


@contextmanager
def dbos(steps: int, folder: str) -> Iterator[Run]:
    from dbos import DBOS

    options: Any = {
        "name": "chain",
        "system_database_url": f"sqlite:///{folder}/dbos.db",
        "run_admin_server": False,
        "log_level": "ERROR",
    }
    DBOS(config=options)

    @DBOS.step()
    def add(value: int) -> int:
        return value + 1

    @DBOS.workflow()
    def chain() -> int:
        value = 0
        for _ in range(steps):
            value = add(value)
        return value

    DBOS.launch()
    yield chain
    DBOS.destroy()


@contextmanager
def pydantic_graph(steps: int, folder: str) -> Iterator[Run]:
    from pydantic_graph import GraphBuilder, StepContext

    graph = GraphBuilder(input_type=int, output_type=int)

    async def add(context: StepContext[None, None, int]) -> int:
        return context.inputs + 1

    nodes: list[Any] = [graph.step(add, node_id=f"s{number}") for number in range(steps)]
    for before, after in zip([graph.start_node, *nodes], [*nodes, graph.end_node], strict=True):
        graph.add(graph.edge_from(before).to(after))
    built = graph.build()
    yield lambda: asyncio.run(built.run(inputs=0))


FRAMEWORKS = {
    "fastroai": fastroai,
    "langgraph": langgraph,
    "dbos": dbos,
    "pydantic-graph": pydantic_graph,
}


def timed(run: Run, steps: int) -> float:
    """Seconds of one step."""
    gc.collect()
    started = perf_counter()
    value = run()
    seconds = perf_counter() - started
    if value != steps:
        raise RuntimeError(f"the chain of {steps} steps gave {value!r}")
    return seconds / steps


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not land between the answers
    name, steps, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with FRAMEWORKS[name](steps, folder) as run:
        answers.write(json.dumps({"version": version(name)}) + "\n")
        answers.flush()
        for _ in sys.stdin:
            answers.write(json.dumps({"seconds": timed(run, steps)}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
