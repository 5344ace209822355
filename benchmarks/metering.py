"""What counting each model request costs, beside not counting it, and beside one commit."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from statistics import median

from tests.support.postgres import PostgresServer

from .report import Section, Verdict
from .workers import Worker, interleaved, paired_ratio, progress

SUBJECTS = {
    "plain": "pydantic-ai's `Agent.run`",
    "metered": "`FastroAgent.run`, booked in memory",
    "committed": "one commit of one row, SQLite's driver alone",
    "booked": "intent and settlement in the SQLite ledger",
    "shared": "the same, of 100 at once",
    "pg-committed": "one commit of one row, PostgreSQL's driver alone",
    "pg-booked": "intent and settlement in the PostgreSQL ledger",
    "pg-shared": "the same, of 100 at once",
}
GROUPS = (
    ("plain", "metered"),
    ("committed", "booked", "shared"),
    ("pg-committed", "pg-booked", "pg-shared"),
)
"""Those that are compared, in a process of their own: what writers leave in one would weigh on
agents there.
"""
MAX_METERED = 1.10
MAX_BOOKED = 1.6
"""So it is done at 0.6 of the rate at which the database commits."""
MAX_SHARED = 1 / 1.5
WHY_METERED = (
    "by timing the parts in place, where a run takes 1,950 µs: pricing the answer and making its "
    "outcome 106, the response with its sums 47, settings and books of the run 29, the intent 28, "
    "recording the outcome 19; pydantic-ai then looks up no price itself, which takes it 133. The "
    "same pricing takes 14 µs where it runs over and over: most of it is code and data that are "
    "not in the processor's cache. Tried, and kept: no cycle of references between a run's books "
    "and its model, usage is read once, prices are found by sheets of rates."
)
WHY_POSTGRESQL = (
    "by timing its parts, where a bare commit took 0.31 ms and this 0.67 to 0.89: the statement "
    "that writes an intent together with the settlement before it takes 0.34 by the driver alone, "
    "a loop for each transaction and SQLAlchemy's greenlet 0.1 more (0.18 of the whole is "
    "processor time), waking the writing thread and waking the caller again 0.1, the entry, its "
    "rows and turns at the interpreter's lock the rest. Tried, and kept: one statement without a "
    "transaction around it instead of BEGIN, two inserts and COMMIT, which took 1.37 ms. The "
    "thread stays: a slow database must not hold up the loop."
)


def measure(quick: bool) -> Section:
    rounds, count = (5, 100) if quick else (11, 300)
    progress("metering")
    with closing(PostgresServer(fsync=True)) as server:
        figures = _measure(server.new_database(), rounds, count)

    def beside(ours: str, theirs: str) -> float:
        return paired_ratio(figures[ours], figures[theirs])

    return Section(
        title="Metering: what counting a request costs",
        method=(
            f"Microseconds per call, each figure the mean over {count} calls one after the other "
            f"where nothing else is said, median of {rounds} interleaved rounds, a process each "
            "for agents, SQLite and PostgreSQL. Both agents send the same request, with "
            "FastroAgent's system prompt and settings, to the same scripted model, which answers "
            "at once. Each commit is synced; SQLite's files are new and in WAL mode. One commit "
            "writes the row that an intent is. "
            "Ratios are medians of the ratios of each round."
        ),
        header=["what", "median, µs", "fastest, µs", "slowest, µs"],
        rows=[
            [SUBJECTS[name], *(f"{s * 1e6:.0f}" for s in (median(v), min(v), max(v)))]
            for name, v in figures.items()
        ],
        verdicts=[
            Verdict(
                "`FastroAgent.run` beside `Agent.run`",
                beside("metered", "plain"),
                MAX_METERED,
                WHY_METERED,
            ),
            Verdict(
                "SQLite: intent and settlement beside one commit",
                beside("booked", "committed"),
                MAX_BOOKED,
            ),
            Verdict(
                "SQLite: the same of 100 at once, each", beside("shared", "committed"), MAX_SHARED
            ),
            Verdict(
                "PostgreSQL: intent and settlement beside one commit",
                beside("pg-booked", "pg-committed"),
                MAX_BOOKED,
                WHY_POSTGRESQL,
            ),
            Verdict(
                "PostgreSQL: the same of 100 at once, each",
                beside("pg-shared", "pg-committed"),
                MAX_SHARED,
            ),
        ],
    )


def _measure(database: str, rounds: int, count: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}
    for subjects in GROUPS:
        with Worker("metering_worker.py", database) as worker:

            def seconds(subject: str, worker: Worker = worker) -> float:
                return float(worker.ask(subject=subject, count=count)["seconds"])

            for subject in subjects:
                seconds(subject)
            measures = {subject: partial(seconds, subject) for subject in subjects}
            figures |= interleaved(measures, rounds)
    return figures
