"""`fastroai doctor`: what of a set-up does not work, and what to do."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..kit.doctor import examine
from ..kit.finding import Finding
from .exit_codes import FAILED
from .loading import AnyPipeline, load_module, load_pipeline
from .rendering.console import console, printable, write_json
from .shutdown import run_until_terminated

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def doctor(*, json: bool = False) -> int:
    """Look at everything that the pipelines of this folder need, and say what to do.

    Settings, versions, prefect.yaml and its flows, Prefect's server, work pools and workers, result
    storage, ledger, keys and prices of the models. Exit code 1: something failed.

    Args:
        json: Write the findings as JSON.
    """
    findings = run_until_terminated(examine(Path.cwd(), pipeline_at))
    has_failed = any(finding.status == "failed" for finding in findings)
    if json:
        write_json({"ok": not has_failed, "findings": list(map(asdict, findings))})
    else:
        out = console()
        for finding in findings:
            show(out, finding)
    return FAILED if has_failed else 0


def pipeline_at(entrypoint: str) -> AnyPipeline | None:
    """The pipeline of the flow at an entrypoint; None: it is a flow of another kind."""
    name, _, attribute = entrypoint.rpartition(":")
    found = getattr(load_module(name), attribute, None)
    is_flow = type(found).__name__ == "Flow"
    return None if is_flow else load_pipeline(entrypoint)


def show(out: Console, finding: Finding) -> None:
    """Write a finding, and below it what to do."""
    first, *more = finding.found.splitlines() or [""]
    status = (f"{finding.status:<8}", _COLOURS[finding.status])
    out.print(Text.assemble(status, f" {finding.check:<15} {printable(first)}"), soft_wrap=True)
    for line in [*more, *([f"→ {finding.remedy}"] if finding.remedy else [])]:
        out.print(Text(f"{'':<24} {printable(line)}"), soft_wrap=True)
    sys.stdout.flush()
