"""What a process keeps of the runs that it has executed under Prefect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

from .prefect_path import HAND, LABELS, OURS
from .prefect_server import Server, prefect_server
from .report import Section, Verdict
from .shapes import chain
from .workers import Worker, paired_ratio, progress

STEPS, WARM_UP = 3, 10
MAX_RATIO = 1.2


def measure(quick: bool) -> Section:
    runs, rounds = (20, 1) if quick else (60, 2)
    progress("growth")
    with prefect_server() as server:
        both = (OURS, HAND)
        grow = partial(_megabytes, server, runs)
        with ThreadPoolExecutor() as pool:  # nothing is timed
            grown = [list(pool.map(grow, both)) for _ in range(rounds)]
    figures = {who: [one[number] for one in grown] for number, who in enumerate(both)}
    return Section(
        title=f"Memory that {runs} runs under Prefect leave behind",
        method=(
            f"MB that a process has more after {runs} runs, one after the other, of a chain of "
            f"{STEPS} steps that each ask a scripted model and write a table; results in a local "
            f"folder. {WARM_UP} runs before, which load what is loaded once. Median of {rounds} "
            "rounds, both flows side by side, each in a process of its own; the ratio is the "
            "median of the ratios of each round."
        ),
        header=["flow", "median, MB", "least", "most"],
        rows=[
            [LABELS[who], *(f"{statistic(values):.1f}" for statistic in (median, min, max))]
            for who, values in figures.items()
        ],
        verdicts=[
            Verdict(
                "beside the hand-written flow",
                paired_ratio(figures[OURS], figures[HAND]),
                MAX_RATIO,
            )
        ],
    )


def _megabytes(server: Server, runs: int, who: str) -> float:
    with Worker("prefect_worker.py", who, env=server.env) as worker:
        worker.ask(
            op="build", name="growth", dependencies=chain(STEPS).dependencies, wait=0, asks=True
        )
        worker.ask(op="grow", runs=WARM_UP)
        return float(worker.ask(op="grow", runs=runs)["bytes"]) / 2**20
