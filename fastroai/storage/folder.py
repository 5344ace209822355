"""A local folder as an object store.

Not through fsspec, which writes in place, and with the permissions that the process gives.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from .object_store import PAGE, PROBE, ObjectStore, StoredObject, Threads, in_thread


class FolderStore(ObjectStore):
    """A folder of this machine, in which a file is there as a whole or not at all, whoever is
    killed or cancelled.

    Files and folders that it makes are readable by their owner only: results hold prompts and
    answers.
    """

    def __init__(self, folder: Path) -> None:
        self._given = folder.expanduser()
        self._folder = str(self._given.resolve())
        self.identity = f"folder {self._folder}"
        # A write that is cancelled is waited for: it cleans up behind itself.
        self.threads = Threads(abandon=False)

    def resolve(self, path: str) -> str:
        """See `ObjectStore`.

        Raises:
            ValueError: It is outside of the folder.
        """
        # By its text alone: a record's path is asked for often, and the disk is slow.
        resolved = os.path.normpath(os.path.join(self._folder, path))
        if resolved != self._folder and not resolved.startswith(self._folder.rstrip("/") + "/"):
            raise ValueError(f"{path!r} is outside of {self._folder!r}")
        return resolved

    @in_thread
    def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        path = self.resolve(name)
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            refuse_a_dangling_link(Path(path))
            raise

    @in_thread
    def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        write_private(Path(self.resolve(name)), content)

    @in_thread
    def probe(self) -> None:
        """See `ObjectStore`; at one go, since each thread is waited for."""
        # It would be made anew otherwise, without the results that it holds.
        refuse_a_dangling_link(self._given)
        path = Path(self._folder, f".fastroai-probe-{uuid4().hex}")
        write_private(path, PROBE)
        content = path.read_bytes()
        path.unlink()
        if content != PROBE:
            raise OSError(f"read back {content[:60]!r} instead of what was written")

    async def pages(self, folder: str, beginning: str = "") -> AsyncIterator[list[StoredObject]]:
        """See `ObjectStore`."""
        # Read to its end first: what a folder lists while files are deleted from it is undefined.
        found = await self._files(self.resolve(folder), beginning)
        for start in range(0, len(found), PAGE):
            yield found[start : start + PAGE]

    @in_thread
    def _files(self, folder: str, beginning: str) -> list[StoredObject]:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            refuse_a_dangling_link(Path(folder))
            return []  # nothing was stored yet
        found = []
        for entry in entries:
            if not entry.name.startswith(beginning):
                continue
            with suppress(FileNotFoundError):  # somebody else deletes, too
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append(StoredObject(entry.path, stat.st_size, _time(stat.st_mtime)))
        return found

    @in_thread
    def peek(self, stored: StoredObject, size: int) -> tuple[bytes, datetime]:
        """See `ObjectStore`."""
        with open(stored.path, "rb") as file:
            return file.read(size), _time(os.fstat(file.fileno()).st_mtime)

    @in_thread
    def delete(self, paths: Sequence[str]) -> dict[str, str]:
        """See `ObjectStore`."""
        failed = {}
        for path in paths:
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                failed[path] = f"{type(error).__name__}: {error.strerror or error}"
        return failed


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, as a whole or not at all."""
    _make_private_folder(path.parent)
    # Beside the target, since a file can be put in place of another on the same disk only.
    partial = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        # At one go: a record that is cut off would be taken for one that somebody changed.
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def refuse_a_dangling_link(path: Path) -> None:
    """Tell what a link leads to, on a disk that is not mounted for example, from what was never
    written.

    Raises:
        OSError: The path, or a folder above it, is a link whose target is not there.
    """
    for part in (path, *path.parents):
        if part.exists():
            return
        if part.is_symlink():
            raise OSError(f"{str(part)!r} is a link to {os.readlink(part)!r}, which is not there")


def _make_private_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    # One by one: the mode that mkdir is given is not that of the parents it makes.
    _make_private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
