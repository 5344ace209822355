"""What the memory executor costs per no-op step, beside plain asyncio and fastroai 0.6.1."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from . import peer
from .report import Section, Verdict
from .shapes import SHAPES, Shape
from .workers import Worker, interleaved, paired_ratio, progress

SIZES = (100, 1_000, 10_000)
PEER_SIZES = (100, 1_000)
MAX_PEER_RATIO = 1.2
MAX_WIDE_RATIO, MAX_WIDE_BUILD = 0.8, 2.0
"""Of 1,000 steps."""
WHY_BUILD = (
    "0.6.1 checks less. By a profile, of 2.2 µs a step 30 % are the checks of its id and of what "
    "it is, 30 % the planned step, 11 % its layers of configuration, 15 % edges both ways and "
    "their order. Tried, and kept: configurations are resolved once where a step has none of its "
    "own, and the order is counted rather than left to `graphlib`, which found a cycle's absence "
    "for a third of 3.6 µs."
)
MAX_GROWTH = 1.3
_HEADER = [
    "ours",
    peer.VERSION,
    "plain asyncio",
    f"ours / {peer.VERSION}",
    "build: ours",
    f"build: {peer.VERSION}",
]

Figures = dict[tuple[str, int, str], list[float]]


def measure(quick: bool, peer_python: Path | None) -> Section:
    rounds = 3 if quick else 5
    figures: Figures = {}
    builds: Figures = {}
    for name in SHAPES:
        progress(f"memory: {name}")
        _measure_shape(name, rounds, peer_python, figures, builds)
    return Section(
        title="Memory executor: µs per no-op step",
        method=(
            f"Median of {rounds} rounds, subjects and sizes interleaved, each figure the mean over "
            "10,000 steps; a fresh process per shape and subject, a full garbage collection before "
            "each figure and the collector on during it, one warm-up. Execution only; the last "
            "columns are what building the pipeline takes, per step. Plain asyncio is the same "
            "graph by hand: one task after the other, one `gather`, tasks awaiting tasks. "
            f"fastroai {peer.VERSION} stops at 1,000 steps because its build is quadratic. Ratios "
            "are medians of the ratios of each round."
        ),
        header=["shape, steps", *_HEADER],
        rows=[_row(figures, builds, name, size) for name in SHAPES for size in SIZES],
        verdicts=[
            *_peer_verdicts(figures),
            Verdict(
                f"wide, 1,000: to build, beside {peer.VERSION}",
                _peer_ratio(builds, "wide", 1_000),
                MAX_WIDE_BUILD,
                WHY_BUILD,
            ),
            *_growth_verdicts(figures),
        ],
    )


def _measure_shape(
    name: str, rounds: int, peer_python: Path | None, figures: Figures, builds: Figures
) -> None:
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Worker("step_worker.py", "fastroai"))}
        if peer_python is not None:
            workers["peer"] = stack.enter_context(
                Worker("step_worker.py", "fastroai", python=peer_python)
            )
            if workers["peer"].hello["version"] != peer.VERSION:
                raise RuntimeError(
                    f"the peer is {workers['peer'].hello['version']!r}, not {peer.VERSION!r}"
                )
        workers["asyncio"] = stack.enter_context(Worker("step_worker.py", "asyncio"))
        builders: dict[tuple[str, int, str], Callable[[], float]] = {}
        runners: dict[tuple[str, int, str], Callable[[], float]] = {}
        for size in SIZES:
            for who, worker in workers.items():
                if who == "peer" and size not in PEER_SIZES:
                    continue
                builders[name, size, who] = partial(build, worker, SHAPES[name](size), str(size))
                runners[name, size, who] = _runner(worker, size)
        for warm in builders.values():
            warm()
        builds.update(interleaved(builders, rounds))
        for warm in runners.values():
            warm()
        figures.update(interleaved(runners, rounds))


def build(worker: Worker, shape: Shape, key: str, sleeps: dict[str, float] | None = None) -> float:
    """Let a worker build the pipeline of a shape. Returns seconds."""
    answer = worker.ask(
        op="build",
        key=key,
        shape=shape.name,
        dependencies=shape.dependencies,
        output_step=shape.output_step,
        sleeps=sleeps,
    )
    return float(answer["seconds"])


def _runner(worker: Worker, size: int) -> Callable[[], float]:
    executions = max(1, SIZES[-1] // size)
    return lambda: (
        float(worker.ask(op="run", key=str(size), executions=executions)["seconds"]) / size
    )


def _row(figures: Figures, builds: Figures, name: str, size: int) -> list[str]:
    def micros(table: Figures, who: str, per: int = 1) -> str:
        values = table.get((name, size, who))
        return "–" if values is None else f"{median(values) * 1e6 / per:.1f}"

    ratio = _peer_ratio(figures, name, size)
    return [
        f"{name}, {size:,}",
        micros(figures, "ours"),
        micros(figures, "peer"),
        micros(figures, "asyncio"),
        "–" if ratio is None else f"{ratio:.2f}",
        micros(builds, "ours", size),
        micros(builds, "peer", size),
    ]


def _peer_ratio(figures: Figures, name: str, size: int) -> float | None:
    theirs = figures.get((name, size, "peer"))
    return None if theirs is None else paired_ratio(figures[name, size, "ours"], theirs)


def _peer_verdicts(figures: Figures) -> list[Verdict]:
    return [
        Verdict(
            f"{name}, {size:,}: per step beside {peer.VERSION}",
            _peer_ratio(figures, name, size),
            MAX_WIDE_RATIO if (name, size) == ("wide", 1_000) else MAX_PEER_RATIO,
        )
        for name in SHAPES
        for size in PEER_SIZES
    ]


def _growth_verdicts(figures: Figures) -> list[Verdict]:
    verdicts = []
    for name in SHAPES:
        small, large = (figures[name, size, "ours"] for size in (SIZES[0], SIZES[-1]))
        question = f"{name}: growth per step from {SIZES[0]:,} to {SIZES[-1]:,}"
        if name == "wide":
            small, large = (_above_asyncio(figures, name, size) for size in (SIZES[0], SIZES[-1]))
            question += ", of the part above plain asyncio"
        verdicts.append(Verdict(question, paired_ratio(large, small), MAX_GROWTH))
    return verdicts


def _above_asyncio(figures: Figures, name: str, size: int) -> list[float]:
    pairs = zip(figures[name, size, "ours"], figures[name, size, "asyncio"], strict=True)
    return [ours - plain for ours, plain in pairs]
