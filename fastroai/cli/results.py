"""`fastroai results`: shows and deletes stored results of steps."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter, Token

from .exit_codes import FAILED, as_wrong_usage
from .parsing import duration, shown

if TYPE_CHECKING:
    from ..storage.retention import Pruned

_NAMED_FAILURES = 20


def _age(type_: object, tokens: Sequence[Token]) -> timedelta:
    from ..storage.retention import cutoff

    age = duration(type_, tokens)
    with as_wrong_usage(where=f"--older-than {tokens[0].value!r}: "):
        cutoff(age)
    return age


results = App(name="results", help_format="markdown")


@results.command
def show(
    run: Annotated[str, Parameter(name="RUN")],
    step: Annotated[str, Parameter(name="STEP")],
    /,
    *,
    item: str | None = None,
    storage: str | None = None,
) -> None:
    """Show the record that a step of a run stored; of a mapped step, those of its items.

    As JSON: output, ledger entries, usage, attempts. It is shown only when a run would use it: its
    signature is valid, and made with FASTROAI_RESULT_SECRET. Of a mapped step whose items other
    runs may use, what these have left is shown, too.

    Args:
        run: Id or name of the flow run.
        step: Id of the step.
        item: Key of the one item of a mapped step that is shown; default: all.
        storage: As FASTROAI_RESULT_STORAGE; default: that variable.
    """
    from ..executors.stored_results import read_stored_result

    found = asyncio.run(read_stored_result(run, step, storage=storage, item=item))
    sys.stderr.write(
        f"{found.step_id} of {found.run_name} ({found.run_id}), {found.state}: {found.location}\n"
    )
    sys.stdout.write(json.dumps(found.content, indent=2, ensure_ascii=False) + "\n")


@results.command
def why(
    run: Annotated[str, Parameter(name="RUN")],
    step: Annotated[str, Parameter(name="STEP")],
    /,
    *,
    storage: str | None = None,
) -> None:
    """Say why a step was executed although results of it are stored.

    Compares what its key is made of with those of results that were stored before: code, input,
    outputs of its dependencies, names, scope.

    Args:
        run: Id or name of the flow run.
        step: Id of the step.
        storage: As FASTROAI_RESULT_STORAGE; default: that variable.
    """
    from ..executors.stored_results import explain_miss

    explanation = asyncio.run(explain_miss(run, step, storage=storage))
    sys.stdout.writelines(f"{line}\n" for line in explanation.lines())


@results.command
def prune(
    *,
    older_than: Annotated[timedelta, Parameter(converter=_age)],
    storage: str | None = None,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Delete old results of steps, and old requests recorded within them.

    A run that would have used them pays again, so choose an age beyond the time within which runs
    are resumed. Nothing is deleted that is not a record of fastroai.

    Args:
        older_than: 90m, 24h, 30d, 2w; 1h or more, since runs may be active.
        storage: As FASTROAI_RESULT_STORAGE; default: that variable.
        dry_run: Say what would be deleted; delete nothing.
        as_json: The same as JSON.
    """
    from ..executors.stored_results import prune_results

    pruned = asyncio.run(prune_results(older_than=older_than, storage=storage, dry_run=dry_run))
    if as_json:
        found = asdict(pruned) | {"before": pruned.before.isoformat()}
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in summary(pruned))
        sys.stderr.writelines(f"{line}\n" for line in failures_of(pruned))
    return FAILED if pruned.failures else 0


def summary(pruned: Pruned) -> Iterator[str]:
    """What was deleted, and what stayed."""
    yield deleted(pruned)
    if pruned.younger:
        yield f"{counted(pruned.younger, 'younger one')} stayed."
    if pruned.others:
        yield f"{counted(pruned.others, 'other object')} stayed: not recognised as records."


def deleted(pruned: Pruned) -> str:
    """The first line of the summary."""
    since = f"last written before {shown(pruned.before)}"
    done, nothing = "Deleted", "Nothing was"
    if pruned.dry_run:
        done, nothing = "Would delete", "Nothing would be"
    if pruned.results or pruned.requests or pruned.items:
        found = [counted(pruned.results, "result"), counted(pruned.requests, "recorded request")]
        if pruned.items:
            found.append(counted(pruned.items, "chunk") + " of items")
        size = counted(pruned.size, "byte")
        return f"{done} {' and '.join(found)}, {size}, from {pruned.location}: {since}."
    if pruned.younger or pruned.failures:
        return f"{nothing} deleted from {pruned.location}, {since}."
    return f"No results or recorded requests are stored in {pruned.location}."


def failures_of(pruned: Pruned) -> Iterator[str]:
    """What could not be deleted."""
    if pruned.failures:
        objects = counted(len(pruned.failures), "old object")
        yield f"fastroai: {objects} could not be read or deleted:"
    for path, cause in islice(pruned.failures.items(), _NAMED_FAILURES):
        yield f"  {path}: {cause}"
    if len(pruned.failures) > _NAMED_FAILURES:
        yield f"  … and {len(pruned.failures) - _NAMED_FAILURES:,} more, which --json names."


def counted(number: int, what: str) -> str:
    """So many of something."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
