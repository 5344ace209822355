"""What a step of a chain costs in other frameworks that run LLM steps, and in ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .environments import python_with
from .prefect_server import prefect_server
from .report import Section, Verdict
from .workers import Worker, interleaved, progress

STEPS = 100
IN_MEMORY, UNDER_PREFECT = "ours, in memory, with a ledger", "ours, under Prefect"
LANGGRAPH, DBOS, GRAPH = "LangGraph", "DBOS", "pydantic-graph"
KEPT = {
    IN_MEMORY: "nothing: no step asks a model",
    UNDER_PREFECT: "each result in a file, each state on the server",
    LANGGRAPH: "a checkpoint after each step, SQLite",
    DBOS: "the output of each step, SQLite",
    GRAPH: "nothing",
}
MAX_IN_MEMORY, MAX_UNDER_PREFECT = 1.0, 10.0

Figures = dict[str, list[float]]


def requirements() -> dict[str, tuple[str, ...]]:
    """By framework, what is installed to measure it."""
    return {
        LANGGRAPH: ("langgraph==1.2.24", "langgraph-checkpoint-sqlite==3.1.2"),
        DBOS: ("dbos==3.4.0",),
        GRAPH: (f"pydantic-graph=={version('pydantic-graph')}",),
    }


def measure(quick: bool) -> Section:
    rounds = 2 if quick else 3
    figures, versions = _measure(rounds)

    def milliseconds(name: str) -> float | None:
        return median(figures[name]) * 1e3 if name in figures else None

    return Section(
        title="A durable chain: ms per step beside other frameworks",
        method=(
            f"A chain of {STEPS} steps that add 1, median of {rounds} interleaved rounds after a "
            "warm-up, a process for each subject. What is kept is on the local disk before the "
            "next step begins. Ours under Prefect writes no tables and has a server with SQLite on "
            "loopback; the others are in environments of their own."
        ),
        header=["subject", "keeps", "ms per step", "fastest", "slowest"],
        rows=[
            [f"{name} {versions.get(name, '')}".rstrip(), KEPT[name], *_cells(figures.get(name))]
            for name in KEPT
        ],
        verdicts=[
            Verdict("ms per step, in memory", milliseconds(IN_MEMORY), MAX_IN_MEMORY),
            Verdict("ms per step, under Prefect", milliseconds(UNDER_PREFECT), MAX_UNDER_PREFECT),
        ],
    )


def _measure(rounds: int) -> tuple[Figures, dict[str, str]]:
    progress("peers")
    with ExitStack() as stack:
        server = stack.enter_context(prefect_server())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        ledger = {"FASTROAI_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}"}

        def worker(
            framework: str, python: Path | None = None, env: dict[str, str] | None = None
        ) -> Worker:
            arguments = (framework, str(STEPS), str(folder))
            started = Worker("chain_worker.py", *arguments, python=python, env=env)
            return stack.enter_context(started)

        workers = {
            IN_MEMORY: worker("fastroai", env=ledger),
            UNDER_PREFECT: worker("fastroai", env=server.env | ledger),
        }
        for name, wanted in requirements().items():
            if python := python_with(name.lower(), wanted):
                workers[name] = worker(name.lower(), python)

        def seconds(name: str) -> Callable[[], float]:
            def run() -> float:
                if name == UNDER_PREFECT:
                    server.settle()
                return float(workers[name].ask()["seconds"])

            return run

        for name in workers:
            seconds(name)()
        figures = interleaved({name: seconds(name) for name in workers}, rounds)
    return figures, {name: worker.hello["version"] for name, worker in workers.items()}


def _cells(seconds: list[float] | None) -> list[str]:
    if seconds is None:
        return ["–"] * 3
    return [f"{statistic(seconds) * 1e3:.2f}" for statistic in (median, min, max)]
