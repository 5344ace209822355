"""How long graphs of uneven steps take, beside the longest way through them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from . import peer
from .memory import build
from .report import Section, Verdict
from .shapes import UnevenShape, uneven_shapes
from .workers import Worker, interleaved, progress

MAX_RATIO = 1.05
_HEADER = [
    "shape",
    "steps",
    "critical path, ms",
    "ours, ms",
    "ratio",
    "level by level, ms",
    f"{peer.VERSION}, ms",
]


def measure(quick: bool, peer_python: Path | None) -> Section:
    rounds = 2 if quick else 3
    shapes = uneven_shapes()
    figures = {shape.name: _measure_shape(shape, rounds, peer_python) for shape in shapes}
    return Section(
        title="Makespan: uneven graphs beside their critical path",
        method=(
            f"Steps that sleep 20 to 120 ms, memory executor, median of {rounds} interleaved "
            "rounds, fresh processes. The critical path is computed from the asked-for sleeps, so "
            "a timer that wakes late counts against us. Level by level is what a scheduler with "
            "barriers would need at best, computed the same way."
        ),
        header=_HEADER,
        rows=[_row(shape, figures[shape.name]) for shape in shapes],
        verdicts=[
            Verdict(shape.name, _ratio(shape, figures[shape.name]), MAX_RATIO) for shape in shapes
        ],
    )


def _measure_shape(
    shape: UnevenShape, rounds: int, peer_python: Path | None
) -> dict[str, list[float]]:
    progress(f"makespan: {shape.name}")
    with ExitStack() as stack:
        workers = {"ours": stack.enter_context(Worker("step_worker.py", "fastroai"))}
        if peer_python is not None:
            workers["peer"] = stack.enter_context(
                Worker("step_worker.py", "fastroai", python=peer_python)
            )
        for worker in workers.values():
            build(worker, shape, shape.name, shape.sleeps)
            worker.ask(op="run", key=shape.name, executions=1)
        return interleaved(
            {who: _runner(worker, shape.name) for who, worker in workers.items()}, rounds
        )


def _runner(worker: Worker, key: str) -> Callable[[], float]:
    return lambda: float(worker.ask(op="run", key=key, executions=1)["seconds"])


def _ratio(shape: UnevenShape, figures: dict[str, list[float]]) -> float:
    return median(figures["ours"]) / shape.critical_path


def _row(shape: UnevenShape, figures: dict[str, list[float]]) -> list[str]:
    theirs = figures.get("peer")
    return [
        shape.name,
        str(len(shape)),
        f"{shape.critical_path * 1e3:.0f}",
        f"{median(figures['ours']) * 1e3:.1f}",
        f"{_ratio(shape, figures):.3f}",
        f"{shape.level_by_level * 1e3:.0f}",
        "–" if theirs is None else f"{median(theirs) * 1e3:.1f}",
    ]
