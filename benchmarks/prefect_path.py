"""What the Prefect path costs per step beside a flow written by hand, on one real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from threading import Event
from typing import Any

from .prefect_server import Server, prefect_server
from .report import Section, Verdict
from .shapes import SHAPES
from .workers import Worker, interleaved, paired_ratio, progress

MAX_RATIO = 1.15
MAX_CHAIN = 0.6
MAX_AGENTS = 1.2
MAX_ARTIFACT_RATIO = 1.1
OURS, OURS_BARE, HAND, HAND_BARE = "fastroai", "fastroai-bare", "handwritten", "handwritten-bare"
LABELS = {
    OURS: "ours",
    OURS_BARE: "ours, artifacts cut out",
    HAND: "hand-written",
    HAND_BARE: "hand-written, no artifacts",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A graph of `steps` steps.

    Attributes:
        limit: Of our time per step by that of the hand-written flow.
        wait: Seconds in each step, as in one that asks a model.
        asks: Each step asks a scripted model.
        busy: Another process runs flows on the server all the time.
        subjects: What is measured: ours, then what it is measured beside.
    """

    name: str
    shape: str
    steps: int
    limit: float = MAX_RATIO
    wait: float = 0.0
    asks: bool = False
    busy: bool = False
    subjects: tuple[str, ...] = tuple(LABELS)

    @property
    def beside(self) -> str:
        return HAND if HAND in self.subjects else HAND_BARE


def cases(quick: bool) -> list[Case]:
    wide, chain, agents = (20, 20, 100) if quick else (40, 40, 1_000)
    two = OURS, HAND
    return [
        Case("wide", "wide", wide),
        Case("chain", "chain", chain, MAX_CHAIN, subjects=two),
        Case("chain beside a busy server", "chain", chain, MAX_CHAIN, busy=True, subjects=two),
        Case("waiting chain", "chain", 10, wait=0.15, subjects=(OURS, OURS_BARE, HAND)),
        Case("agents", "wide", agents, MAX_AGENTS, asks=True, subjects=(OURS, HAND_BARE)),
    ]


@dataclass(frozen=True, slots=True)
class Measured:
    """Of each subject: seconds of each round, and what one run left on the server and in the result
    folder.
    """

    case: Case
    seconds: Mapping[str, list[float]]
    made: Mapping[str, dict[str, int]]

    def ratio(self, ours: str, theirs: str) -> float:
        return paired_ratio(self.seconds[ours], self.seconds[theirs])

    def milliseconds(self, who: str, statistic: Callable[[list[float]], Any] = median) -> float:
        return float(statistic(self.seconds[who])) * 1e3 / self.case.steps


def measure(quick: bool) -> Section:
    rounds = 2
    with prefect_server() as server:
        measured = [_measure_case(case, server, rounds) for case in cases(quick)]
    return Section(
        title="Prefect path: ms per step beside a hand-written flow",
        method=(
            "One Prefect server on loopback with SQLite, results persisted to a local folder; "
            f"median of {rounds} interleaved rounds after a warm-up, and before each figure the "
            "server works off what the last run left in its queues. Steps double a number; "
            "those of the waiting chain wait 150 ms before, as a step does that asks a model, "
            "and the agents' ask a scripted one. The busy server has a process beside that runs "
            "hand-written flows of 20 tasks all the time. The hand-written flow awaits its "
            "tasks in the flow's loop with `wait_for` states, persists results, and awaits one "
            "table artifact in each task and one for the run; beside our agents, with tables, "
            "it writes none. The last columns were counted on the server and in the result "
            "folder during the warm-up: the subjects did the same work, but that ours writes no "
            "table of a step that asked nothing, and of more than 200 steps only the run's. The "
            "agents' flows have a warm-up of 10 steps, and two rounds. Ratios are medians of "
            "the ratios of each round."
        ),
        header=[
            "graph",
            "subject",
            "ms per step",
            "fastest",
            "slowest",
            "task runs",
            "artifacts",
            "results",
        ],
        rows=[_row(one, who) for one in measured for who in one.case.subjects],
        verdicts=[*_verdicts(measured)],
        notes=[_artifact_note(measured)],
    )


