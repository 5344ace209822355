"""What a mapped step costs per item, beside flows, steps and agents written by hand."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from .prefect_server import Server, free_port, prefect_server
from .report import Section, Verdict
from .workers import ROOT, Worker, environment, interleaved, paired_ratio, progress

MAX_HANDWRITTEN_RATIO = 0.2
MAX_GROWTH = 1.2
MAX_MICROSECONDS = 100
MAX_BESIDE = 1.0
MAX_MEMORY_RATIO = 1.2
MAX_MEGABYTES = 300
ANSWER_SECONDS = 0.3


Figures = dict[tuple[str, int], list[float]]
"""By what was measured and how many items, seconds per item in each round."""

WAYS = {
    "mapped": ("mapped", "answer", "prefect"),
    "hand": ("handwritten", "answer", "prefect"),
    "agents": ("agents", "answer", "memory"),
    "memory": ("mapped", "nothing", "memory"),
}
LABELS = {
    "mapped": "mapped step, Prefect and S3",
    "hand": "`task.map`, Prefect and S3",
    "agents": "`Agent.run` alone",
    "memory": "mapped step, memory",
}
AT_ONCE = {
    "mapped step under Prefect": ("mapped", "ask", "prefect"),
    "mapped step in memory": ("mapped", "ask", "memory"),
    "plain steps in memory": ("steps", "ask", "memory"),
    "pydantic-ai's Agent.run": ("agents", "ask", "memory"),
}
WHY_IN_MEMORY = (
    "by `gc.callbacks`, where both took 4.8 to 5.1 s: a map makes 1.22 million objects before the "
    "first are let go, plain steps 1.18 million, and at 1.21 million Python looks through all of "
    "them for garbage, which takes 0.15 to 0.17 s; plain steps have that look some steps later. "
    "The map's own functions take 0.01 s, by cProfile. Tried: no higher threshold for that look, "
    "as the garbage that runs of agents leave would stay as much longer."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many items there are of each measurement.

    Attributes:
        rounds: How often those are taken that are compared; what has most items is taken once.
        hand: Of the hand-written flow; two thousand make its server unstable.
        few, many: Between which growth is measured.
        waiting: Under way at once.
        large: Of 100 kB.
    """

    rounds: int
    hand: tuple[int, int]
    few: int
    many: int
    waiting: int
    large: int


WHOLE = Sizes(rounds=2, hand=(150, 300), few=100, many=10_000, waiting=1_000, large=10_000)
QUICK = Sizes(rounds=1, hand=(50, 150), few=50, many=1_000, waiting=300, large=1_500)


def measure(quick: bool) -> list[Section]:
    """Measure all of it."""
    sizes = QUICK if quick else WHOLE
    with (
        prefect_server() as server,
        s3_service() as s3,
        slow_provider() as port,
        tempfile.TemporaryDirectory() as folder,
    ):
        provider = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "unused"}
        env = server.env | s3 | provider
        local = {**env, "FASTROAI_RESULT_STORAGE": folder}
        return [
            _per_item(_engine(server, env, sizes), sizes),
            _at_once(server, local, sizes),
            _large(local, sizes),
        ]


