"""Prefect's storage blocks as object stores, and the choice of a storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from prefect._internal.compatibility.blocks import call_explicitly_async_block_method
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect.results import aget_default_result_storage

from ...errors import ResultStorageError
from ...settings import STORAGE_FORMS, FastroAISettings, names_storage
from ...storage.filesystem import FileSystemStore
from ...storage.folder import FolderStore
from ...storage.location import open_object_store
from ...storage.object_store import ObjectStore
from ...storage.s3 import S3Store, make_client
from .server import have_server

# `block-type/name`, as Prefect takes it; a relative folder may look the same.
_REFERENCE = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9-]+")

_REFUSAL = re.compile(r"denied|forbidden|permission|unauthori[sz]ed|\b40[13]\b", re.IGNORECASE)

# First parts of folders that are clearly written as such.
_NO_TYPE = frozenset({"", ".", "..", "~"})


async def open_storage_choice(
    choice: object, settings: FastroAISettings
) -> tuple[ObjectStore, str]:
    """The store for a URL, a folder, a `block-type/name` or a block, and its name in messages.

    Args:
        choice: None: where the flow that is active here keeps its results.

    Raises:
        ResultStorageError: The choice has none of these forms, or the block can't be loaded.
    """
    if choice is None:
        context = FlowRunContext.get()
        own = context and context.result_store.result_storage
        choice = own or await aget_default_result_storage()
    match choice:
        case WritableFileSystem():
            return store_of_block(choice, settings), _described(choice)
        case Path():
            return open_object_store(choice, settings), repr(str(choice))
        case str() if names_storage(choice):
            # Asked for first: a folder of that name may be left from when it was taken for one.
            saved = await saved_block(choice) if _REFERENCE.fullmatch(choice) else None
            if saved is not None:
                return store_of_block(saved, settings), repr(choice)
            await refuse_near_miss(choice)
            return open_object_store(choice, settings), repr(choice)
    raise ResultStorageError(
        f"result_storage={choice!r}: {STORAGE_FORMS}, or a Prefect storage block."
    )


def store_of_block(block: WritableFileSystem, settings: FastroAISettings) -> ObjectStore:
    """The objects that a block reads and writes, without it where that is faster or surer."""
    if isinstance(block, LocalFileSystem):
        return FolderStore(Path(block.basepath or "."))
    if isinstance(block, RemoteFileSystem):
        return store_of_filesystem(block)
    credentials: Any = getattr(block, "credentials", None)
    if hasattr(block, "bucket_name") and hasattr(credentials, "get_boto3_session"):
        client = partial(
            _client_of_credentials,
            credentials,
            settings.s3_connect_timeout,
            settings.s3_read_timeout,
        )
        endpoint = credentials.aws_client_parameters.endpoint_url
        return S3Store(block.bucket_name, getattr(block, "bucket_folder", ""), client, endpoint)
    return BlockStore(block)


def store_of_filesystem(block: RemoteFileSystem) -> FileSystemStore:
    try:
        filesystem = block.filesystem
    except Exception as error:  # a package that is not installed, options that it doesn't take
        raise ResultStorageError(
            f"The file system of {_described(block)} can't be used: {error.__cause__ or error}. "
            "Install the package it needs."
        ) from error
    return FileSystemStore(filesystem, block.basepath)


@lru_cache(maxsize=16)
def _client_of_credentials(credentials: Any, connect_timeout: float, read_timeout: float) -> Any:
    """Kept, because making one takes 0.1 s."""
    options = credentials.aws_client_parameters.get_params_override()
    return make_client(credentials.get_boto3_session(), options, connect_timeout, read_timeout)


async def saved_block(reference: str) -> WritableFileSystem | None:
    """The block of this name; None where the name is that of a folder.

    Raises:
        ResultStorageError: There is no such block, and no such folder, or it is not for files.
    """
    block_type = reference.partition("/")[0]
    await have_server()
    try:
        block = await Block.aload(reference)
    except ValueError as error:
        if not await is_block_type(block_type) and await anyio.Path(reference).is_dir():
            return None
        raise ResultStorageError(
            f"result_storage={reference!r}: Prefect has no such block ({error}). Create it, name a "
            f"bucket as s3://bucket/prefix, or write ./{reference} for a local folder."
        ) from error
    except Exception as error:
        raise ResultStorageError(
            f"result_storage={reference!r}: the block can't be loaded: {type(error).__name__}: "
            f"{error}. Check PREFECT_API_URL, and that the block's package is installed, or write "
            f"./{reference} for a local folder."
        ) from error
    if not isinstance(block, WritableFileSystem):
        raise ResultStorageError(
            f"result_storage={reference!r} is a {type(block).__name__}, which can't store files."
        )
    return block


async def refuse_near_miss(choice: str) -> None:
    """Refuse a folder that was meant for a block, such as `GCS-bucket/name` or
    `gcs_bucket/name/more`; not one that exists.

    Raises:
        ResultStorageError: Its first part is a block type in another spelling, or with other parts
            behind it than a block has.
    """
    # Silently taken for a folder, its results would be missing in the next container, and be paid
    # for again.
    first, separator, _ = choice.partition("/")
    if not separator or first in _NO_TYPE or ":" in first or await anyio.Path(choice).is_dir():
        return
    await have_server()
    async with get_client() as client:
        types = {_plain(known.slug): known.slug for known in await client.read_block_types()}
    if slug := types.get(_plain(first)):
        raise ResultStorageError(
            f"result_storage={choice!r} is no saved block: {slug!r} is a block type, of which one "
            f"is named as {slug}/name, the name in lower case. Name the block so, or write "
            f"./{choice} for a local folder."
        )


def _plain(slug: str) -> str:
    return re.sub("[_-]", "", slug.strip().lower())


async def is_block_type(slug: str) -> bool:
    async with get_client() as client:
        try:
            await client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            return False
    return True


def _described(block: WritableFileSystem) -> str:
    if hasattr(block, "bucket_name"):
        return repr(f"s3://{block.bucket_name}/{getattr(block, 'bucket_folder', '')}")
    return f"{type(block).__name__} {getattr(block, 'basepath', '')!r}"


class BlockStore(ObjectStore):
    """Any other storage block, through its own methods.

    Blocks have no common error for what is not there. `probe` learns this one's, while it can be
    written and read.
    """

    def __init__(self, block: WritableFileSystem) -> None:
        self._block = block
        base = getattr(block, "basepath", None)
        self.identity = f"{type(block).__qualname__} {base or id(block)}"
        self._missing: Missing | None = None

    def resolve(self, path: str) -> str:
        """See `ObjectStore`."""
        resolve = getattr(self._block, "_resolve_path", None)
        return path if resolve is None else str(resolve(path))

    async def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        try:
            content: bytes = await call_explicitly_async_block_method(
                self._block, "read_path", (name,), {}
            )
        except Exception as error:
            if is_not_found(error) or Missing.of(error, name) == self._missing:
                raise FileNotFoundError(name) from error
            raise
        if not content:  # no record is empty
            raise FileNotFoundError(name)
        return content

    async def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        await call_explicitly_async_block_method(
            self._block, "write_path", (name,), {"content": content}
        )

    async def probe(self) -> None:
        """See `ObjectStore`; what is written stays there, under one name.

        Raises:
            ResultStorageError: An object that is not there can't be told from a failure.
        """
        await self.write_and_read(".fastroai-probe")
        self._missing = await self._learn()
        # Had it failed meanwhile, that would have been learnt.
        await self.write_and_read(".fastroai-probe")

    async def _learn(self) -> Missing | None:
        """How two reads of what nobody wrote fail."""
        # Twice, as a message may hold what is another each time, such as the id of a request.
        learnt = []
        for _ in range(2):
            name = f".fastroai-missing-{uuid4().hex}"
            try:
                await self.get(name)
            except FileNotFoundError:
                return None
            except Exception as error:
                learnt.append(Missing.of(error, name))
        if learnt[0] == learnt[1] and not learnt[0].is_a_refusal:
            return learnt[0]
        raise ResultStorageError(
            f"A {type(self._block).__name__} doesn't say whether an object is not there or can't "
            "be read, so that results would be paid for again. Use another storage, or have its "
            "read_path raise FileNotFoundError."
        )

    def is_transient(self, error: Exception) -> bool:
        """Always, except that what is refused here is refused again."""
        return not isinstance(error, ResultStorageError)


@dataclass(frozen=True, slots=True)
class Missing:
    """What a block raises for an object that is not there.

    Attributes:
        kind: Type of the error.
        text: Its message where the type is a general one, with the object's name left out.
    """

    kind: type[Exception]
    text: str | None

    @property
    def is_a_refusal(self) -> bool:
        """Whether the read of what is there may be refused in the same words."""
        return _REFUSAL.search(f"{self.kind.__name__} {self.text or ''}") is not None

    @classmethod
    def of(cls, error: Exception, name: str) -> Missing:
        """As told by the error that reading an object of this name raised."""
        kind = type(error)
        # `google.api_core.exceptions.NotFound` says it all, a `ValueError` does not.
        if re.search("not.?found|no.?such|missing", kind.__name__, re.IGNORECASE):
            return cls(kind, None)
        return cls(kind, str(error).replace(name, ""))


def is_not_found(error: BaseException | None) -> bool:
    """Whether an error was raised because of a `FileNotFoundError`."""
    while error is not None and not isinstance(error, FileNotFoundError):
        error = error.__cause__
    return error is not None
