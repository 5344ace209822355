"""The budgets of the ledger that the command line names, and definitions that it gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from itertools import filterfalse

from ...budgets.budget import Budget
from ...budgets.standing import Budgets, UnknownBudgetError
from ...errors import FastroAIError
from ...ledger.ledger import Ledger
from ..exit_codes import UsageError, as_wrong_usage

FIELDS = tuple(field.name for field in fields(Budget))
_NOT_TEXTS = ("usd", "warn_at", "max_request_usd")


@asynccontextmanager
async def opened(url: str | None) -> AsyncGenerator[Budgets]:
    """The budgets of a ledger that is there already.

    Raises:
        LedgerNotFoundError: There is no ledger, and none was made.
        FastroAIError: No budget has the name that was given.
    """
    async with Ledger.open(url, create=False):
        pass
    try:
        async with Budgets.open(url) as budgets:
            yield budgets
    except UnknownBudgetError as error:
        raise FastroAIError(f"{error} `fastroai budgets list` shows them.") from error


def complaints_about(given: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with the fields of a budget, before any of their values is looked at."""
    for name in filterfalse(FIELDS.__contains__, given):
        yield f"A budget has no {name!r}. It has: {', '.join(FIELDS)}."
    for name in ("name", "usd"):
        if given.get(name) in (None, ""):
            yield f"{name} is missing: a standing budget needs a name and usd."
    for name in filterfalse(_NOT_TEXTS.__contains__, given):
        if not isinstance(given[name], str):
            yield f"{name}={given[name]!r}: give a text."
    deployment = given.get("deployment", "/")
    if "/" not in str(deployment):
        yield f"deployment={deployment!r}: give flow/deployment, as 'digest/daily'."
    shares = given.get("warn_at", ())
    if not isinstance(shares, list | tuple):
        yield f"warn_at={shares!r}: give a list of shares, as 0.8."


def defined(given: Mapping[str, object]) -> Budget:
    """A standing budget of its fields.

    Raises:
        UsageError: One of them is wrong.
    """
    if complaint := next(complaints_about(given), None):
        raise UsageError(complaint)
    with as_wrong_usage():
        budget = Budget(**given)  # type: ignore[arg-type]  # it checks them
    if too_high := [share for share in budget.warn_at if share > 1]:
        raise UsageError(f"warn_at={str(too_high[0])!r}: give a share up to 1, as 0.8 for 80 %.")
    return budget