def _engine(server: Server, env: Mapping[str, str], sizes: Sizes) -> Figures:
    """The engine's own time."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("mapped_worker.py", *arguments, env=env))
            for name, arguments in WAYS.items()
        }

        def seconds(name: str, items: int) -> float:
            server.settle()
            return float(workers[name].ask(items=items)["seconds"]) / items

        def measured(rounds: int, *subjects: tuple[str, int]) -> Figures:
            progress(f"mapped: per item, {', '.join(f'{name} {n:,}' for name, n in subjects)}")
            return interleaved({each: partial(seconds, *each) for each in subjects}, rounds)

        for name in workers:
            seconds(name, 10)
        few, more = sizes.hand
        often = (("hand", few), ("mapped", few), ("agents", few))
        return (
            measured(sizes.rounds, *often, ("mapped", sizes.few), ("memory", sizes.many))
            | measured(1, ("hand", more), ("mapped", more), ("agents", more))
            | measured(1, ("mapped", sizes.many))
        )


def _per_item(figures: Figures, sizes: Sizes) -> Section:
    beside = {items: _beside_by_hand(figures, items) for items in sizes.hand}
    growth = figures["mapped", sizes.many][0] / median(figures["mapped", sizes.few])
    in_memory = median(figures["memory", sizes.many]) * 1e6
    spread = ", ".join(f"{ratio:.3f}" for ratio in beside[sizes.hand[0]])
    return Section(
        title="Mapped steps: ms per item",
        method=(
            "Whole runs, divided by their items, each of which asks a scripted model that answers "
            "at once; results and answers go to moto's S3 over HTTP, and ours are booked in a "
            "SQLite ledger. The hand-written flow maps a task that keeps its result over the same "
            "items. What `Agent.run` takes alone is no time of the engine's, and taken off before "
            "both are compared. In memory an item does nothing. Median of "
            f"{sizes.rounds} interleaved rounds; the largest of each are measured once."
        ),
        header=["what, items", "median, ms", "fastest, ms", "slowest, ms"],
        rows=[
            [f"{LABELS[name]}, {items:,}", *_milliseconds(values)]
            for (name, items), values in figures.items()
        ],
        verdicts=[
            *(
                Verdict(
                    f"per item beside `task.map`, {items:,}", median(ratios), MAX_HANDWRITTEN_RATIO
                )
                for items, ratios in beside.items()
            ),
            Verdict(f"growth from {sizes.few:,} to {sizes.many:,}", growth, MAX_GROWTH),
            Verdict("µs per item in memory", in_memory, MAX_MICROSECONDS),
        ],
        notes=[f"Beside `task.map` of {sizes.hand[0]:,} items, in each round: {spread}."],
    )


def _beside_by_hand(figures: Figures, items: int) -> list[float]:
    """Our own time by that of the hand-written flow, in each round."""
    ways = (figures[name, items] for name in ("mapped", "hand", "agents"))
    return [(ours - agent) / (theirs - agent) for ours, theirs, agent in zip(*ways, strict=True)]


def _milliseconds(values: list[float]) -> list[str]:
    return [f"{statistic(values) * 1e3:.3f}" for statistic in (median, min, max)]


def _at_once(server: Server, env: Mapping[str, str], sizes: Sizes) -> Section:
    """A thousand items that wait for a provider."""
    progress("mapped: items at once")
    seconds: dict[str, list[float]] = {name: [] for name in AT_ONCE}
    kilobytes: dict[str, list[float]] = {name: [] for name in AT_ONCE}
    for _ in range(sizes.rounds):
        for name, arguments in AT_ONCE.items():
            server.settle()
            with Worker("mapped_worker.py", *arguments, env=env) as worker:
                worker.ask(items=20)
                figures = worker.ask(items=sizes.waiting)
            seconds[name].append(figures["seconds"])
            kilobytes[name].append(figures["bytes"] / sizes.waiting / 1024)
    ours, in_memory, steps, theirs = AT_ONCE
    memory = paired_ratio(kilobytes[ours], kilobytes[theirs])
    return Section(
        title=f"Mapped steps: {sizes.waiting:,} items at once",
        method=(
            f"Each asks a provider on loopback, through OpenAI's client, that answers after "
            f"{ANSWER_SECONDS:g} s. Each request of ours is booked in a SQLite ledger, and under "
            "Prefect its answer is recorded in a folder. Under Prefect plain steps take many times "
            "as long, a task run each, and are not shown. Memory is the most that the process had "
            f"beyond what it had before, divided by the items. Median of {sizes.rounds} rounds, "
            "each in a process of its own."
        ),
        header=["what", "seconds", "fastest", "slowest", "kB per item", "least", "most"],
        rows=[
            [
                name,
                *(f"{statistic(seconds[name]):.2f}" for statistic in (median, min, max)),
                *(f"{statistic(kilobytes[name]):.0f}" for statistic in (median, min, max)),
            ]
            for name in AT_ONCE
        ],
        verdicts=[
            *(
                Verdict(
                    f"{one}: time beside {other}",
                    paired_ratio(seconds[one], seconds[other]),
                    MAX_BESIDE,
                    why,
                )
                for one, other, why in ((in_memory, steps, WHY_IN_MEMORY), (ours, theirs, ""))
            ),
            Verdict(f"{ours}: memory beside {theirs}", memory, MAX_MEMORY_RATIO),
        ],
    )


def _large(env: Mapping[str, str], sizes: Sizes) -> Section:
    """Items of 100 kB, streamed."""
    progress("mapped: large items")

    def megabytes(executor: str) -> float:
        with Worker("mapped_worker.py", "mapped", "carry", executor, env=env) as worker:
            worker.ask(items=10)
            return float(worker.ask(items=sizes.large)["bytes"]) / 1e6

    executors = ("memory", "prefect")
    with ThreadPoolExecutor() as pool:  # nothing is timed
        most = dict(zip(executors, pool.map(megabytes, executors), strict=True))
    return Section(
        title=f"Mapped steps: peak memory of {sizes.large:,} items of 100 kB",
        method=(
            "They come from an asynchronous iterator, and each gives its 100 kB back as output, "
            "which under Prefect is kept in a folder. The most memory that the process had beyond "
            "what it had before."
        ),
        header=["executor", "MB"],
        rows=[[executor, f"{value:.0f}"] for executor, value in most.items()],
        verdicts=[
            Verdict(f"MB, {executor}", value, MAX_MEGABYTES) for executor, value in most.items()
        ],
    )


@contextmanager
def s3_service() -> Iterator[dict[str, str]]:
    """moto's server in a process of its own, with a bucket; the variables that have results kept
    there.
    """
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    variables = {
        "FASTROAI_RESULT_STORAGE": "s3://results",
        "FASTROAI_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "FASTROAI_S3_REGION": "us-east-1",
        "FASTROAI_S3_ACCESS_KEY_ID": "loopback-key-id",
        "FASTROAI_S3_SECRET_ACCESS_KEY": "loopback-secret",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            client = boto3.client(
                "s3",
                endpoint_url=variables["FASTROAI_S3_ENDPOINT_URL"],
                region_name=variables["FASTROAI_S3_REGION"],
                aws_access_key_id=variables["FASTROAI_S3_ACCESS_KEY_ID"],
                aws_secret_access_key=variables["FASTROAI_S3_SECRET_ACCESS_KEY"],
            )
            _patiently(lambda: client.create_bucket(Bucket="results"))
            yield variables
        finally:
            process.kill()
            process.wait()


def _patiently(call: Callable[[], object], attempts: int = 20) -> None:
    """Call until it raises nothing."""
    for _ in range(attempts):
        try:
            call()
        except Exception:
            time.sleep(0.5)
        else:
            return
    call()


@contextmanager
def slow_provider() -> Iterator[int]:
    """The port of a provider that takes its time."""
    script = Path(__file__).with_name("slow_provider.py")
    command = [sys.executable, str(script), str(ANSWER_SECONDS)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(ROOT)
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
