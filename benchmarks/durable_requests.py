"""What it costs to record each answered request, so that a step that died half-way does not ask
again.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .prefect_server import Server
from .report import Section
from .workers import Worker, interleaved, progress

SUBJECTS = {
    "step": '`durable="step"`: only the result of the step is recorded',
    "request": '`durable="request"`: each answer is recorded',
    "replay": "a recorded answer, taken by another execution of the run",
}


def measure(server: Server, quick: bool) -> Section:
    rounds, requests = (3, 50) if quick else (5, 100)
    progress("resume: durable requests")
    # The steps that fail on purpose would be reported at length.
    with Worker(
        "durable_worker.py", env=server.env | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
    ) as worker:

        def seconds(subject: str) -> Callable[[], float]:
            def run() -> float:
                server.settle()
                return float(worker.ask(subject=subject, requests=requests)["seconds"])

            return run

        for subject in SUBJECTS:
            seconds(subject)()
        figures = interleaved({subject: seconds(subject) for subject in SUBJECTS}, rounds)
    own = [
        recorded - plain
        for recorded, plain in zip(figures["request"], figures["step"], strict=True)
    ]
    return Section(
        title="Durable requests: ms per request",
        method=(
            f"One step that asks a scripted model {requests} times, one after the other, under "
            "Prefect with results in a local folder; the model answers at once, so that all time "
            "is ours and pydantic-ai's. Each request is booked in a SQLite ledger before it is "
            "sent and when it is answered, also without durable requests. The time is taken within "
            "the step. For the replay the step failed after the last answer, and its run was "
            f"executed again. Median of {rounds} interleaved rounds in one process."
        ),
        header=["what", "median, ms", "fastest, ms", "slowest, ms"],
        rows=[
            [
                label,
                *(f"{statistic(figures[subject]) * 1e3:.2f}" for statistic in (median, min, max)),
            ]
            for subject, label in SUBJECTS.items()
        ],
        notes=[
            f"A durable request's own cost: {median(own) * 1e3:.2f} ms, the median of the "
            f"differences of each round ({min(own) * 1e3:.2f} to {max(own) * 1e3:.2f})."
        ],
    )
