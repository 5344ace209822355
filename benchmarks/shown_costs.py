"""What it takes to show costs at a glance: log lines, state messages, standing artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

from .prefect_server import prefect_server
from .report import Section, Verdict
from .workers import Worker, interleaved, paired_ratio, progress

MAX_RATIO = 1.02
WHY = (
    "the ratios of single rounds differ by 4 % either way, as the machine's speed does within "
    "seconds; over 7 rounds it was 1.008. By cProfile, the messages of 200 states take 24 ms and "
    "the standing artifacts 8, in a process that takes 2.8 s without it; and the server, which "
    "takes 7 s, is sent two artifacts, one line of the log and one read more. Tried, and kept: "
    "each message is made once, and nothing is summed up for it where all is priced."
)
SHOWN, SILENT = "shown", "silent"
LABELS = {SHOWN: "as it is", SILENT: "without what shows costs"}
# As a user has them; other parts measure without logs.
LOGS = {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_TO_API_ENABLED": "true"}


def measure(quick: bool) -> Section:
    steps, rounds = (40, 3) if quick else (200, 4)
    seconds: dict[str, list[float]] = {way: [] for way in LABELS}
    with prefect_server() as server:
        progress("costs: shown and not")
        with Worker("shown_worker.py", env=server.env | LOGS) as worker:

            def run(way: str) -> float:
                server.settle()
                before = server.cpu_seconds()
                told = worker.ask(steps=steps, way=way)
                server.settle()
                seconds[way].append(told["seconds"])
                return float(told["processor"]) + server.cpu_seconds() - before

            for way in LABELS:
                run(way)
                seconds[way].clear()
            processor = interleaved({way: partial(run, way) for way in LABELS}, rounds)
    return Section(
        title="Costs at a glance: two runs with and without",
        method=(
            f"A chain of {steps} steps that each ask a scripted model once, booked in a SQLite "
            "ledger, logs sent to one Prefect server on loopback; as it is, and with the log lines "
            "about costs, the messages of the final states and the standing artifacts cut out. "
            "Processor seconds of the run's process and of the server together, until the server "
            f"has worked off its queues; median of {rounds} interleaved rounds after a warm-up. "
            "The threshold is the median of the ratios of each round."
        ),
        header=["run", "processor s", "least", "most", "wall s"],
        rows=[_row(way, processor[way], seconds[way]) for way in LABELS],
        verdicts=[
            Verdict(
                "processor time with costs at a glance beside without",
                paired_ratio(processor[SHOWN], processor[SILENT]),
                MAX_RATIO,
                WHY,
            )
        ],
    )


def _row(way: str, processor: Sequence[float], seconds: Sequence[float]) -> list[str]:
    figures = median(processor), min(processor), max(processor), median(seconds)
    return [LABELS[way], *(f"{figure:.2f}" for figure in figures)]
