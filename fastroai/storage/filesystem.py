"""Any file system that fsspec knows as an object store: GCS, Azure, `memory://`, SFTP, …."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import fsspec  # type: ignore[import-untyped]  # it has no stubs
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from .folder import refuse_a_dangling_link
from .object_store import PAGE, ObjectStore, StoredObject, Threads, in_thread

# Where the file systems of fsspec have the time of the last write, among the rest they list.
_MODIFIED = ("mtime", "modified", "last_modified", "LastModified", "updated")


class FileSystemStore(ObjectStore):
    """A folder in a file system of fsspec.

    Args:
        filesystem: Used in threads, also where it is asynchronous.
        base: URL of the folder.
    """

    def __init__(self, filesystem: fsspec.AbstractFileSystem, base: str) -> None:
        self._filesystem = filesystem
        self._base = base.rstrip("/")
        # Two of one URL may have other endpoints or accounts: their hash tells.
        self.identity = f"{self._base} {hash(filesystem)}"
        self.threads = Threads(abandon=True)

    @classmethod
    def open(cls, url: str) -> FileSystemStore:
        """The folder at a URL.

        Raises:
            ImportError: The package for it is not installed. Names it.
            ValueError: fsspec knows no such URL.
        """
        filesystem, _ = fsspec.core.url_to_fs(url)
        return cls(filesystem, url)

    def resolve(self, path: str) -> str:
        """See `ObjectStore`."""
        if path == self._base or path.startswith(self._base + "/"):
            return path
        return f"{self._base}/{path}" if path else self._base

    @in_thread
    def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        path = self.resolve(name)
        try:
            content: bytes = self._filesystem.cat_file(path)
        except FileNotFoundError:
            if isinstance(self._filesystem, LocalFileSystem):
                refuse_a_dangling_link(Path(self._filesystem._strip_protocol(path)))
            raise
        return content

    @in_thread
    def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        path = self.resolve(name)
        try:
            self._filesystem.pipe_file(path, content)
        except FileNotFoundError:
            # Only where folders are real. Asked for first, an object store might make a bucket.
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(path, content)

    def is_transient(self, error: Exception) -> bool:
        """Any but a refusal: what else they raise differs from one to the next."""
        return not isinstance(error, PermissionError)

    async def pages(self, folder: str, beginning: str = "") -> AsyncIterator[list[StoredObject]]:
        """See `ObjectStore`."""
        files = await self._files(self.resolve(folder))
        found = [stored for stored in files if stored.name.startswith(beginning)]
        for start in range(0, len(found), PAGE):
            yield found[start : start + PAGE]

    @in_thread
    def _files(self, folder: str) -> list[StoredObject]:
        # Several of them remember what they listed, and other processes write, too.
        self._filesystem.invalidate_cache()
        try:
            entries = self._filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        return [
            StoredObject(entry["name"], entry["size"], self._modified(entry))
            for entry in entries
            if entry["type"] == "file" and not entry["name"].endswith("/")
        ]

    def _modified(self, entry: dict[str, object]) -> datetime:
        for key in _MODIFIED:
            if entry.get(key):
                return _moment(entry[key])
        return _moment(self._filesystem.modified(entry["name"]))

    @in_thread
    def peek(self, stored: StoredObject, size: int) -> tuple[bytes, datetime]:
        """See `ObjectStore`."""
        self._filesystem.invalidate_cache()
        entry = self._filesystem.info(stored.path)
        return self._filesystem.cat_file(stored.path, 0, size), self._modified(entry)

    @in_thread
    def delete(self, paths: Sequence[str]) -> dict[str, str]:
        """See `ObjectStore`."""
        failed = {}
        for path in paths:
            try:
                self._filesystem.rm_file(path)
            except FileNotFoundError:
                continue
            except Exception as error:  # whatever the file system's own library raises
                failed[path] = f"{type(error).__name__}: {error}"
        return failed


def _moment(found: object) -> datetime:
    """A time as one of the file systems gives it."""
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    moment = datetime.fromisoformat(found) if isinstance(found, str) else found
    if not isinstance(moment, datetime):
        raise TypeError(f"{found!r} is not the time of a file")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
