"""What steps in other processes and a test in this one both look at."""

from __future__ import annotations

import fcntl
import os
import pickle
import tempfile
from collections import UserList
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Self

import cloudpickle  # type: ignore[import-untyped]  # it has no types

from tests.support.forked import SHARED_DIR


class SharedList(UserList[Any]):
    """A list that is appended to. Pickled, it becomes a file: whoever unpickles it has the same
    list, in whichever process.
    """

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._path: Path | None = None
        self._items = list(items)

    @property
    def data(self) -> list[Any]:  # type: ignore[override]  # what UserList keeps
        """What is in it now; another list each time."""
        return self._items if self._path is None else _read(self._path)

    def append(self, item: Any) -> int:  # type: ignore[override]  # gives more
        """Put something at the end, and say how many were there before."""
        if self._path is not None:
            return _append(self._path, item)
        self._items.append(item)
        return len(self._items) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            handle, path = tempfile.mkstemp(dir=os.environ[SHARED_DIR], prefix="list-")
            os.close(handle)
            for item in self._items:
                _append(Path(path), item)
            self._path = Path(path)
        return type(self)._at, (self._path,)

    @classmethod
    def _at(cls, path: Path) -> Self:
        found = cls()
        found._path = path
        return found


def _read(path: Path) -> list[Any]:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return _all_of(file)


def _append(path: Path, item: Any) -> int:
    content = cloudpickle.dumps(item)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = len(_all_of(file))
        file.write(content)
    return before


def _all_of(file: BinaryIO) -> list[Any]:
    items = []
    while True:
        try:
            items.append(pickle.load(file))
        except EOFError:
            return items
