"""RESULTS.md: the machine, the versions, one table per question and whether its threshold holds."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MISSED = "**does not hold**"
PACKAGES = ("fastroai", "pydantic-ai", "pydantic", "prefect", "anyio")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise beside what was measured.

    Attributes:
        figure: None where it could not be measured.
        why: What is known of why it is not reached, a profile and what was tried; shown only where
            it is not.
    """

    question: str
    figure: float | None
    limit: float
    why: str = ""

    @property
    def outcome(self) -> str:
        if self.figure is None:
            return "not measured"
        return "holds" if self.figure <= self.limit else MISSED

    def cells(self) -> list[str]:
        figure = "–" if self.figure is None else f"{self.figure:.3f}"
        return [self.question, figure, f"≤ {self.limit:.2f}", self.outcome]


@dataclass(frozen=True, slots=True)
class Section:
    """One question: what was asked and how, the figures, the verdicts where something was
    promised.
    """

    title: str
    method: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict] = field(default=())
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        parts = [f"## {self.title}", self.method, table(self.header, self.rows), *self.notes]
        if self.verdicts:
            parts.append(
                table(["question", "ratio", "limit", "outcome"], [v.cells() for v in self.verdicts])
            )
        missed = (v for v in self.verdicts if v.outcome == MISSED and v.why)
        parts += [f"Why “{verdict.question}” is not reached: {verdict.why}" for verdict in missed]
        return "\n\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def document(
    sections: Sequence[Section],
    *,
    command: str,
    peer_version: str | None,
    took: Mapping[str, float],
) -> str:
    """The whole report.

    Args:
        peer_version: The peer's version; None when no figure of it was taken.
        took: Seconds of each part.
    """
    held = [v for s in sections for v in s.verdicts]
    failed = [v.question for v in held if v.outcome == MISSED]
    summary = f"{len([v for v in held if v.outcome == 'holds'])} of {len(held)} thresholds hold."
    if failed:
        summary += " Missed: " + "; ".join(failed) + "."
    head = [
        "# Benchmarks",
        f"Written by `{command}`. Every ratio compares figures of this one run; the figures "
        "themselves belong to this machine and this hour.",
        "\n".join(f"- {line}" for line in [*machine(), versions(peer_version)]),
        summary,
        f"Measuring took {sum(took.values()) / 60:.1f} minutes: "
        + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in took.items())
        + ".",
    ]
    return "\n\n".join([*head, *(section.markdown() for section in sections)]) + "\n"


def machine() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return [
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"Machine: {os.cpu_count()} cores, {memory:.0f} GiB memory, {_processor()}, "
        f"{platform.system()}; load at the end {load:.1f}",
        f"Python {sys.version.split()[0]} ({platform.python_implementation()})",
    ]


def versions(peer_version: str | None) -> str:
    listed = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return f"{listed}; peer: fastroai {peer_version}" if peer_version else f"{listed}; no peer"


def _version(name: str) -> str:
    if name == "fastroai":
        import fastroai

        return fastroai.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
