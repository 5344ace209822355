"""`fastroai costs archive`: moves old entries to files."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ...ledger.ledger import Ledger
from ..exit_codes import as_wrong_usage
from ..parsing import duration, shown
from ..rendering.console import write_json
from .filters import CONFIGURED, Source

if TYPE_CHECKING:
    from ...ledger.store.archiving import Archive


def archive(
    *,
    older_than: Annotated[timedelta, Parameter(converter=duration)],
    to: Path,
    format_: Annotated[Literal["csv", "parquet"] | None, Parameter(name="--format")] = None,
    source: Source = CONFIGURED,
) -> None:
    """Move old entries of the ledger to files. All sums stay as they are.

    Args:
        older_than: Age of the requests, for example 90d.
        to: A folder; it is made if it is missing.
        format_: csv, which is compressed by gzip, or parquet, which needs pyarrow; default: parquet
            where that is installed.
    """
    before = datetime.now(UTC) - older_than
    with as_wrong_usage():
        found = asyncio.run(_archive(source.ledger, before, to, format_))
    entries = sum(one.entries for one in found)
    if source.json:
        files = [{"path": str(one.path), "entries": one.entries} for one in found]
        write_json({"before": before.isoformat(), "entries": entries, "files": files})
        return
    for one in found:
        sys.stdout.write(f"{one.path}: {one.entries:,} entries\n")
    sys.stdout.write(f"{entries:,} entries sent before {shown(before)} were moved.\n")


async def _archive(
    url: str | None, before: datetime, folder: Path, form: str | None
) -> list[Archive]:
    async with Ledger.open(url, create=False) as ledger:
        return await ledger.archive(before, folder, form=form)
