"""Runs a pipeline in processes that are killed at random moments, and again until it ends; one JSON
line for each.

`python -m tests.support.killed_runs SUBJECT KILLS SEED RESULTS`: one run is left alone and shows
how long a run takes. Then come runs under keys of their own, each in as many processes as it needs,
until so many were killed. The subject is an executor, or `mapped`: mapped steps under Prefect, or
`many`: ten thousand items, of which each process works on some before it is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_ai.toolsets import FunctionToolset

from fastroai import BaseStep, FastroAgent, Pipeline, StepConfig, StepContext, step
from fastroai.testing import fixed_prices
from tests.support import forked
from tests.support.agreement import place_in
from tests.support.behaviours import Answer, Behaviour, Refuse, Turns

if TYPE_CHECKING:
    from tests.support.provider_process import ProviderProcess

WIDTH = 4
"""Steps that run at once, each with one request under way at most."""

ITEMS = 10
"""That a mapped step has."""

MANY, MANY_AT_ONCE = 10_000, 20
"""Items of `many`, and how many of them are under way."""
MANY_KILLED, MANY_ALONE = "many", "many in memory"
_LATEST = 0.1
"""Seconds after the last item that a process of `many` is to begin, in which it is killed."""
_MEANWHILE = 100
"""Items that may be begun in them."""

LEASE_SECONDS = 0.5
SILENCE = LEASE_SECONDS + 0.1
"""Seconds after which a killed process counts as dead: the next one then begins without waiting for
it.
"""

WORKER, RESULTS = "KILLED_RUNS_WORKER", "KILLED_RUNS_RESULTS"
"""Environment variables that a worker is given: its name, and the folder for the folders of its
flow runs.
"""

IMPORTS = (
    "pydantic_ai.models.openai",
    "openai.resources",
    "genai_prices.data",
    "fastroai.ledger.store.sql_store",
)
IMPORTS_UNDER_PREFECT = ("fastroai.executors.prefect", "prefect.flow_engine", "prefect.task_engine")
"""What a run imports: once, before all processes."""

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 400.0
"""Seconds after which the runs count as hanging."""

SLOWEST = 0.12
_LOOP = Turns(
    (
        Answer(tool="look_up", args={"word": "mill"}, input_tokens=101, slowest=SLOWEST),
        Answer(
            tool="look_up",
            args={"word": "wheel"},
            input_tokens=152,
            cached_tokens=90,
            slowest=SLOWEST,
        ),
        Answer("It grinds.", input_tokens=203, output_tokens=17, slowest=SLOWEST),
    )
)
_BRIEF = Answer("Rye.", input_tokens=61, output_tokens=3, slowest=SLOWEST)
SCRIPT: dict[str, tuple[Behaviour, ...]] = {
    "in a loop": (_LOOP,),
    "in a word": (_BRIEF,),
    "word by word": (
        Answer("one two three four five six seven", output_tokens=7, slowest=SLOWEST),
    ),
    "at once": (Answer("Oats.", input_tokens=31, output_tokens=2),),
    "when busy": (*(Refuse(429), _BRIEF, _BRIEF, Refuse(500), _BRIEF) * 40, _BRIEF),
}
"""What the provider does, by the end of a prompt. Prompts begin with the step's id."""


@dataclass(frozen=True)
class Attempt:
    """One process.

    Attributes:
        process: Its name. Requests it sends have the path `/process-NAME/v1/…`.
        run: The run's key, or the flow run's id where it has none.
        began, ended: Seconds since the epoch; all it did lies between.
        killed: Whether it was killed; otherwise the run came to its end.
        stored: The steps of the run, and the items of mapped ones, whose results are stored now.
        recorded: By step of the run: how many answers to requests are recorded now.
        output: Of the run, where it came to its end.
        first_step: When the first step began that was not replayed.
        paid: USD of the requests of this process.
        replayed: USD of those that were replayed in it.
    """

    process: str
    run: str
    began: float
    ended: float
    killed: bool
    stored: list[str]
    recorded: dict[str, int]
    output: Any = None
    first_step: float | None = None
    paid: str = "0"
    replayed: str = "0"


class Process:
    """What steps tell of the process they run in."""

    def __init__(self, begun: int | None = None) -> None:
        self.first_step: float | None = None
        self._begun = begun

    def begin_step(self) -> None:
        """Note when the first step began, and write a byte for each where somebody counts."""
        self.first_step = self.first_step or time.time()
        if self._begun is not None:
            os.write(self._begun, b".")


