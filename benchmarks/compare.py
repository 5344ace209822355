"""`python -m benchmarks.compare CHECKOUT`: this checkout beside another one, in one run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .prefect_server import Server, prefect_server
from .shapes import SHAPES, ladder
from .workers import ROOT, Worker, environment, interleaved, paired_ratio

TOLERANCE = 1.03
"""A ratio up to this counts as no slower: two runs of one checkout differ by as much."""
Sides = dict[str, Path]
Figures = dict[str, list[float]]


def main(argv: list[str] | None = None) -> None:
    """Print, for each subject, the median of both sides and the median of the ratios."""
    arguments = _parser().parse_args(argv)
    sides = {"new": ROOT, "old": arguments.checkout.resolve()}
    print(f"| subject | {sides['old'].name} | here | ratio | |")  # noqa: T201
    print("|---|---:|---:|---:|---|")  # noqa: T201
    for subject, unit, figures in _measured(sides, arguments.rounds, arguments.only):
        ratio = paired_ratio(figures["new"], figures["old"])
        old, new = (median(figures[side]) * unit for side in ("old", "new"))
        verdict = "holds" if ratio <= TOLERANCE else "slower"
        print(f"| {subject} | {old:.2f} | {new:.2f} | {ratio:.3f} | {verdict} |", flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("checkout", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="a part of the names of the subjects")
    return parser


def _measured(sides: Sides, rounds: int, only: str) -> Iterator[tuple[str, float, Figures]]:
    """Subject, factor from seconds to the unit shown, and seconds of each round by side."""
    local = {"import, ms": _imports, "memory, µs a step": _memory, "metering, µs": _metering}
    for part, measure in local.items():
        if only in part:
            yield from measure(part, sides, rounds)
    served = {"prefect, ms a step": _prefect, "replay, ms a step": _replay, "durable, ms": _durable}
    wanted = {part: measure for part, measure in served.items() if only in part}
    if not wanted:
        return
    with prefect_server() as server:
        for part, measure_served in wanted.items():
            yield from measure_served(part, sides, max(3, rounds // 2), server)


def _imports(part: str, sides: Sides, rounds: int) -> Iterator[tuple[str, float, Figures]]:
    code = "from time import perf_counter as t; a = t(); import fastroai; print(t() - a)"

    def importer(checkout: Path) -> Callable[[], float]:
        variables = environment(checkout)
        command = [sys.executable, "-P", "-c", code]
        return lambda: float(
            subprocess.run(command, capture_output=True, check=True, env=variables).stdout
        )

    yield part, 1e3, interleaved({side: importer(path) for side, path in sides.items()}, 2 * rounds)


def _memory(part: str, sides: Sides, rounds: int) -> Iterator[tuple[str, float, Figures]]:
    for name, size in ((name, size) for name in SHAPES for size in (100, 1_000, 10_000)):
        shape, executions = SHAPES[name](size), max(1, 10_000 // size)
        command = {"shape": shape.name, "dependencies": shape.dependencies}
        command |= {"output_step": shape.output_step, "key": "k"}
        with ExitStack() as stack:
            workers = _workers(stack, sides, "step_worker.py", "fastroai")
            for worker in workers.values():
                worker.ask(op="build", sleeps=None, **command)
                worker.ask(op="run", key="k", executions=1)
            asked = {"op": "run", "key": "k", "executions": executions}
            figures = interleaved(_askers(workers, asked), rounds)
        yield f"{part}: {name}, {size:,}", 1e6 / size, figures


def _metering(part: str, sides: Sides, rounds: int) -> Iterator[tuple[str, float, Figures]]:
    for subject in ("metered", "booked"):
        with ExitStack() as stack:
            # No database of PostgreSQL: neither subject needs one.
            workers = _workers(stack, sides, "metering_worker.py", "")
            asked = {"subject": subject, "count": 300}
            interleaved(_askers(workers, asked), 1)
            yield f"{part}: {subject}", 1e6, interleaved(_askers(workers, asked), 2 * rounds)


def _prefect(
    part: str, sides: Sides, rounds: int, server: Server
) -> Iterator[tuple[str, float, Figures]]:
    for name in ("wide", "chain"):
        with ExitStack() as stack:
            workers = _workers(stack, sides, "prefect_worker.py", "fastroai", env=server.env)
            for worker in workers.values():
                graph = SHAPES[name](60).dependencies
                worker.ask(op="build", name=name, dependencies=graph, wait=0.0, asks=False)
                worker.ask(op="run")
            figures = interleaved(_askers(workers, {"op": "run"}, server), rounds)
        yield f"{part}: {name}, 60", 1e3 / 60, figures


def _replay(
    part: str, sides: Sides, rounds: int, server: Server
) -> Iterator[tuple[str, float, Figures]]:
    steps = 100
    with ExitStack() as stack:
        workers = _workers(stack, sides, "replay_worker.py", "fastroai", env=server.env)
        for worker in workers.values():
            worker.ask(op="build", name="replay", dependencies=ladder(steps).dependencies)
            worker.ask(op="run")
        yield part, 1e3 / steps, interleaved(_askers(workers, {"op": "run"}, server), rounds)


def _durable(
    part: str, sides: Sides, rounds: int, server: Server
) -> Iterator[tuple[str, float, Figures]]:
    quiet = server.env | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
    with ExitStack() as stack:
        workers = _workers(stack, sides, "durable_worker.py", env=quiet)
        for subject in ("request", "replay"):
            asked = {"subject": subject, "requests": 100}
            interleaved(_askers(workers, asked, server), 1)
            yield f"{part}: {subject}", 1e3, interleaved(_askers(workers, asked, server), rounds)


def _workers(
    stack: ExitStack, sides: Sides, script: str, *arguments: str, env: dict[str, str] | None = None
) -> dict[str, Worker]:
    """A process a side, with results and books of its own: each would find the other's."""
    workers = {}
    for side, checkout in sides.items():
        folder = stack.enter_context(TemporaryDirectory())
        own = {
            "FASTROAI_RESULT_STORAGE": f"{folder}/results",
            "FASTROAI_LEDGER_URL": f"sqlite:///{folder}/ledger.db",
        }
        worker = Worker(script, *arguments, env={**(env or {}), **own}, checkout=checkout)
        workers[side] = stack.enter_context(worker)
    return workers


def _askers(
    workers: dict[str, Worker], command: dict[str, object], server: Server | None = None
) -> dict[str, Callable[[], float]]:
    def asker(worker: Worker) -> Callable[[], float]:
        def ask() -> float:
            if server is not None:
                server.settle()
            return float(worker.ask(**command)["seconds"])

        return ask

    return {side: asker(worker) for side, worker in workers.items()}


if __name__ == "__main__":
    main()
