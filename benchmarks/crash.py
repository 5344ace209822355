"""How soon a killed run sends its next request, beside running it from the start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from .prefect_server import Server
from .report import Section
from .workers import HERE, ROOT, environment, paired_ratio, progress

LEASE_SECONDS = 1
DEFAULT_LEASE_SECONDS = 30
SILENCE = LEASE_SECONDS + 0.2
"""Seconds after which the killed process counts as dead, so that the next one does not wait for it.
"""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from the start of a process.

    Attributes:
        first: To its first request, from the start of the run.
        reached: To the request during which it is killed, of the same process.
        resumed: To the first request of the process that goes on.
    """

    first: float
    reached: float
    resumed: float


def measure(server: Server, quick: bool) -> Section:
    steps, killed_at, rounds = (40, 36, 1) if quick else (200, 180, 1)
    progress("resume: after a crash")
    measured = [_round(server, steps, killed_at, f"round-{number}") for number in range(rounds)]
    reached, resumed = [one.reached for one in measured], [one.resumed for one in measured]
    rows = {
        f"from the start, to request {killed_at}": reached,
        f"resumed, to its first new request ({killed_at})": resumed,
        "from the start, to request 1": [one.first for one in measured],
    }
    return Section(
        title=f"After a crash at step {killed_at} of {steps}: seconds to the first new request",
        method=(
            f"A chain of {steps} steps under Prefect with results in a local folder, one request "
            "of 20 ms in each, in processes of their own: seconds from the start of the process, "
            "imports included, until a request reaches the model. The first process is killed "
            f"with SIGKILL while its request {killed_at} is under way; the "
            "second executes the same run key, and sends nothing before that request again. It is "
            "started when the killed one counts as dead (FASTROAI_LEASE_SECONDS after its last "
            f"sign of life; started earlier it waits for that, {DEFAULT_LEASE_SECONDS} s at most "
            f"unless set). Median of {rounds} rounds."
        ),
        header=["what", "median, s", "fastest, s", "slowest, s"],
        rows=[
            [label, *(f"{statistic(seconds):.2f}" for statistic in (median, min, max))]
            for label, seconds in rows.items()
        ],
        notes=[_note(measured, killed_at)],
    )


def _note(measured: list[Round], killed_at: int) -> str:
    ratio = paired_ratio([one.resumed for one in measured], [one.reached for one in measured])
    replayed = median(one.resumed - one.first for one in measured)
    done = median(one.reached - one.first for one in measured)
    return (
        f"Resumed beside from the start, the median of the ratios of each round: {ratio:.2f}. "
        f"Without what any process needs until its first request, the {killed_at - 1} finished "
        f"steps took {done:.2f} s when they ran and {replayed:.2f} s when they were replayed; from "
        "the start their requests are paid for a second time as well."
    )


def _round(server: Server, steps: int, killed_at: int, run_key: str) -> Round:
    first = reached = 0.0
    with _process(server, steps, run_key) as requests:
        for number, seconds in requests:
            first = first or seconds
            reached = seconds
            if number == killed_at:
                break
    time.sleep(SILENCE)
    with _process(server, steps, run_key) as requests:
        number, resumed = next(requests)
    # It may have been answered and recorded in the moment before the kill.
    if number not in (killed_at, killed_at + 1):
        raise RuntimeError(
            f"a run that was killed at request {killed_at} went on with request {number}"
        )
    time.sleep(SILENCE)
    return Round(first, reached, resumed)


@contextmanager
def _process(server: Server, steps: int, run_key: str) -> Iterator[Iterator[tuple[int, float]]]:
    """The requests of a process, with the seconds since its start; it is killed when the block
    ends.
    """
    server.settle()
    command = [sys.executable, "-P", str(HERE / "crash_run.py"), str(steps), run_key]
    env = environment(ROOT, {**server.env, "FASTROAI_LEASE_SECONDS": str(LEASE_SECONDS)})
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield _requests(process.stdout, started)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _requests(lines: Iterator[str], started: float) -> Iterator[tuple[int, float]]:
    for line in lines:
        yield int(line), time.monotonic() - started
    raise RuntimeError("a run ended before its request was reached; its message is above")
