"""Files that old entries are moved to: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..database.files import make_private_folder, open_private_file, write_whole
from .aggregation import TOKEN_NAMES
from .entries import Attribution, LedgerEntry

UNFINISHED = ".part"
"""How the name of a file ends whose entries may still be in the ledger."""

_OF_RUN = tuple(field.name for field in fields(Attribution))
_OF_REQUEST = tuple(
    field.name for field in fields(LedgerEntry) if field.name not in ("attribution", "tokens")
)
COLUMNS = (*_OF_REQUEST, *TOKEN_NAMES, *_OF_RUN)


@dataclass(frozen=True, slots=True)
class ArchiveFormat:
    """How entries are written: what file names end in, and what makes a file's content."""

    suffix: str
    content: Callable[[Sequence[Mapping[str, Any]]], bytes]


def archive_format(name: str | None = None) -> ArchiveFormat:
    """`csv` (compressed by gzip), `parquet`, or by None Parquet where pyarrow is installed.

    Raises:
        ValueError: There is no such format, or pyarrow is missing.
    """
    has_pyarrow = find_spec("pyarrow") is not None
    if name == "csv" or (name is None and not has_pyarrow):
        return ArchiveFormat(".csv.gz", write_csv)
    if name not in (None, "parquet"):
        raise ValueError(f"{name!r} is no format of archives. Allowed: csv, parquet.")
    if not has_pyarrow:
        raise ValueError("Parquet needs pyarrow, which is not installed. Use csv, or install it.")
    return ArchiveFormat(".parquet", write_parquet)


def write_archive(folder: Path, entries: Sequence[LedgerEntry], form: ArchiveFormat) -> Path:
    """Write entries to a new file, whole and on disk when this returns, under a name that says that
    it is unfinished.
    """
    make_private_folder(folder)
    first = entries[0].sent_at
    name = f"fastroai-{first:%Y%m%dT%H%M%S}-{uuid4().hex[:8]}{form.suffix}{UNFINISHED}"
    path = folder / name
    with open_private_file(path) as file:
        write_whole(file, form.content(list(map(row_of, entries))))
    sync_to_disk(folder)
    return path


def finish_archive(path: Path) -> Path:
    """Give a file its final name: the ledger has its entries no more."""
    final = path.with_name(path.name.removesuffix(UNFINISHED))
    try:
        path.rename(final)
    except FileNotFoundError:
        # Who archives at the same time takes it for one that was left, and names it, too.
        if not final.exists():
            raise
    sync_to_disk(path.parent)
    return final


def sync_to_disk(folder: Path) -> None:
    """Have names of files on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def row_of(entry: LedgerEntry) -> dict[str, Any]:
    holders = ((entry, _OF_REQUEST), (entry.tokens, TOKEN_NAMES), (entry.attribution, _OF_RUN))
    return {name: value_of(getattr(holder, name)) for holder, names in holders for name in names}


def value_of(value: Any) -> Any:
    """Amounts as texts, exact; times in ISO 8601; what has parts as JSON."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping | tuple):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return value


def write_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode("utf-8", "backslashreplace"), 6, mtime=0)


def write_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow  # type: ignore[import-not-found,unused-ignore]  # only where it is installed
    import pyarrow.parquet  # type: ignore[import-not-found,unused-ignore]

    kinds = {int: pyarrow.int64(), bool: pyarrow.bool_()}
    of_name = {name: kinds.get(type(value), pyarrow.string()) for name, value in rows[0].items()}
    schema = pyarrow.schema(list(of_name.items()))
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), content)
    return content.getvalue()