def pipeline(executor: str, results: Path) -> Pipeline[Process, Any, Any]:
    """Two layers of steps at once, then three steps one after the other, then one that joins them.

    Each step's result is in a folder of the step's name.
    """
    if executor == "mapped":
        return mapped_pipeline(results)
    if executor in (MANY_KILLED, MANY_ALONE):
        return many_items(results, "prefect" if executor == MANY_KILLED else "memory")
    # The script refuses by turns, whoever asks: more retries than one request can need.
    agent = FastroAgent(model="openai:gpt-5-mini", cost_calculator=fixed_prices(), max_retries=9)
    looking = FastroAgent(
        model="openai:gpt-5-mini",
        cost_calculator=fixed_prices(),
        toolsets=[FunctionToolset([look_up])],
    )
    lanes = range(WIDTH)
    steps: dict[str, BaseStep[Process, Any]] = {
        **{f"a{n}": _asks(looking, "in a loop") for n in lanes},
        **{f"b{n}": _asks(agent, "in a word", "when busy") for n in lanes},
        "c1": _streams(agent),
        "c2": _asks(looking, "in a loop", "in a word"),
        "c3": _asks(agent, "when busy"),
        "end": _joins(),
    }
    edges = {
        **{f"b{n}": [f"a{n}", f"a{(n + 1) % WIDTH}"] for n in lanes},
        "c1": [f"b{n}" for n in lanes],
        "c2": ["c1"],
        "c3": ["c2"],
        "end": ["c3", *(f"b{n}" for n in lanes)],
    }
    configs = {step_id: StepConfig(result_storage=str(results / step_id)) for step_id in steps}
    return Pipeline("killed", steps, edges, "end", step_configs=configs, executor=executor)