def _measure_case(case: Case, server: Server, rounds: int) -> Measured:
    progress(f"prefect: {case.name}")
    with ExitStack() as stack:
        workers = {
            who: stack.enter_context(Worker("prefect_worker.py", who, env=server.env))
            for who in case.subjects
        }
        warm_ups = {who: _warm_up(case, worker, server) for who, worker in workers.items()}
        settle = server.settle
        if case.busy:
            stack.enter_context(_busy(server))
            settle = _no_settling
        seconds = interleaved(
            {who: _runner(worker, settle) for who, worker in workers.items()},
            1 if case.asks else rounds,
        )
    if case.asks:
        seconds = {who: [warm_ups[who].seconds, *took] for who, took in seconds.items()}
    return Measured(case, seconds, {who: warm_up.made for who, warm_up in warm_ups.items()})


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The first run: how long it took, and how much of what it left behind."""

    seconds: float
    made: dict[str, int]


def _warm_up(case: Case, worker: Worker, server: Server) -> WarmUp:
    """Build the flow and run it once."""

    def build(steps: int) -> None:
        dependencies = SHAPES[case.shape](steps).dependencies
        name = case.name.replace(" ", "-")
        worker.ask(op="build", name=name, dependencies=dependencies, wait=case.wait, asks=case.asks)

    if case.asks:  # its first run is measured: what is loaded once is loaded before
        build(10)
        worker.ask(op="run")
    build(case.steps)
    server.settle()
    before = worker.ask(op="counts")
    seconds = float(worker.ask(op="run")["seconds"])
    server.settle()
    after = worker.ask(op="counts")
    return WarmUp(seconds, {what: after[what] - before[what] for what in after})


@contextmanager
def _busy(server: Server) -> Iterator[None]:
    """A process that runs flows on the server, one after the other."""
    ended = Event()
    with Worker("prefect_worker.py", HAND, env=server.env) as worker:
        dependencies = SHAPES["wide"](20).dependencies
        worker.ask(op="build", name="beside", dependencies=dependencies, wait=0, asks=False)

        def run() -> None:
            while not ended.is_set():
                worker.ask(op="run")

        with ThreadPoolExecutor() as pool:
            running = pool.submit(run)
            try:
                yield
            finally:
                ended.set()
                running.result()


def _no_settling() -> None:
    """What is busy all the time has no moment before or after."""


def _runner(worker: Worker, settle: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        settle()
        return float(worker.ask(op="run")["seconds"])

    return run


def _verdicts(measured: list[Measured]) -> list[Verdict]:
    beside = [
        Verdict(
            f"{one.case.name}: per step beside the hand-written flow",
            one.ratio(OURS, one.case.beside),
            one.case.limit,
        )
        for one in measured
    ]
    hidden = [
        Verdict(
            f"{one.case.name}: with artifacts beside without",
            one.ratio(OURS, OURS_BARE),
            MAX_ARTIFACT_RATIO,
        )
        for one in measured
        if one.case.wait
    ]
    return beside + hidden


def _row(one: Measured, who: str) -> list[str]:
    counted = (str(one.made[who][what]) for what in ("task_runs", "artifacts", "results"))
    figures = (f"{one.milliseconds(who, statistic):.1f}" for statistic in (median, min, max))
    return [f"{one.case.name}, {one.case.steps}", LABELS[who], *figures, *counted]


def _artifact_note(measured: list[Measured]) -> str:
    """What the artifacts add to a run, for us and for the hand-written flow."""
    parts = []
    for one in (one for one in measured if set(one.case.subjects) == set(LABELS)):
        ours, hand = (
            one.milliseconds(whole) - one.milliseconds(bare)
            for whole, bare in ((OURS, OURS_BARE), (HAND, HAND_BARE))
        )
        parts.append(
            f"{one.case.name} {ours:.1f} ms per step for us, {hand:.1f} ms in the hand-written flow"
        )
    return (
        f"What the artifacts add to the wall time: {'; '.join(parts)}. Ours are written beside the "
        "steps and awaited at the end of the run: steps that wait for a model hide them, steps "
        "that do nothing can't, because the server needs the same processor time for each."
    )
