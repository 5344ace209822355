"""`python -m benchmarks`: measure everything side by side and write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from . import (
    books,
    budgets,
    growth,
    in_flight,
    makespan,
    mapped,
    memory,
    metering,
    peer,
    peers,
    prefect_path,
    resume,
    shown_costs,
    starts,
)
from .report import Section, document
from .workers import HERE, progress

PARTS = (
    "memory",
    "makespan",
    "starts",
    "metering",
    "in-flight",
    "prefect",
    "growth",
    "shown",
    "resume",
    "ledger",
    "budgets",
    "mapped",
    "peers",
)


def main(argv: list[str] | None = None) -> None:
    """Measure the parts asked for; only a full run replaces RESULTS.md unless a file is named."""
    arguments = _parser().parse_args(argv)
    chosen = [part for part in PARTS if part in arguments.only]
    needs_peer = {"memory", "makespan"} & set(chosen)
    peer_python = peer.peer_python() if needs_peer and not arguments.no_peer else None
    measures: dict[str, Callable[[], list[Section]]] = {
        "memory": lambda: [memory.measure(arguments.quick, peer_python)],
        "makespan": lambda: [makespan.measure(arguments.quick, peer_python)],
        "starts": lambda: starts.measure(arguments.quick),
        "metering": lambda: [metering.measure(arguments.quick)],
        "in-flight": lambda: [in_flight.measure(arguments.quick)],
        "prefect": lambda: [prefect_path.measure(arguments.quick)],
        "growth": lambda: [growth.measure(arguments.quick)],
        "shown": lambda: [shown_costs.measure(arguments.quick)],
        "resume": lambda: resume.measure(arguments.quick),
        "ledger": lambda: [books.measure(arguments.quick)],
        "budgets": lambda: [budgets.measure(arguments.quick)],
        "mapped": lambda: mapped.measure(arguments.quick),
        "peers": lambda: [peers.measure(arguments.quick)],
    }
    sections: list[Section] = []
    took: dict[str, float] = {}
    for part in chosen:
        started = monotonic()
        measured = measures[part]()
        took[part] = monotonic() - started
        sections += measured
        for verdict in (verdict for section in measured for verdict in section.verdicts):
            progress("  ".join(verdict.cells()))
    text = document(
        sections,
        command=_command(arguments, chosen),
        peer_version=peer.VERSION if peer_python else None,
        took=took,
    )
    sys.stdout.write(text)
    complete = len(chosen) == len(PARTS) and not arguments.quick and not arguments.no_peer
    output = arguments.output or (HERE / "RESULTS.md" if complete else None)
    if output is not None:
        output.write_text(text)
        progress(f"written to {output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        type=_parts,
        default=list(PARTS),
        help=f"a comma-separated choice of {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, smaller flows: a look, not a result"
    )
    parser.add_argument(
        "--no-peer",
        action="store_true",
        help=f"leave fastroai {peer.VERSION} out (nothing is installed)",
    )
    parser.add_argument(
        "--output", type=Path, help="write here; default RESULTS.md for a full run, else nowhere"
    )
    return parser


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(PARTS)}")
    return parts


def _command(arguments: argparse.Namespace, chosen: list[str]) -> str:
    options = [] if len(chosen) == len(PARTS) else ["--only " + ",".join(chosen)]
    options += [
        f"--{name}" for name in ("quick", "no-peer") if getattr(arguments, name.replace("-", "_"))
    ]
    return " ".join(["python -m benchmarks", *options])


if __name__ == "__main__":
    main()