def mapped_pipeline(results: Path) -> Pipeline[Process, Any, Any]:
    """A step mapped over a list, one mapped over its outputs, and one that joins them."""
    agent = FastroAgent(model="openai:gpt-5-mini", cost_calculator=fixed_prices(), max_retries=9)
    looking = FastroAgent(
        model="openai:gpt-5-mini",
        cost_calculator=fixed_prices(),
        toolsets=[FunctionToolset([look_up])],
    )

    @step
    async def read(ctx: StepContext[Process]) -> list[dict[str, int]]:
        return [{"id": number} for number in range(ITEMS)]

    @step
    async def end(ctx: StepContext[Process]) -> list[Any]:
        return [*ctx.get_dependency("long"), *ctx.get_dependency("short")]

    at_once = {"key": "id", "max_concurrency": WIDTH // 2}
    steps: dict[str, BaseStep[Process, Any]] = {
        "read": read,
        "long": _asks(looking, "in a loop").map(over="read", **at_once),
        "short": _asks(agent, "in a word", "when busy").map(
            over="long", max_concurrency=WIDTH // 2
        ),
        "end": end,
    }
    edges = {"end": ["long", "short"]}
    configs = {step_id: StepConfig(result_storage=str(results / step_id)) for step_id in steps}
    return Pipeline("killed", steps, edges, "end", step_configs=configs, executor="prefect")


def many_items(results: Path, executor: str) -> Pipeline[Process, Any, Any]:
    """A step that asks once for each of ten thousand items, and one that tells of all in short."""
    agent = FastroAgent(model="openai:gpt-5-mini", cost_calculator=fixed_prices(), max_retries=9)

    @step
    async def read(ctx: StepContext[Process]) -> list[int]:
        return list(range(MANY))

    @step
    async def ask(ctx: StepContext[Process]) -> str:
        ctx.deps.begin_step()
        place = place_in(ctx.step_id, ctx.item_key)
        return f"{ctx.item}: {(await ctx.run(agent, f'{place}: at once')).output}"

    @step
    async def end(ctx: StepContext[Process]) -> tuple[int, str]:
        answers = list(ctx.get_dependency("each"))
        return len(answers), hashlib.sha256("\n".join(answers).encode()).hexdigest()

    steps: dict[str, BaseStep[Process, Any]] = {
        "read": read,
        "each": ask.map(over="read", key=str, max_concurrency=MANY_AT_ONCE),
        "end": end,
    }
    configs = {step_id: StepConfig(result_storage=str(results / step_id)) for step_id in steps}
    edges = {"end": ["each"]}
    return Pipeline("killed", steps, edges, "end", step_configs=configs, executor=executor)


def look_up(word: str) -> str:
    """What is known of a word."""
    return f"{word}: old"


def _asks(agent: FastroAgent[Any], *questions: str) -> BaseStep[Process, list[str]]:
    @step
    async def ask(ctx: StepContext[Process]) -> list[str]:
        ctx.deps.begin_step()
        place = place_in(ctx.step_id, item_of(ctx))
        return [(await ctx.run(agent, f"{place}: {question}")).output for question in questions]

    return ask


def item_of(ctx: StepContext[Any]) -> str | None:
    try:
        return ctx.item_key
    except ValueError:  # the step is not mapped
        return None


def _streams(agent: FastroAgent[Any]) -> BaseStep[Process, str]:
    @step
    async def stream(ctx: StepContext[Process]) -> str:
        ctx.deps.begin_step()
        return "".join(
            [chunk.content async for chunk in agent.run_stream(f"{ctx.step_id}: word by word")]
        )

    return stream


def _joins() -> BaseStep[Process, Any]:
    @step
    async def join(ctx: StepContext[Process]) -> list[Any]:
        return [ctx.get_dependency("c3"), *(ctx.get_dependency(f"b{n}") for n in range(WIDTH))]

    return join


def run_killed(
    executor: str,
    kills: int,
    results: Path,
    provider: ProviderProcess,
    patience: float = PATIENCE,
) -> list[Attempt]:
    """Do all this in a process of its own, with a provider that keeps to the script."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    for prompt, behaviours in SCRIPT.items():
        provider.script(prompt, *behaviours)
    command = [
        sys.executable,
        "-m",
        "tests.support.killed_runs",
        executor,
        str(kills),
        str(seed),
        str(results),
    ]
    environment = os.environ | {
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "FASTROAI_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    # In a session of its own, so that none of its processes outlives this test.
    with forked.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, _ = process.communicate(timeout=patience)
            assert process.returncode == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [Attempt(**json.loads(line)) for line in told.splitlines()]


def attempts(executor: str, kills: int, seed: int, results: Path) -> Iterator[Attempt]:
    """The processes, one after the other."""
    chance, number, run = random.Random(seed), 0, 0
    if executor == MANY_KILLED:
        yield from _killed_among_many(kills, chance, results)
        return
    whole = _attempt(executor, results, 0, "left-alone", set(), None)
    yield whole
    assert whole.first_step is not None
    length = whole.ended - whole.began
    starting = (whole.first_step - whole.began) / length
    while kills:
        run += 1
        known, ended = set(_files(results)), False
        while not ended:
            number += 1
            after = length * chance.uniform(starting, 1)
            kill = partial(_ends_within, after) if kills else None
            attempt = _attempt(executor, results, number, f"run-{run}", known, kill)
            kills, ended = kills - attempt.killed, not attempt.killed
            # How long a process takes depends on what is left to do, and on what else the machine
            # does.
            length = 1.1 * length if attempt.killed else attempt.ended - attempt.began
            yield attempt
            if attempt.killed and executor != "memory":
                time.sleep(SILENCE)


def _killed_among_many(kills: int, chance: random.Random, results: Path) -> Iterator[Attempt]:
    """The processes of one run: the kills are anywhere in it, each behind the one before.

    The run that is left alone is one in memory, which records nothing: a fraction of the time.
    """
    each_once = {place_in("each", str(number)): 1 for number in range(MANY)}
    alone = _attempt(MANY_ALONE, results, 0, "left-alone", set(), None)
    yield replace(alone, recorded=each_once)
    known = set(_files(results))
    moments = sorted(chance.sample(range(1, MANY - kills * _MEANWHILE), kills))
    for number, (before, moment) in enumerate(pairwise([0, *moments]), start=1):
        wait = partial(_begins, moment - before, chance.uniform(0, _LATEST))
        yield _attempt(MANY_KILLED, results, number, "run-1", known, wait)
        time.sleep(SILENCE)
    yield _attempt(MANY_KILLED, results, kills + 1, "run-1", known, None)


def _ends_within(seconds: float, process: int, begun: int) -> None:
    select.select([process], [], [], seconds)


def _begins(items: int, seconds: float, process: int, begun: int) -> None:
    """Wait until it has begun so many items, and some seconds more."""
    while items > 0 and (more := os.read(begun, items)):
        items -= len(more)
    _ends_within(seconds, process, begun)


def _attempt(
    executor: str,
    results: Path,
    number: int,
    run_key: str,
    known: set[Path],
    wait: Callable[[int, int], None] | None,
) -> Attempt:
    """Run the pipeline in a process.

    Args:
        wait: Returns when it is to be killed, if it still runs then; given its pidfd, and where it
            writes of each step that begins. None: it is left alone.
    """
    assert threading.active_count() == 1, "a fork would take only one of them along"
    reading, out = os.pipe()
    counting, begun = os.pipe()
    began = time.time()
    child = os.fork()
    if not child:
        _die_with_parent()
        os.close(reading)
        os.close(counting)
        _run(executor, results, number, run_key, out, None if wait is None else begun)
    os.close(out)
    os.close(begun)
    with open(os.pidfd_open(child)) as process:
        if wait is not None:
            wait(process.fileno(), counting)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(counting)
    with os.fdopen(reading) as report:
        said = report.read()
    if status not in (0, -signal.SIGKILL):
        sys.exit(f"Process {number} ended with {status}.")
    killed = status != 0
    # What it said before it was killed does not count: the run had not ended.
    told = {} if killed else json.loads(said)
    stored, recorded = kept(results, known)
    return Attempt(str(number), run_key, began, time.time(), killed, stored, recorded, **told)


def _run(
    executor: str, results: Path, number: int, run_key: str, out: int, begun: int | None
) -> None:
    try:
        sign_requests(str(number))
        process = Process(begun)
        result = asyncio.run(pipeline(executor, results).execute({}, process, run_key=run_key))
        assert result.usage is not None
        said = {
            "output": result.output,
            "first_step": process.first_step,
            "paid": str(result.usage.total_cost_usd),
            "replayed": str(result.usage.total_replayed_cost_usd),
        }
        os.write(out, json.dumps(said).encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def sign_requests(process: str) -> None:
    """Have the path say in the invoice which process asked, without being part of what is asked."""
    os.environ["OPENAI_BASE_URL"] = os.environ["OPENAI_BASE_URL"].replace(
        "/v1", f"/process-{process}/v1"
    )


def _files(results: Path) -> Iterator[Path]:
    return (file for file in results.rglob("*") if file.is_file() and not file.name.startswith("."))


def _die_with_parent() -> None:
    """A test that is killed itself leaves no process behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1


def kept(results: Path, known: Collection[Path] = ()) -> tuple[list[str], dict[str, int]]:
    """The steps whose results are stored, and how many answers are recorded of each, but for what
    was known before.

    What was not written to its end, because its process was killed, does not count.
    """
    stored: list[str] = []
    recorded: Counter[str] = Counter()
    # By key: what was merged from small chunks may be in them, too, where the process was killed.
    of_items: dict[tuple[str, str], str] = {}
    for file in set(_files(results)).difference(known):
        step_id, *folders = file.relative_to(results).parent.parts
        try:
            content = json.loads(file.read_bytes())
        except ValueError:
            continue
        if "records" in content:
            of_items |= {(step_id, key): text for key, text in content["records"].items()}
        elif not folders:
            stored.append(step_id)
        elif "response" in content:  # and not the result of a tool
            recorded[step_id] += 1
    for (step_id, _), text in of_items.items():
        # The other kind notes where the items of a run are.
        record = json.loads(text) if text.startswith("{") else {}
        if record.get("entries"):
            place = place_in(step_id, record["entries"][0]["attribution"]["item"])
            recorded[place] += "response" in record
            if "output" in record:
                stored.append(place)
    return sorted(stored), dict(recorded)


if __name__ == "__main__":
    _die_with_parent()
    which, how_many, seeded_with, folder = sys.argv[1:]
    for module in IMPORTS + (() if which == "memory" else IMPORTS_UNDER_PREFECT):
        importlib.import_module(module)
    for done in attempts(which, int(how_many), int(seeded_with), Path(folder)):
        print(json.dumps(asdict(done)), flush=True)  # noqa: T201 - whoever started it reads this
