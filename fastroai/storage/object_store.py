"""Bytes in and out of one place: the port that S3, folders and the file systems of fsspec share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread

T = TypeVar("T")

CONNECTIONS = 50
"""Calls of one store at once, and the connections kept for them."""

PAGE = 1000
"""Objects that are listed, and deleted, at once."""

PROBE = b"fastroai: this storage can be written and read"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it is listed.

    Attributes:
        path: As the storage has it.
        size: In bytes.
        modified: When it was last written, timezone-aware, by the clock of the storage.
    """

    path: str
    size: int
    modified: datetime

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class ObjectStore(ABC):
    """Reads and writes whole objects by name, or by path as the storage has it.

    `FileNotFoundError` is the only error that says that an object is not there. After any other
    one it may be.

    Attributes:
        identity: The place, the same for all stores of it in this process.
    """

    identity: str

    @abstractmethod
    def resolve(self, path: str) -> str:
        """A name as the storage has it, which Prefect notes in a task's state; a resolved one stays
        as it is.
        """

    @abstractmethod
    async def get(self, name: str) -> bytes:
        """An object's content.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    async def put(self, name: str, content: bytes) -> None:
        """Write an object, as a whole or not at all."""

    async def probe(self) -> None:
        """Write, read and delete a small object; raises what the storage raised."""
        name = f".fastroai-probe-{uuid4().hex}"
        await self.write_and_read(name)
        for path, reason in (await self.delete([self.resolve(name)])).items():
            raise PermissionError(f"{path} can't be deleted: {reason}")

    async def write_and_read(self, name: str) -> None:
        """Write a small object, and read it back."""
        await self.put(name, PROBE)
        content = await self.get(name)
        if content != PROBE:
            raise OSError(f"read back {content[:60]!r} instead of what was written")

    def is_transient(self, error: Exception) -> bool:
        """Whether the same call may succeed a moment later; also what is gone may come back."""
        return True

    def pages(self, folder: str, beginning: str = "") -> AsyncIterator[list[StoredObject]]:
        """The objects right in a folder, not those below it, in lists of up to `PAGE`; those whose
        names have a beginning.

        Nothing where there is no such folder.

        Raises:
            NotImplementedError: This storage can't list, as with the next two.
        """
        raise NotImplementedError("this kind of storage can't list or delete what it holds")

    async def peek(self, stored: StoredObject, size: int) -> tuple[bytes, datetime]:
        """An object's first bytes, and when it was last written.

        Raises:
            FileNotFoundError: It is gone.
        """
        raise NotImplementedError

    async def delete(self, paths: Sequence[str]) -> dict[str, str]:
        """Delete up to `PAGE` objects; the reason for each that is still there, by its path."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Threads:
    """Runs blocking calls of one store in threads of its own number.

    Attributes:
        abandon: Whether a cancelled call is left to its thread. Not where it would leave something
            half done.
        limit: Not anyio's default one, which the threads of plain step functions share.
    """

    abandon: bool
    limit: anyio.CapacityLimiter = field(
        default_factory=partial(anyio.CapacityLimiter, CONNECTIONS)
    )

    async def run(self, call: Callable[[], T]) -> T:
        """Call it in one of the threads."""
        return await anyio.to_thread.run_sync(
            call, abandon_on_cancel=self.abandon, limiter=self.limit
        )


class _InThreads(Protocol):
    threads: Threads


StoreT = TypeVar("StoreT", bound=_InThreads)
P = ParamSpec("P")


def in_thread(
    method: Callable[Concatenate[StoreT, P], T],
) -> Callable[Concatenate[StoreT, P], Coroutine[Any, Any, T]]:
    """Make a coroutine function of a store's method that blocks: it runs in the store's threads."""

    @wraps(method)
    async def in_a_thread(store: StoreT, /, *args: P.args, **options: P.kwargs) -> T:
        return await store.threads.run(partial(method, store, *args, **options))

    return in_a_thread


def relative_name(store: ObjectStore, path: str) -> str:
    """The name within a store of a path that is resolved already, or not yet; the same for
    both.
    """
    resolved, base = store.resolve(path), store.resolve("").rstrip("/")
    return resolved[len(base) + 1 :] if base and resolved.startswith(base + "/") else resolved
