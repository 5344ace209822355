"""What a budget costs each request, and what it costs to wait for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.support.postgres import PostgresServer

from .report import Section, Verdict
from .workers import Worker, interleaved, paired_ratio, progress

WHY = {
    "PostgreSQL": (
        "a request with budgets asks the server once, as one without does, by a statement that "
        "also counts it in its account: more of it is planned, and two tables more are written. "
        "Tried, and kept: all that changes in that statement, past SQLAlchemy; without it four "
        "ways to the server, BEGIN, the account's lock, what changes, COMMIT, and 2.1 to 2.4 times "
        "as long."
    )
}
MAX_LIMITED = 1.5
MAX_WAITING = 0.02
WAITING = 1000


def measure(quick: bool) -> Section:
    rows: list[list[str]] = []
    verdicts: list[Verdict] = []
    with TemporaryDirectory() as folder:
        urls = [f"sqlite:///{Path(folder) / name}.db" for name in ("without", "limited")]
        _measure("SQLite", urls, quick, rows, verdicts)
    server = PostgresServer(fsync=True)
    try:
        urls = [server.new_database() for _ in range(2)]
        _measure("PostgreSQL", urls, quick, rows, verdicts)
    finally:
        server.close()
    return Section(
        title="Budgets: what checking and reserving adds to a request's booking",
        method=(
            "Microseconds from intent to written settlement, per request, one after the other and "
            "50 at once; medians of interleaved rounds, in two ledgers of one kind. Each commit is "
            f"synced. While {WAITING} requests wait, the processor's share of the whole process."
        ),
        header=["what", "without a budget", "reserved", "ratio"],
        rows=rows,
        verdicts=verdicts,
    )


def _measure(
    kind: str, urls: list[str], quick: bool, rows: list[list[str]], verdicts: list[Verdict]
) -> None:
    rounds, count, seconds = (5, 100, 3.0) if quick else (11, 300, 6.0)
    with Worker("budgets_worker.py", *urls) as worker:
        for at_once, how in ((1, "one by one"), (50, "50 at once")):
            progress(f"budgets: {kind}, {how}")

            def asked(subject: str, at_once: int = at_once) -> Callable[[], float]:
                command = {"subject": subject, "count": count, "at_once": at_once}
                return lambda: float(worker.ask(**command)["figure"])

            subjects = ("without", "limited")
            figures = interleaved({subject: asked(subject) for subject in subjects}, rounds)
            ratio = paired_ratio(figures["limited"], figures["without"])
            medians = (f"{median(figures[subject]) * 1e6:.0f}" for subject in subjects)
            rows.append([f"{kind}, {how}", *medians, f"{ratio:.2f}"])
            verdicts.append(Verdict(f"{kind}, {how}", ratio, MAX_LIMITED, WHY.get(kind, "")))
        progress(f"budgets: {kind}, {WAITING} wait")
        share = float(worker.ask(subject="waiting", count=WAITING, seconds=seconds)["figure"])
    verdicts.append(Verdict(f"{kind}, {WAITING} requests wait: share", share, MAX_WAITING))
