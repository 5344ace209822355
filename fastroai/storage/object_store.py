"""Bytes in and out of one storage: S3 with one request each, a folder, any other Prefect storage
through its block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
from prefect._internal.compatibility.blocks import call_explicitly_async_block_method
from prefect.filesystems import LocalFileSystem, WritableFileSystem

from ..settings import FastroAISettings

T = TypeVar("T")

CONNECTIONS = 50
"""Requests to S3 at once, and the connections kept for them."""


class NotThereError(LookupError):
    """There is no such object, as far as this storage tells; what it said is the cause."""


class ObjectStore(Protocol):
    """Reads and writes whole objects by name."""

    identity: str
    """The place, the same for all transports to it."""

    can_delete: bool

    def resolve(self, path: str) -> Any:
        """A path as the storage has it; what Prefect notes in a task's state."""
        ...

    async def get(self, name: str) -> bytes:
        """An object.

        Raises:
            NotThereError: There is none. Any other error: it could not be found out.
        """
        ...

    async def put(self, name: str, content: bytes) -> None:
        """Write an object."""
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; nothing happens where the storage can't."""
        ...

    def may_pass(self, error: Exception) -> bool:
        """Whether trying again may help."""
        ...


def object_store_for(storage: WritableFileSystem, settings: FastroAISettings) -> ObjectStore:
    """The transport for a storage block."""
    if hasattr(storage, "bucket_name") and hasattr(
        getattr(storage, "credentials", None), "get_boto3_session"
    ):
        return S3Store(storage, settings)
    return FolderStore(storage) if isinstance(storage, LocalFileSystem) else BlockStore(storage)


def relative_name(resolve: Callable[[str], Any], path: str) -> str:
    """The name within a storage of a path that is resolved already, or not yet; the same for
    both.
    """
    resolved, base = str(resolve(path)), str(resolve("")).rstrip("/")
    return resolved[len(base) + 1 :] if base and resolved.startswith(base + "/") else resolved


class BlockStore:
    """Any Prefect storage block."""

    can_delete = False

    def __init__(self, block: Any) -> None:
        self._block = block
        base = getattr(block, "basepath", None)
        self.identity = f"{type(block).__qualname__} {base or id(block)}"
        self._resolved: dict[str, Any] = {}

    def resolve(self, path: str) -> Any:
        """See `ObjectStore`."""
        # Remembered, because a folder asks the file system for each part of a path, and each
        # record's is asked often.
        if path not in self._resolved:
            resolve = getattr(self._block, "_resolve_path", None)
            resolved = path if resolve is None else resolve(path)
            self._resolved[path] = self._resolved[str(resolved)] = resolved
        return self._resolved[path]

    async def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        try:
            content: bytes = await call_explicitly_async_block_method(
                self._block, "read_path", (name,), {}
            )
        except Exception as error:  # blocks have no common error for what is not there
            raise NotThereError(name) from error
        return content

    async def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        await call_explicitly_async_block_method(
            self._block, "write_path", (name,), {"content": content}
        )

    async def delete(self, name: str) -> None:
        """See `ObjectStore`."""

    def may_pass(self, error: Exception) -> bool:
        """See `ObjectStore`."""
        return True


class FolderStore(BlockStore):
    """A folder of this machine, in which a file is there as a whole or not at all, whoever is
    killed or cancelled.
    """

    can_delete = True

    def __init__(self, block: LocalFileSystem) -> None:
        super().__init__(block)
        # Not anyio's own limit, which the threads of plain step functions share.
        self._limit = anyio.CapacityLimiter(CONNECTIONS)

    async def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        try:
            return await anyio.to_thread.run_sync(
                self.resolve(name).read_bytes, limiter=self._limit
            )
        except OSError as error:
            raise NotThereError(name) from error

    async def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        await anyio.to_thread.run_sync(_write, self.resolve(name), content, limiter=self._limit)

    async def delete(self, name: str) -> None:
        """See `ObjectStore`."""
        await anyio.to_thread.run_sync(self.resolve(name).unlink, limiter=self._limit)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class S3Store:
    """An S3 bucket or folder in it, as a Prefect block describes it."""

    can_delete = True

    def __init__(self, block: Any, settings: FastroAISettings) -> None:
        self._block = block
        self.bucket: str = block.bucket_name
        self._settings = settings
        # Not anyio's own limit, which the threads of plain step functions share.
        self._limit = anyio.CapacityLimiter(CONNECTIONS)
        endpoint = block.credentials.aws_client_parameters.endpoint_url or "AWS"
        self.identity = f"s3://{self.bucket}/{block.bucket_folder} at {endpoint}"

    def resolve(self, path: str) -> Any:
        """See `ObjectStore`."""
        return self._block._resolve_path(path)

    async def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        from botocore.exceptions import ClientError

        def get(client: Any) -> bytes:
            answer = client.get_object(Bucket=self.bucket, Key=self.resolve(name))
            content: bytes = answer["Body"].read()
            return content

        try:
            return await self.in_thread(get)
        except ClientError as error:
            # Where keys may not be listed, S3 says 403 of one that is not there.
            if self.may_pass(error):
                raise
            raise NotThereError(name) from error

    async def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        key = self.resolve(name)
        await self.in_thread(
            lambda client: client.put_object(Bucket=self.bucket, Key=key, Body=content)
        )

    async def delete(self, name: str) -> None:
        """See `ObjectStore`."""
        key = self.resolve(name)
        await self.in_thread(lambda client: client.delete_object(Bucket=self.bucket, Key=key))

    def may_pass(self, error: Exception) -> bool:
        """Whether it is a silent or an overloaded server, rather than one that says no."""
        from botocore import exceptions as botocore

        if isinstance(error, botocore.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            return bool(status >= 500 or status == 429)
        passing = (botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError)
        return isinstance(error, passing) or not isinstance(error, botocore.BotoCoreError)

    async def in_thread(self, call: Callable[[Any], T]) -> T:
        """Call with a client, in one of as many threads as there are connections."""

        def with_client() -> T:
            client = _client(
                self._block.credentials,
                self._settings.s3_connect_timeout,
                self._settings.s3_read_timeout,
            )
            return call(client)

        return await anyio.to_thread.run_sync(
            with_client, abandon_on_cancel=True, limiter=self._limit
        )


@lru_cache(maxsize=16)
def _client(credentials: Any, connect_timeout: float, read_timeout: float) -> Any:
    """A client with short limits of time where the block does not give its own; making one takes
    0.1 s.
    """
    from botocore.config import Config

    options = credentials.aws_client_parameters.get_params_override()
    config = Config(
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        # What is tried again, and for how long, is decided by the store of records.
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
    )
    options["config"] = config.merge(options["config"]) if "config" in options else config
    return credentials.get_boto3_session().client("s3", **options)
