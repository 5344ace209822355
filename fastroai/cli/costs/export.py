"""`fastroai costs export`: the ledger's charges for other programs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from ...ledger.aggregation import Totals
from ...ledger.focus import (
    CHARGES,
    VERSION,
    FocusRow,
    focus_rows,
    write_focus_csv,
    write_focus_parquet,
)
from ...ledger.ledger import Ledger
from ..exit_codes import UsageError
from .filters import ALL, CONFIGURED, Filters, Source


def export(
    *,
    focus: bool = False,
    to: Path | None = None,
    billing_account: str | None = None,
    only_known: bool = False,
    filters: Filters = ALL,
    source: Source = CONFIGURED,
) -> None:
    """Write what providers bill as rows of an open format, a day and group of requests each.

    Args:
        focus: In the columns of FOCUS 1.2.
        to: A file, .csv or .parquet, which needs pyarrow; default: CSV to stdout.
        billing_account: The account at the provider; default: the provider's name stands for it.
        only_known: Leave out what has no known cost: FOCUS takes no row without one.
    """
    if not focus:
        raise UsageError("Specify the format: --focus.")
    if source.json:
        raise UsageError("--json is no format of an export: rows are CSV or Parquet.")
    is_parquet = to is not None and to.suffix == ".parquet"
    if is_parquet and find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow, which is not installed. Use .csv, or install it.")
    charges = asyncio.run(_read(source.ledger, filters))
    counted = _Unknown(only_known)
    rows = counted.through(focus_rows(charges, billing_account))
    number = write_focus_csv(sys.stdout, rows) if to is None else _write(to, rows, is_parquet)
    out = sys.stdout if to is not None else sys.stderr
    out.write(f"{number:,} rows of FOCUS {VERSION}" + (f" in {to}.\n" if to else ".\n"))
    if counted.rows:
        sys.stderr.write(f"{counted}\n")


def _write(to: Path, rows: Iterable[FocusRow], is_parquet: bool) -> int:
    """Write a file; one that is there is replaced once the new one is whole."""
    unfinished = to.with_name(f"{to.name}.part")
    try:
        if is_parquet:
            number = write_focus_parquet(unfinished, rows)
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                number = write_focus_csv(file, rows)
        unfinished.replace(to)
    except OSError as error:
        raise UsageError(f"{to} can't be written: {error}") from error
    return number


class _Unknown:
    """Counts the rows without a cost as they pass, or as they are left out."""

    def __init__(self, left_out: bool) -> None:
        self._left_out = left_out
        self.rows = self._requests = 0

    def through(self, rows: Iterable[FocusRow]) -> Iterator[FocusRow]:
        for row in rows:
            is_unknown = row["BilledCost"] is None
            if is_unknown:
                self.rows += 1
                self._requests += int(str(row["x_Requests"]))
            if not (is_unknown and self._left_out):
                yield row

    def __str__(self) -> str:
        which = f"of {self._requests:,} requests without a known cost"
        if self._left_out:
            return f"{self.rows:,} more, {which}, are left out."
        return (
            f"{self.rows:,} of them, {which}, have none, where FOCUS wants a number: 0 would be "
            "wrong. --only-known leaves them out."
        )


async def _read(url: str | None, filters: Filters) -> tuple[Totals, ...]:
    async with Ledger.open(url, create=False) as ledger:
        return await ledger.totals(CHARGES, **filters.as_arguments())
