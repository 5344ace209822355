"""A made-up map under Prefect in a process of its own, which is killed after so many answers.

`python -m tests.conformance.killed_map FOLDER`: the folder has what to run, and gets what came of
it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from fastroai.usage import EntryState, LedgerEntry
from tests.conformance.test_random_maps import Asking, Job, run, told
from tests.support import forked

PATIENCE = 60.0


@dataclass(frozen=True)
class Kill:
    """When a process is killed: after so many answers, and some seconds more."""

    answers: int
    seconds: float


@dataclass(frozen=True)
class Order:
    """What a process is to do; without a kill, to its end."""

    job: Job
    run_key: str
    kill: Kill | None


@dataclass(frozen=True)
class Outcome:
    """What became of a run in its last process.

    Attributes:
        told: What its steps gave, where it completed.
        error: The class of what it failed with.
        accounted: By step, how many answers it paid for or used again.
    """

    told: dict[str, Any]
    error: type[BaseException] | None
    accounted: Counter[str | None]


@dataclass
class KilledAsking(Asking):
    """Notes each question where the next process finds it."""

    kill: Kill | None
    notes: Path

    def answer(self, prompt: str) -> str:
        with self.notes.open("a") as notes:
            notes.write(f"{prompt}\n")
        answer = super().answer(prompt)
        if self.kill is not None and self.answered.total() == self.kill.answers:
            Timer(self.kill.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return answer


def accounted(entries: Iterable[LedgerEntry]) -> Counter[str | None]:
    """By step, the answers that a run paid for or used again, each of them once."""
    of_answers = (EntryState.CHARGED, EntryState.REPLAYED)
    places = {e.replay_of or e.id: e.attribution.step_id for e in entries if e.state in of_answers}
    return Counter(places.values())


def killed_and_resumed(
    job: Job, run_key: str, kills: Iterable[Kill], folder: Path
) -> tuple[Outcome, Counter[str], int]:
    """Run a map in one process after the other, until it has ended.

    Returns:
        What came of it, how often each question was answered, and how many processes were killed.
    """
    command = [sys.executable, "-m", "tests.conformance.killed_map", str(folder)]
    killed = 0
    for kill in [*kills, None]:
        (folder / "order").write_bytes(pickle.dumps(Order(job, run_key, kill)))
        ended = forked.run(command, cwd=forked.REPOSITORY, timeout=PATIENCE).returncode
        if ended == 0:
            break
        assert (ended, kill is None) == (-signal.SIGKILL, False)
        killed += 1
    notes = folder / "notes"
    asked = Counter(notes.read_text().splitlines() if notes.exists() else [])
    return pickle.loads((folder / "outcome").read_bytes()), asked, killed


async def _main(folder: Path) -> None:
    order: Order = pickle.loads((folder / "order").read_bytes())
    asking = KilledAsking(order.job, kill=order.kill, notes=folder / "notes")
    result, error = await run(asking.pipeline("prefect"), order.job, order.run_key)
    given = told(result) if error is None else {}
    outcome = Outcome(given, error and type(error), accounted(result.entries))
    (folder / "outcome").write_bytes(pickle.dumps(outcome))


if __name__ == "__main__":
    from tests.conformance.killed_map import _main as main  # so that what it pickles has a home

    asyncio.run(main(Path(sys.argv[1])))
