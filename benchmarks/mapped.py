"""What a mapped step costs per item, beside flows, steps and agents written by hand."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many items there are of each measurement.

    Attributes:
        rounds: How often those are taken that are compared.
        hand: Of the hand-written flow: more make its server unstable.
        few, many: Between which growth is measured.
        waiting: Under way at once.
        large: Of 100 kB.
    """

    rounds: int
    hand: int
    few: int
    many: int
    waiting: int
    large: int


WHOLE = Sizes(rounds=3, hand=500, few=100, many=10_000, waiting=1_000, large=10_000)
QUICK = Sizes(rounds=1, hand=300, few=100, many=2_000, waiting=300, large=1_500)


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
            _engine(server, env, sizes),
            _at_once(server, local, sizes),
            _large(env, sizes),
        ]


def _engine(server: Server, env: Mapping[str, str], sizes: Sizes) -> Section:
    """The engine's own time."""
    progress("mapped: per item")
    with ExitStack() as stack:
        asked: dict[str, Worker] = {}
        for name, arguments in {
            "mapped": ("mapped", "answer", "prefect"),
            "hand": ("handwritten", "answer", "prefect"),
            "agents": ("agents", "answer", "memory"),
            "memory": ("mapped", "nothing", "memory"),
        }.items():
            asked[name] = stack.enter_context(Worker("mapped_worker.py", *arguments, env=env))

        def seconds(name: str, items: int) -> Callable[[], float]:
            def run() -> float:
                server.settle()
                return float(asked[name].ask(items=items)["seconds"]) / items

            return run

        measures = {
            ("mapped", sizes.few): seconds("mapped", sizes.few),
            ("mapped", sizes.hand): seconds("mapped", sizes.hand),
            ("hand", sizes.hand): seconds("hand", sizes.hand),
            ("agents", sizes.hand): seconds("agents", sizes.hand),
            ("mapped", sizes.many): seconds("mapped", sizes.many),
            ("memory", sizes.many): seconds("memory", sizes.many),
        }
        for name in asked:
            seconds(name, 10)()
        figures = interleaved(measures, sizes.rounds)
    agents = figures["agents", sizes.hand]
    mapped, hand = (
        [whole - agent for whole, agent in zip(figures[name, sizes.hand], agents, strict=True)]
        for name in ("mapped", "hand")
    )
    growth = paired_ratio(figures["mapped", sizes.many], figures["mapped", sizes.few])
    in_memory = median(figures["memory", sizes.many]) * 1e6
    labels = {
        "mapped": "mapped step, Prefect and S3",
        "hand": "`task.map`, Prefect and S3",
        "agents": "`Agent.run` alone",
    }
    return Section(
        title="Mapped steps: ms per item",
        method=(
            "Whole runs, divided by their items, each of which asks a scripted model that answers "
            "at once; results and answers go to moto's S3 over HTTP, and ours are booked in a "
            "SQLite ledger. The hand-written flow maps a task that keeps its result over the same "
            "items. What `Agent.run` takes alone is no time of the engine's, and taken off before "
            "both are compared. In memory an item does nothing. Median of "
            f"{sizes.rounds} interleaved rounds."
        ),
        header=["what, items", "median, ms", "fastest, ms", "slowest, ms"],
        rows=[
            [f"{labels.get(name, 'mapped step, memory')}, {items:,}", *_milliseconds(values)]
            for (name, items), values in figures.items()
        ],
        verdicts=[
            Verdict(
                f"per item beside `task.map`, {sizes.hand:,}",
                paired_ratio(mapped, hand),
                MAX_HANDWRITTEN_RATIO,
            ),
            Verdict(f"growth from {sizes.few:,} to {sizes.many:,}", growth, MAX_GROWTH),
            Verdict("µs per item in memory", in_memory, MAX_MICROSECONDS),
        ],
    )


def _milliseconds(values: list[float]) -> list[str]:
    return [f"{statistic(values) * 1e3:.3f}" for statistic in (median, min, max)]


def _at_once(server: Server, env: Mapping[str, str], sizes: Sizes) -> Section:
    """A thousand items that wait for a provider."""
    progress("mapped: items at once")
    subjects = {
        "mapped step under Prefect": ("mapped", "ask", "prefect"),
        "plain steps under Prefect": ("steps", "ask", "prefect"),
        "plain steps in memory": ("steps", "ask", "memory"),
        "pydantic-ai's Agent.run": ("agents", "ask", "memory"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    kilobytes: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(sizes.rounds):
        for name, arguments in subjects.items():
            server.settle()
            with Worker("mapped_worker.py", *arguments, env=env) as worker:
                worker.ask(items=20)
                figures = worker.ask(items=sizes.waiting)
            seconds[name].append(figures["seconds"])
            kilobytes[name].append(figures["bytes"] / sizes.waiting / 1024)
    ours, *others = subjects
    theirs = others[-1]
    return Section(
        title=f"Mapped steps: {sizes.waiting:,} items at once",
        method=(
            f"Each asks a provider on loopback, through OpenAI's client, that answers after "
            f"{ANSWER_SECONDS:g} s. Under Prefect each request is booked in a SQLite ledger and "
            "its answer recorded in a folder. Memory is the most that the process had beyond what "
            f"it had before, divided by the items. Median of {sizes.rounds} rounds, each in a "
            "process of its own."
        ),
        header=["what", "seconds", "kB per item"],
        rows=[
            [name, f"{median(seconds[name]):.2f}", f"{median(kilobytes[name]):.0f}"]
            for name in subjects
        ],
        verdicts=[
            Verdict(f"time beside {other}", paired_ratio(seconds[ours], seconds[other]), MAX_BESIDE)
            for other in (others[0], theirs)
        ]
        + [
            Verdict(
                f"memory beside {theirs}",
                paired_ratio(kilobytes[ours], kilobytes[theirs]),
                MAX_MEMORY_RATIO,
            )
        ],
    )


def _large(env: Mapping[str, str], sizes: Sizes) -> Section:
    """Items of 100 kB, streamed."""
    megabytes = {}
    for executor in ("memory", "prefect"):
        progress(f"mapped: large items, {executor}")
        with Worker("mapped_worker.py", "mapped", "carry", executor, env=env) as worker:
            worker.ask(items=10)
            megabytes[executor] = worker.ask(items=sizes.large)["bytes"] / 1e6
    return Section(
        title=f"Mapped steps: peak memory of {sizes.large:,} items of 100 kB",
        method=(
            "They come from an asynchronous iterator, and each gives its 100 kB back as output. "
            "The most memory that the process had beyond what it had before."
        ),
        header=["executor", "MB"],
        rows=[[executor, f"{value:.0f}"] for executor, value in megabytes.items()],
        verdicts=[
            Verdict(f"MB, {executor}", value, MAX_MEGABYTES)
            for executor, value in megabytes.items()
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
