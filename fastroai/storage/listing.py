"""The objects in a storage's folders: listed, looked into, and deleted, many at a time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from prefect.filesystems import LocalFileSystem, WritableFileSystem

from ..errors import ResultStorageError
from ..settings import FastroAISettings
from .object_store import NotThereError, ObjectStore, S3Store, object_store_for
from .signing import BEGINNING

T = TypeVar("T")

PAGE = 1000
"""Objects that S3 lists, and deletes, by one request."""

PAUSES = (0.2, 1.0)
"""Seconds before a request to S3 that may succeed at last is sent again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it is listed.

    Attributes:
        path: As the storage has it.
        size: In bytes.
        modified: When it was last written, timezone-aware, by the clock of who keeps it.
    """

    path: str
    size: int
    modified: datetime

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Look:
    """How an object begins, and when it was last written, when it was looked at."""

    beginning: bytes
    modified: datetime


class Listing(Protocol):
    """The objects of one storage.

    A storage that does not answer, or refuses, raises what it said.
    """

    def pages(self, folders: Sequence[str]) -> AsyncIterator[list[Stored]]:
        """What is right in these folders, not below them, in lists of up to `PAGE`; no folder, no
        list.
        """
        ...

    async def look(self, objects: Sequence[Stored]) -> list[Look | Exception]:
        """How each of these begins; `NotThereError` of one that is gone, another error of one that
        can't be read.
        """
        ...

    async def delete(self, objects: Sequence[Stored]) -> dict[str, str]:
        """Delete up to `PAGE` of them; why not, by the path of each that is still there."""
        ...


def listing_of(storage: WritableFileSystem, settings: FastroAISettings, described: str) -> Listing:
    """The objects of a bucket or a folder.

    Raises:
        ResultStorageError: It is neither.
    """
    transport = object_store_for(storage, settings)
    if isinstance(transport, S3Store):
        return S3Listing(transport)
    if isinstance(storage, LocalFileSystem):
        return FolderListing(transport)
    raise ResultStorageError(
        f"What is in {described} can't be listed: only S3 and local folders can. Have the storage "
        "itself delete what is old."
    )


class S3Listing:
    """The objects of a bucket."""

    def __init__(self, transport: S3Store) -> None:
        self._transport = transport
        self._bucket = transport.bucket

    async def pages(self, folders: Sequence[str]) -> AsyncIterator[list[Stored]]:
        """See `Listing`."""
        # A prefix may be so that two folders in it are one.
        for folder in dict.fromkeys(map(self._transport.resolve, folders)):
            asked: dict[str, Any] = {
                "Prefix": f"{folder}/" if folder else "",
                "Delimiter": "/",
                "MaxKeys": PAGE,
            }
            while True:
                answer = await self._ask("list_objects_v2", **asked)
                found = [
                    Stored(o["Key"], o["Size"], o["LastModified"])
                    for o in answer.get("Contents", ())
                ]
                # A key that ends with a slash stands for the folder itself.
                yield [stored for stored in found if stored.name]
                if not answer.get("IsTruncated"):
                    break
                asked["ContinuationToken"] = answer["NextContinuationToken"]

    async def look(self, objects: Sequence[Stored]) -> list[Look | Exception]:
        """See `Listing`."""
        looks: list[Look | Exception] = [NotThereError(stored.path) for stored in objects]

        async def look(index: int) -> None:
            try:
                looks[index] = await self._ask(
                    "get_object", _read, Key=objects[index].path, Range=f"bytes=0-{BEGINNING - 1}"
                )
            except Exception as error:
                looks[index] = error

        async with anyio.create_task_group() as tasks:
            for index, stored in enumerate(objects):
                if stored.size:
                    tasks.start_soon(look, index)
                else:  # has no first byte that could be asked for
                    looks[index] = Look(b"", stored.modified)
        return [self._judged(look) for look in looks]

    async def delete(self, objects: Sequence[Stored]) -> dict[str, str]:
        """See `Listing`."""
        if not objects:
            return {}
        keys = [{"Key": stored.path} for stored in objects]
        answer = await self._ask("delete_objects", Delete={"Objects": keys, "Quiet": True})
        return {e["Key"]: f"{e.get('Code')}: {e.get('Message')}" for e in answer.get("Errors", ())}

    def _judged(self, look: Look | Exception) -> Look | Exception:
        if isinstance(look, Look | NotThereError):
            return look
        if self._transport.may_pass(look):
            raise look  # the others would meet the same
        gone = getattr(look, "response", {}).get("Error", {}).get("Code") in ("NoSuchKey", "404")
        return NotThereError() if gone else look

    async def _ask(
        self, method: str, read: Callable[[Any], T] | None = None, **arguments: Any
    ) -> Any:
        """What S3 answers, read within the thread that asks."""

        def ask(client: Any) -> Any:
            answer = getattr(client, method)(Bucket=self._bucket, **arguments)
            return answer if read is None else read(answer)

        for pause in PAUSES:
            try:
                return await self._transport.in_thread(ask)
            except Exception as error:
                if not self._transport.may_pass(error):
                    raise
            await anyio.sleep(pause)
        return await self._transport.in_thread(ask)


def _read(answer: Any) -> Look:
    return Look(answer["Body"].read(BEGINNING), answer["LastModified"])


class FolderListing:
    """The files of a local folder."""

    def __init__(self, transport: ObjectStore) -> None:
        self._transport = transport

    async def pages(self, folders: Sequence[str]) -> AsyncIterator[list[Stored]]:
        """See `Listing`."""
        for folder in folders:
            # Read to its end first: what a folder lists while files are deleted from it is not
            # defined.
            found = await anyio.to_thread.run_sync(_files, Path(self._transport.resolve(folder)))
            for start in range(0, len(found), PAGE):
                yield found[start : start + PAGE]

    async def look(self, objects: Sequence[Stored]) -> list[Look | Exception]:
        """See `Listing`."""
        return await anyio.to_thread.run_sync(lambda: [_look(stored.path) for stored in objects])

    async def delete(self, objects: Sequence[Stored]) -> dict[str, str]:
        """See `Listing`."""
        return await anyio.to_thread.run_sync(_unlink, objects)


def _files(folder: Path) -> list[Stored]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # nothing was stored yet
        return []
    found = []
    for entry in entries:
        with suppress(FileNotFoundError):  # somebody else deletes, too
            if entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                found.append(
                    Stored(Path(entry.path).as_posix(), stat.st_size, _time(stat.st_mtime))
                )
    return found


def _look(path: str) -> Look | Exception:
    try:
        with open(path, "rb") as file:
            return Look(file.read(BEGINNING), _time(os.fstat(file.fileno()).st_mtime))
    except FileNotFoundError:
        return NotThereError(path)
    except OSError as error:
        return error


def _unlink(objects: Sequence[Stored]) -> dict[str, str]:
    failed = {}
    for stored in objects:
        try:
            Path(stored.path).unlink(missing_ok=True)
        except OSError as error:
            failed[stored.path] = f"{type(error).__name__}: {error.strerror or error}"
    return failed


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
