"""What `import fastroai` costs beside `import pydantic_ai`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from statistics import median

from .report import Section, Verdict
from .workers import ROOT, environment, interleaved, paired_ratio, progress

MODULES = ("fastroai", "pydantic_ai")
MAX_RATIO = 1.1
_TIME_IT = "from time import perf_counter as t; a = t(); import {module}; print(t() - a)"


def measure(quick: bool) -> Section:
    rounds = 11 if quick else 21
    progress("imports")
    for module in MODULES:
        _import_seconds(module)  # writes the byte code that an installed package has
    figures = interleaved({module: _importer(module) for module in MODULES}, rounds)
    ratio = paired_ratio(figures["fastroai"], figures["pydantic_ai"])
    return Section(
        title="Import",
        method=(
            "Milliseconds of the import statement in fresh interpreters with warm byte code, "
            f"median of {rounds} "
            "alternating rounds; the ratio is the median of the ratios of each round."
        ),
        header=["module", "median, ms", "fastest, ms", "slowest, ms"],
        rows=[
            [f"`import {m}`", *(f"{s * 1e3:.0f}" for s in (median(v), min(v), max(v)))]
            for m, v in figures.items()
        ],
        verdicts=[Verdict("`import fastroai` beside `import pydantic_ai`", ratio, MAX_RATIO)],
    )


def _importer(module: str) -> Callable[[], float]:
    return lambda: _import_seconds(module)


def _import_seconds(module: str) -> float:
    command = [sys.executable, "-P", "-c", _TIME_IT.format(module=module)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment(ROOT)
    )
    return float(answer.stdout)
