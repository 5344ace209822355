"""What counting each model request costs, beside not counting it, and beside one commit."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .report import Section, Verdict
from .workers import Worker, interleaved, paired_ratio, progress

SUBJECTS = {
    "plain": "pydantic-ai's `Agent.run`",
    "metered": "`FastroAgent.run`, booked in memory",
    "committed": "one commit of one row, SQLite's driver alone",
    "booked": "intent and settlement in the SQLite ledger",
    "shared": "the same, of 100 at once",
}
MAX_METERED = 1.10
MAX_BOOKED = 1.6
MAX_SHARED = 1 / 1.5


def measure(quick: bool) -> Section:
    rounds, count = (5, 100) if quick else (15, 300)
    progress("metering")
    with Worker("metering_worker.py") as worker:

        def seconds(subject: str) -> Callable[[], float]:
            return lambda: float(worker.ask(subject=subject, count=count)["seconds"])

        for subject in SUBJECTS:
            seconds(subject)()
        figures = interleaved({subject: seconds(subject) for subject in SUBJECTS}, rounds)
    metered = paired_ratio(figures["metered"], figures["plain"])
    booked = paired_ratio(figures["booked"], figures["committed"])
    shared = paired_ratio(figures["shared"], figures["committed"])
    return Section(
        title="Metering: what counting a request costs",
        method=(
            f"Microseconds per call, each figure the mean over {count} calls one after the other "
            f"where nothing else is said, median of {rounds} interleaved rounds in one process. "
            "Both agents send the same request, with FastroAgent's system prompt and settings, to "
            "the same scripted model, which answers at once. Both databases are new files in WAL "
            "mode that sync each commit. "
            "Ratios are medians of the ratios of each round."
        ),
        header=["what", "median, µs", "fastest, µs", "slowest, µs"],
        rows=[
            [SUBJECTS[name], *(f"{s * 1e6:.0f}" for s in (median(v), min(v), max(v)))]
            for name, v in figures.items()
        ],
        verdicts=[
            Verdict("`FastroAgent.run` beside `Agent.run`", metered, MAX_METERED),
            Verdict("intent and settlement beside one commit", booked, MAX_BOOKED),
            Verdict("the same of 100 at once, each", shared, MAX_SHARED),
        ],
    )
