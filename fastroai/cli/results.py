"""`fastroai results show RUN STEP`: what a step of a run left in storage."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fastroai results` and its commands."""
    parser = commands.add_parser("results", help="show stored results", description="Show stored results.")
    parts = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    show = parts.add_parser(
        "show",
        help="show what a step of a run stored",
        description="Show the record that a step of a run stored, as JSON: output, ledger entries, usage, attempts. It "
        "is shown only when a run would believe it: its seal holds, and it was signed with FASTROAI_RESULT_SECRET.",
    )
    show.add_argument("run", metavar="RUN", help="id or name of the flow run")
    show.add_argument("step", metavar="STEP", help="id of the step")
    show.add_argument("--storage", help="where it is, as FASTROAI_RESULT_STORAGE; default: as that variable says")
    show.set_defaults(execute=_show)


def _show(arguments: argparse.Namespace) -> int:
    from ..executors._prefect.inspection import read_stored_result

    found = asyncio.run(read_stored_result(arguments.run, arguments.step, storage=arguments.storage))
    sys.stderr.write(f"{found.step_id} of {found.run_name} ({found.run_id}), {found.state}: {found.location}\n")
    sys.stdout.write(json.dumps(found.content, indent=2, ensure_ascii=False) + "\n")
    return 0
