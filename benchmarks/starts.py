"""How long it takes until something is there: a command's answer, an import, a first step."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .books import entries, fill
from .prefect_server import Server, prefect_server
from .report import Section, Verdict
from .workers import HERE, ROOT, environment, interleaved, paired_ratio, processor, progress

ENTRIES = 1_000
HELP, COSTS, RUNS = "`fastroai --help`", "`fastroai costs`", "`fastroai runs`"
BARE = "Python that does nothing"
MAX_HELP, MAX_COMMAND = 0.15, 0.6

OURS, THEIRS = "import fastroai", "import pydantic_ai"
OURS_MADE, THEIRS_MADE = f"{OURS}, an agent made", f"{THEIRS}, an agent made"
_MODEL = "from pydantic_ai.models.openai import OpenAIChatModel as M; "
IMPORTS = {
    OURS: "import fastroai",
    THEIRS: "import pydantic_ai",
    OURS_MADE: f"from fastroai import FastroAgent; {_MODEL}FastroAgent(model=M('gpt-5-mini'))",
    THEIRS_MADE: f"from pydantic_ai import Agent; {_MODEL}Agent(M('gpt-5-mini'))",
}
MAX_IMPORT, MAX_MADE = 0.1, 1.05
WHY_MADE = (
    "by `-X importtime`, 85 modules of fastroai take 3.3 to 4 % of all: metering a quarter of "
    "that, the ledger's entries and pricing a fifth each, no module a tenth. Tried, and kept: the "
    "store, the executors and the commands load when they are asked for, and no `statistics`."
)

FIRST_STEP = {"fastroai": "ours", "handwritten": "hand-written, with pydantic-ai"}
MAX_FIRST_STEP = 1.03
WHY_FIRST_STEP = (
    "from a finished import to the step both take 0.18 s; what ours takes more are imports. By "
    "`-X importtime`, SQLAlchemy for the ledger, which is open before a request may leave, takes "
    "92 ms, modules of fastroai's own take 180 (the executors a third, the ledger a sixth, "
    "metering a tenth). Tried, and kept: nothing looks for garbage while Prefect and pydantic-ai "
    "are imported, which took 0.13 s; steps on other machines, spread maps, work pools, "
    "automations and pages load when they are asked for, 0.1 s; names load when they are used."
)


def measure(quick: bool) -> list[Section]:
    rounds = 3 if quick else 7
    return [commands(rounds), imports(rounds), first_step(rounds)]


def commands(rounds: int) -> Section:
    progress("starts: commands")
    with TemporaryDirectory() as folder:
        ledger = f"sqlite:///{Path(folder) / 'ledger.db'}"
        fill(ledger, list(entries(ENTRIES, days=7)))
        # Without the hooks of an editable installation, which no user has.
        packages = f"{ROOT}:{sysconfig.get_path('purelib')}"

        def seconds(*arguments: str) -> Callable[[], float]:
            line = (sys.executable, "-S", *arguments)
            return lambda: processor(*line, env={"PYTHONPATH": packages})[0]

        measured = {
            BARE: seconds("-c", "pass"),
            HELP: seconds("-m", "fastroai", "--help"),
            COSTS: seconds("-m", "fastroai", "costs", "--ledger", ledger),
            RUNS: seconds("-m", "fastroai", "runs", "--ledger", ledger),
        }
        for warm in measured.values():
            warm()
        figures = interleaved(measured, rounds)
    return Section(
        title="Commands: processor seconds",
        method=(
            f"In processes of their own with warm byte code; a SQLite ledger of {ENTRIES:,} "
            f"entries. Median of {rounds} interleaved rounds."
        ),
        header=["command", "median, s", "least", "most"],
        rows=_rows(figures),
        verdicts=[
            Verdict(f"{HELP}: seconds", median(figures[HELP]), MAX_HELP),
            Verdict(f"{COSTS}: seconds", median(figures[COSTS]), MAX_COMMAND),
            Verdict(f"{RUNS}: seconds", median(figures[RUNS]), MAX_COMMAND),
        ],
    )


def imports(rounds: int) -> Section:
    progress("starts: imports")
    for code in IMPORTS.values():
        _import_seconds(code)  # writes the byte code that an installed package has
    measured = {name: partial(_import_seconds, code) for name, code in IMPORTS.items()}
    figures = interleaved(measured, rounds)
    return Section(
        title="Import",
        method=(
            "Processor seconds of the statements in fresh interpreters with warm byte code, "
            f"median of {rounds} interleaved rounds. The agents are made with OpenAI's model, made "
            "before. Ratios are medians of the ratios of each round."
        ),
        header=["statements", "median, s", "least", "most"],
        rows=_rows(figures),
        verdicts=[
            Verdict(
                "`import fastroai` beside `import pydantic_ai`",
                paired_ratio(figures[OURS], figures[THEIRS]),
                MAX_IMPORT,
            ),
            Verdict(
                "the same once an agent is made",
                paired_ratio(figures[OURS_MADE], figures[THEIRS_MADE]),
                MAX_MADE,
                WHY_MADE,
            ),
        ],
    )


def _import_seconds(code: str) -> float:
    code = f"from time import process_time as t; a = t(); {code}; print(t() - a)"
    command = [sys.executable, "-P", "-c", code]
    env = environment(ROOT, {"OPENAI_API_KEY": "unused"})
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(answer.stdout)


def first_step(rounds: int) -> Section:
    progress("starts: first step")
    with prefect_server() as server:
        measured = {who: partial(_first_step, server, who) for who in FIRST_STEP}
        for warm in measured.values():
            warm()
        figures = interleaved(measured, rounds)
    return Section(
        title="Under Prefect: from the start of a process to its first step",
        method=(
            "Seconds until the code of the first step runs, in a process that imports, defines "
            "and runs a flow of one step, which asks a scripted model; the Prefect server is there "
            "and idle. The hand-written flow has pydantic-ai's agent in a task. Median of "
            f"{rounds} interleaved rounds after a warm-up; the ratio is the median of the ratios "
            "of each round."
        ),
        header=["flow", "median, s", "least", "most"],
        rows=_rows({FIRST_STEP[who]: seconds for who, seconds in figures.items()}),
        verdicts=[
            Verdict(
                "beside the hand-written flow",
                paired_ratio(figures["fastroai"], figures["handwritten"]),
                MAX_FIRST_STEP,
                WHY_FIRST_STEP,
            )
        ],
    )


def _first_step(server: Server, who: str) -> float:
    server.settle()
    command = [sys.executable, "-P", str(HERE / "first_step.py"), who]
    env = environment(ROOT, server.env)
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        seconds = time.monotonic() - started
    if process.returncode or not told:
        raise RuntimeError(f"the flow {who!r} ended with {process.returncode}; it says why above")
    return seconds


def _rows(figures: dict[str, list[float]]) -> list[Sequence[str]]:
    return [
        [what, *(f"{statistic(seconds):.3f}" for statistic in (median, min, max))]
        for what, seconds in figures.items()
    ]
