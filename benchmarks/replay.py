"""What executing a finished run again costs, beside a hand-written flow whose tasks are all
cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from .prefect_path import HAND, HAND_BARE, LABELS, OURS, OURS_BARE
from .prefect_server import Server
from .report import Section, Verdict
from .shapes import ladder
from .workers import Worker, interleaved, paired_ratio, progress

MAX_RATIO = 1.2


@dataclass(frozen=True, slots=True)
class Measured:
    """Of each subject: seconds of each replay, and what one replay added on the server and in the
    result folder.
    """

    steps: int
    seconds: Mapping[str, list[float]]
    made: Mapping[str, dict[str, int]]

    def ratio(self, ours: str, theirs: str) -> float:
        return paired_ratio(self.seconds[ours], self.seconds[theirs])

    def milliseconds(self, who: str, statistic: Callable[[list[float]], Any] = median) -> float:
        return float(statistic(self.seconds[who])) * 1e3 / self.steps


def measure(server: Server, quick: bool) -> Section:
    steps, rounds = (40, 2) if quick else (100, 2)
    progress("resume: replay")
    with ExitStack() as stack:
        workers = {
            who: stack.enter_context(Worker("replay_worker.py", who, env=server.env))
            for who in LABELS
        }
        made = {who: _finish(worker, server, steps) for who, worker in workers.items()}
        seconds = interleaved(
            {who: _replayer(worker, server) for who, worker in workers.items()}, rounds
        )
    measured = Measured(steps, seconds, made)
    return Section(
        title=f"Replay: a finished run of {steps} steps, executed again, ms per step",
        method=(
            "One Prefect server on loopback with SQLite, results in a local folder. Two rails of "
            "steps, each waiting for both steps of the rung before; each asked a scripted model "
            "once when it ran, and gave a small pydantic model. Ours is executed again under its "
            "run key: it checks each record's seal, its type and the input it was made of, books "
            "its request as replayed, and holds the run's lease. The hand-written flow awaits the "
            "same tasks in its loop with `wait_for` states and a cache key of its own, and reads "
            "each result. The threshold is for both pairs that do the same work: neither side with "
            "artifacts, which compares the replay alone, and both sides with one table artifact "
            "per step and one for the run, which the hand-written flow awaits beside each task "
            f"because a cached task's code does not run. Median of {rounds} interleaved rounds "
            "after a first execution and a warm-up; the server works off its queues before each "
            "figure. The last columns were counted during the warm-up: nothing was sent to a model "
            "and no result was written. Ratios are medians of the ratios of each round."
        ),
        header=[
            "subject",
            "ms per step",
            "fastest",
            "slowest",
            "task runs",
            "artifacts",
            "results",
            "requests",
        ],
        rows=[_row(measured, who) for who in LABELS],
        verdicts=[
            Verdict(
                "replay beside cached tasks, no artifacts",
                measured.ratio(OURS_BARE, HAND_BARE),
                MAX_RATIO,
            ),
            Verdict(
                "replay beside cached tasks, artifacts on both sides",
                measured.ratio(OURS, HAND),
                MAX_RATIO,
            ),
        ],
        notes=[
            "Not the same work, and without a threshold: our replay, which shows for each step "
            "what it saved, beside cached tasks that show nothing takes "
            f"{measured.ratio(OURS, HAND_BARE):.2f} times as long."
        ],
    )


def _finish(worker: Worker, server: Server, steps: int) -> dict[str, int]:
    """Execute the run, and replay it once. Returns how much of what the replay added."""
    worker.ask(op="build", name="replay", dependencies=ladder(steps).dependencies)
    server.settle()
    sent = worker.ask(op="run")["requests"]
    if sent != steps:
        raise RuntimeError(f"{sent} requests were sent by {steps} steps")
    server.settle()
    before = worker.ask(op="counts")
    requests = worker.ask(op="run")["requests"]
    server.settle()
    after = worker.ask(op="counts")
    return {what: after[what] - before[what] for what in after} | {"requests": requests}


def _replayer(worker: Worker, server: Server) -> Callable[[], float]:
    def replay() -> float:
        server.settle()
        answer = worker.ask(op="run")
        if answer["requests"]:
            raise RuntimeError(
                f"{answer['requests']} requests were sent by a run that was finished"
            )
        return float(answer["seconds"])

    return replay


def _row(measured: Measured, who: str) -> list[str]:
    figures = (f"{measured.milliseconds(who, statistic):.1f}" for statistic in (median, min, max))
    counted = (
        str(measured.made[who][what]) for what in ("task_runs", "artifacts", "results", "requests")
    )
    return [LABELS[who], *figures, *counted]
