"""`fastroai results`: what a step of a run left in storage, and what is old enough to be deleted
from there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from .exit_codes import FAILED, UsageError
from .parsing import duration, shown

if TYPE_CHECKING:
    from ..executors.stored_results import Pruned

_STORAGE = "where it is, as FASTROAI_RESULT_STORAGE; default: as that variable says"
_NAMED_FAILURES = 20


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fastroai results` and its commands."""
    parser = commands.add_parser(
        "results",
        help="show stored results, and delete old ones",
        description="Show stored results; delete old ones.",
    )
    parts = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    show = parts.add_parser(
        "show",
        help="show what a step of a run stored",
        description=(
            "Show the record that a step of a run stored, as JSON: output, ledger entries, usage, "
            "attempts. It is shown only when a run would believe it: its seal holds, and it was "
            "signed with FASTROAI_RESULT_SECRET."
        ),
    )
    show.add_argument("run", metavar="RUN", help="id or name of the flow run")
    show.add_argument("step", metavar="STEP", help="id of the step")
    show.add_argument("--storage", help=_STORAGE)
    show.set_defaults(execute=_show)
    prune = parts.add_parser(
        "prune",
        help="delete old results and recorded requests",
        description=(
            "Delete results of steps, and requests recorded within them, that were stored longer "
            "ago than that. A run that would have used them pays again, so give more than the time "
            "within which runs are resumed. Nothing is deleted that is not a record of fastroai."
        ),
    )
    prune.add_argument(
        "--older-than",
        required=True,
        metavar="AGE",
        help="90m, 24h, 30d, 2w; 1h or more: runs may be under way",
    )
    prune.add_argument("--storage", help=_STORAGE)
    prune.add_argument(
        "--dry-run", action="store_true", help="say what would be deleted, and delete nothing"
    )
    prune.add_argument("--json", action="store_true", help="the same as JSON")
    prune.set_defaults(execute=_prune)


def _show(arguments: argparse.Namespace) -> int:
    from ..executors.stored_results import read_stored_result

    found = asyncio.run(
        read_stored_result(arguments.run, arguments.step, storage=arguments.storage)
    )
    sys.stderr.write(
        f"{found.step_id} of {found.run_name} ({found.run_id}), {found.state}: {found.location}\n"
    )
    sys.stdout.write(json.dumps(found.content, indent=2, ensure_ascii=False) + "\n")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    age = duration("--older-than", arguments.older_than)
    from ..executors.stored_results import cutoff, prune_results

    now = datetime.now(UTC)
    try:
        cutoff(age, now)
    except ValueError as error:
        raise UsageError(f"--older-than {arguments.older_than!r}: {error}") from error
    pruned = asyncio.run(
        prune_results(
            older_than=age, storage=arguments.storage, dry_run=arguments.dry_run, now=now
        ),
    )
    if arguments.json:
        found = asdict(pruned) | {"before": pruned.before.isoformat()}
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _told(pruned))
        sys.stderr.writelines(f"{line}\n" for line in _failures(pruned))
    return FAILED if pruned.failures else 0


def _told(pruned: Pruned) -> Iterator[str]:
    since = f"last written before {shown(pruned.before)}"
    if pruned.results or pruned.requests:
        yield (
            f"{'Would delete' if pruned.dry_run else 'Deleted'} {_count(pruned.results, 'result')} "
            f"and {_count(pruned.requests, 'recorded request')}, {_count(pruned.size, 'byte')}, "
            f"from {pruned.location}: {since}."
        )
    elif pruned.younger or pruned.failures:
        yield (
            f"{'Nothing would be' if pruned.dry_run else 'Nothing was'} deleted from "
            f"{pruned.location}, {since}."
        )
    else:
        yield f"No results or recorded requests are stored in {pruned.location}."
    if pruned.younger:
        yield f"{_count(pruned.younger, 'younger one')} stayed."
    if pruned.others:
        yield (
            f"{_count(pruned.others, 'other object')} stayed: no records of fastroai, as far as "
            "can be told."
        )


def _failures(pruned: Pruned) -> Iterator[str]:
    if pruned.failures:
        yield (
            f"fastroai: {_count(len(pruned.failures), 'old object')} could not be looked into or "
            "deleted:"
        )
    for path, cause in islice(pruned.failures.items(), _NAMED_FAILURES):
        yield f"  {path}: {cause}"
    if len(pruned.failures) > _NAMED_FAILURES:
        yield f"  … and {len(pruned.failures) - _NAMED_FAILURES:,} more, which --json names."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
