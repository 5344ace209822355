"""`fastroai budgets apply`: the standing budgets that a file names."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ...budgets.budget import Budget
from ...budgets.standing import Budgets
from ..costs.filters import CONFIGURED, Source
from ..exit_codes import UsageError, as_wrong_usage
from ..rendering.console import write_json
from .opened import FIELDS, defined


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done for a file's budgets to hold.

    Attributes:
        action: `set`, `change` or `remove`.
        differences: Of a change: each field as it was and as it will be.
    """

    action: str
    budget: Budget
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        differences = ": " + "; ".join(self.differences) if self.differences else ""
        return f"{self.action} {self.budget.name!r}{differences}"


def apply_file(
    file: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    prune: bool = False,
    source: Source = CONFIGURED,
) -> None:
    """Set the standing budgets that a file names, where they differ.

    Args:
        file: JSON, or YAML where its name ends with .yaml or .yml.
        prune: Remove the budgets that the file does not name.
    """
    changes = asyncio.run(_apply(source, read_budgets(file), prune))
    if source.json:
        said = [
            {
                "action": change.action,
                "name": change.budget.name,
                "differences": list(change.differences),
            }
            for change in changes
        ]
        write_json({"changes": said})
    elif not changes:
        sys.stdout.write("Nothing to change.\n")


async def _apply(source: Source, wanted: Sequence[Budget], prune: bool) -> list[Change]:
    async with Budgets.open(source.ledger) as budgets:
        known = {state.budget.name: state.budget for state in await budgets.list()}
        changes = list(changes_to(known, wanted, prune))
        if not source.json:
            # Before anything is changed: should that fail, it is known what was about to be.
            sys.stdout.writelines(f"{change}\n" for change in changes)
            sys.stdout.flush()
        for change in changes:
            if change.action == "remove":
                await budgets.remove(change.budget.name)
            else:
                await budgets.set(change.budget)
    return changes


def changes_to(known: dict[str, Budget], wanted: Sequence[Budget], prune: bool) -> Iterator[Change]:
    """What makes the known budgets those that are wanted."""
    for budget in wanted:
        before = known.get(budget.name)
        if before is None:
            yield Change("set", budget)
        elif before != budget:
            yield Change("change", budget, tuple(differences(before, budget)))
    names = {budget.name for budget in wanted}
    for name, budget in known.items():
        if prune and name not in names:
            yield Change("remove", budget)


def differences(before: Budget, after: Budget) -> Iterator[str]:
    """Each field that differs, as it was and as it will be."""
    for name in FIELDS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield f"{name} {_said(old)} → {_said(new)}"


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def read_budgets(file: Path) -> list[Budget]:
    """The budgets in a file.

    Raises:
        UsageError: It can't be read, or one of them is wrong.
    """
    try:
        with as_wrong_usage(where=f"{file}: "):
            content = parsed(file.read_text(encoding="utf-8"), file.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise UsageError(f"Can't read {str(file)!r}: {error.strerror or error}.") from error
    if not isinstance(content, list):
        raise UsageError(f"{file}: expected a list of budgets.")
    found: dict[str, Budget] = {}
    for number, given in enumerate(content, 1):
        budget = budget_in(f"{file}, budget {number}", given)
        if budget.name in found:
            raise UsageError(f"{file}, budget {number}: the name {budget.name!r} is given twice.")
        found[budget.name] = budget
    return list(found.values())


def budget_in(where: str, given: object) -> Budget:
    """A budget of a file; fields that are null have their defaults."""
    if not isinstance(given, dict):
        raise UsageError(f"{where}: expected fields and their values, not {given!r}.")
    with as_wrong_usage(UsageError, f"{where}: "):
        return defined({str(name): value for name, value in given.items() if value is not None})


def parsed(text: str, is_yaml: bool) -> object:
    """A file's content; numbers with a point stay exact.

    Raises:
        ValueError: It is not valid.
    """
    if not is_yaml:
        return json.loads(text, parse_float=Decimal)
    import yaml  # type: ignore[import-untyped]

    class Exact(yaml.SafeLoader):  # type: ignore[misc]
        """Leaves numbers with a point as they are written."""

    Exact.add_constructor("tag:yaml.org,2002:float", yaml.SafeLoader.construct_scalar)
    try:
        return yaml.load(text, Exact)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
