"""What a process keeps of the runs that it has executed under Prefect."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from statistics import median

from tests.support.postgres import PostgresServer

from .prefect_path import HAND, LABELS, OURS
from .prefect_server import Server, prefect_server
from .report import Section, Verdict
from .shapes import chain
from .workers import Worker, paired_ratio, progress

STEPS, WARM_UP = 3, 10
SUBJECTS = (OURS, HAND)
MAX_RATIO = 1.2
WHY = (
    "little of it stays alive: by tracemalloc, over 30 runs after 100, 117 kB of ours and 141 kB "
    "of the hand-written flow, in both Prefect's settings, its models and parsed URLs; and of the "
    "second and third 30 runs each keeps 0.1 to 0.8 MB. The rest is what the allocator took for "
    "the first runs and fills again, another amount in each process: 3.9 to 4.7 MB of ours, 3.2 to "
    "5.7 of the other in nine processes each."
)


def measure(quick: bool) -> Section:
    runs, rounds = (20, 1) if quick else (60, 2)
    progress("growth")
    with closing(PostgresServer()) as postgres, ThreadPoolExecutor() as pool:
        measured = partial(_megabytes, postgres, runs=runs, rounds=rounds)
        figures = dict(zip(SUBJECTS, pool.map(measured, SUBJECTS), strict=True))  # nothing is timed
    return Section(
        title=f"Memory that {runs} runs under Prefect leave behind",
        method=(
            f"MB that a process has more after {runs} runs, one after the other, of a chain of "
            f"{STEPS} steps that each ask a scripted model and write a table; results in a local "
            f"folder. {WARM_UP} runs before, which load what is loaded once. Each flow has a "
            f"Prefect server with PostgreSQL of its own. Median of {rounds} rounds, each in a "
            "process of its own; the ratio is the median of the ratios of each round."
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
                WHY,
            )
        ],
    )


def _megabytes(postgres: PostgresServer, who: str, *, runs: int, rounds: int) -> list[float]:
    # Not on SQLite, on which a server stands still now and then, for up to a minute: its threads
    # sleep until a lock is free, and its loop waits for one of them.
    with prefect_server(postgres.new_database()) as server:
        return [_grown(server, who, runs) for _ in range(rounds)]


def _grown(server: Server, who: str, runs: int) -> float:
    with Worker("prefect_worker.py", who, env=server.env) as worker:
        worker.ask(
            op="build", name="growth", dependencies=chain(STEPS).dependencies, wait=0, asks=True
        )
        worker.ask(op="grow", runs=WARM_UP)
        return float(worker.ask(op="grow", runs=runs)["bytes"]) / 2**20
