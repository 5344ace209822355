"""Entries that could not be written yet, kept in files until they can."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import URL

from ...database.files import make_private_folder, open_private_file, write_whole
from ..entries import LedgerEntry
from .mapping import as_stored

try:
    import fcntl
except ImportError:  # Windows has none: there, files that another process left are not taken over
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pydantic import TypeAdapter

logger = logging.getLogger("fastroai.usage")


class Outbox:
    """A file of entries, one JSON per line, synced to disk; and memory where there is no place for
    a file.

    A process holds a lock on its file. What a dead process left is taken over by the next that
    opens the same ledger.
    """

    def __init__(self, folder: Path, url: URL) -> None:
        # Whoever writes to the database: the password is not part of where the ledger is.
        where = f"{url.get_backend_name()}|{url.host}|{url.port}|{url.database}"
        self._prefix = hashlib.sha256(where.encode()).hexdigest()[:16]
        self._folder = folder
        self._file: IO[bytes] | None = None
        self.path: Path | None = None
        """The file, once there is one."""
        self._memory: list[LedgerEntry] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, entries: Iterable[LedgerEntry]) -> None:
        """Keep entries. They are on disk when this returns, unless nothing can be written there."""
        entries = list(entries)
        self._count += len(entries)
        try:
            # What a full disk cut off before does not spoil this line.
            dump = _adapter().dump_json
            lines = b"".join(b"\n" + dump(as_stored(entry)) for entry in entries) + b"\n"
            file = self._open()
            write_whole(file, lines)
        except Exception as error:  # whatever it is: what is to be kept must not be lost for it
            if not self._memory:
                logger.error(
                    "Ledger entries that can't be written are kept in memory only: %s", error
                )
            self._memory += entries

    def entries(self) -> list[LedgerEntry]:
        """What is kept."""
        if self._file is None:
            return list(self._memory)
        # Through the open file, which is there also when somebody deleted its name.
        self._file.seek(0)
        return [*parse_entry(self._file.read(), self.path), *self._memory]

    def replace(self, entries: Iterable[LedgerEntry]) -> None:
        """Keep these instead: the others were written."""
        left = list(entries)
        self._memory.clear()
        self._count = 0
        file, path = self._file, self.path
        self._file = self.path = None
        # Into a new file, before the old one goes.
        if left:
            self.keep(left)
        if file is not None and path is not None:
            # Unlinked before it is unlocked, so that nobody takes over what is written already.
            with suppress(OSError):
                path.unlink()
            file.close()

    def adopt(self) -> None:
        """Take over what processes that are gone have left for this ledger."""
        if fcntl is None:
            return
        for path in sorted(self._folder.glob(f"{self._prefix}-*.jsonl")):
            if path == self.path:
                continue
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Kept here before they go there: after a crash in between they are written twice,
                # of which the second time does nothing.
                if found := read_entries(path):
                    self.keep(found)
                if not self._memory:
                    path.unlink()

    def close(self) -> None:
        """Leave the file to the next process.

        Entries in memory are logged, as there is nowhere else for them.
        """
        for entry in self._memory:
            logger.error(
                "Ledger entry that was never written: %s", _adapter().dump_json(entry).decode()
            )
        if self._file is not None:
            self._file.close()
            self._file = self.path = None

    def _open(self) -> IO[bytes]:
        if self._file is None:
            make_private_folder(self._folder)
            path = self._folder / f"{self._prefix}-{os.getpid()}-{uuid4().hex[:8]}.jsonl"
            opening = path.with_suffix(".opening")
            file = open_private_file(opening)
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Only now under the name by which files are taken over.
            opening.rename(path)
            self._file, self.path = file, path
        return self._file


def read_entries(path: Path) -> list[LedgerEntry]:
    """The entries of a file; a last line that was cut off, or one that is no entry, is logged and
    left out.
    """
    return list(parse_entry(path.read_bytes(), path))


def parse_entry(content: bytes, path: Path | None) -> Iterator[LedgerEntry]:
    for line in filter(None, content.split(b"\n")):
        try:
            yield _adapter().validate_json(line)
        except ValueError:
            logger.error("A line in %s is no ledger entry: %r", path, line[:200])


@cache
def _adapter() -> TypeAdapter[LedgerEntry]:
    # Only here: a process that sends has imported pydantic long before; one that reads a ledger
    # seldom needs it, and would take twice the time to start.
    from pydantic import TypeAdapter

    return TypeAdapter(LedgerEntry)
