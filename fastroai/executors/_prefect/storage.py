"""Where results go: S3 through prefect-aws, a saved block, or a folder; probed before a run spends anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import anyio.to_thread
from prefect._internal.compatibility.blocks import call_explicitly_async_block_method
from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import aget_default_result_storage

from ...errors import ResultStorageError
from ...settings import FastroAISettings
from .results import SERIALIZER

if TYPE_CHECKING:
    from prefect_aws.s3 import S3Bucket

PROBE = b"fastroai: this storage can be written and read"


class StepStorage(WritableFileSystem):
    """Step results in another storage; what is read there is believed only if it is a record of ours.

    Prefect decodes a record by the serializer that the record names, so that one that somebody planted could run code.
    Here any other is as good as missing.
    """

    _block_type_name = "fastroai step results"

    inner: Any

    def _resolve_path(self, path: str) -> Any:
        resolve = getattr(self.inner, "_resolve_path", None)
        return None if resolve is None else resolve(path)

    async def read_path(self, path: str) -> bytes:
        """The record at a path.

        Raises:
            ValueError: What is there is no record of ours.
        """
        content: bytes = await call_explicitly_async_block_method(self.inner, "read_path", (path,), {})
        if json.loads(content)["metadata"]["serializer"] != {"type": SERIALIZER}:
            raise ValueError(f"{path!r} was not written as a step's result")
        return content

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a record."""
        await call_explicitly_async_block_method(self.inner, "write_path", (path,), {"content": content})


async def resolve_storage(choice: Any, settings: FastroAISettings) -> WritableFileSystem:
    """The storage for `s3://bucket/prefix`, `s3-bucket/block-name`, a folder, or a block; None: the flow's.

    Raises:
        ResultStorageError: The choice has none of these forms, or the block can't be loaded.
    """
    if choice is None:
        return await _storage_of_the_flow()
    if isinstance(choice, WritableFileSystem):
        return choice
    if isinstance(choice, Path):
        return _folder(choice)
    if not isinstance(choice, str) or not choice.strip():
        raise ResultStorageError(f"result_storage={choice!r}: {_FORMS}")
    if choice.startswith("s3://"):
        return _s3_bucket(choice, settings)
    if choice.startswith("s3-bucket/") and choice != "s3-bucket/":
        return await _saved_block(choice)
    # A near miss must not become a folder of that name; one can still be given as ./name.
    if re.match(r"s3[:-]|[a-z][a-z0-9+.-]*:/", choice, re.IGNORECASE):
        raise ResultStorageError(f"result_storage={choice!r}: {_FORMS}")
    return _folder(Path(choice))


_FORMS = "give s3://bucket/prefix, s3-bucket/block-name, a local folder, or a Prefect storage block."


async def _storage_of_the_flow() -> WritableFileSystem:
    context = FlowRunContext.get()
    own = context.result_store.result_storage if context is not None else None
    return own if own is not None else await aget_default_result_storage()


def _folder(path: Path) -> LocalFileSystem:
    return LocalFileSystem(basepath=str(path.expanduser().absolute()))


def _s3_bucket(uri: str, settings: FastroAISettings) -> S3Bucket:
    from prefect_aws import AwsClientParameters, AwsCredentials
    from prefect_aws.s3 import S3Bucket

    parts = urlsplit(uri)
    if not parts.netloc:
        raise ResultStorageError(f"result_storage={uri!r} names no bucket: {_FORMS}")
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    credentials = AwsCredentials(
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret,
        region_name=settings.s3_region,
        aws_client_parameters=AwsClientParameters(
            endpoint_url=settings.s3_endpoint_url,
            config={
                "connect_timeout": settings.s3_connect_timeout,
                "read_timeout": settings.s3_read_timeout,
                # A dead endpoint costs one connection attempt, not the 20 s of botocore's defaults.
                "retries": {"total_max_attempts": 2, "mode": "standard"},
                "max_pool_connections": 50,
            },
        ),
    )
    return S3Bucket(bucket_name=parts.netloc, bucket_folder=parts.path.strip("/"), credentials=credentials)


async def _saved_block(reference: str) -> WritableFileSystem:
    import prefect_aws  # noqa: F401  # registers the block type

    try:
        block = await Block.aload(reference)
    except ValueError as error:
        raise ResultStorageError(
            f"result_storage={reference!r}: Prefect has no such block ({error}). Create it, or name a bucket as "
            "s3://bucket/prefix."
        ) from error
    if not isinstance(block, WritableFileSystem):
        raise ResultStorageError(f"result_storage={reference!r} is a {type(block).__name__}, which can't keep files.")
    return block


async def probe_storage(storage: WritableFileSystem, described: str) -> None:
    """Write, read and delete a small object.

    Raises:
        ResultStorageError: One of these failed. Names the storage, the cause and the remedy.
    """
    name = f".fastroai-probe-{uuid4().hex}"
    try:
        if hasattr(storage, "bucket_name"):
            await anyio.to_thread.run_sync(_probe_bucket, storage, name)
        else:
            await _probe_files(storage, name)
    except Exception as error:
        raise ResultStorageError(
            f"Results can't be kept at {described}: {type(error).__name__}: {error}. Nothing was run or spent. "
            "Check that the storage exists, can be reached, and that its credentials may write, read and delete there "
            "(FASTROAI_RESULT_STORAGE, FASTROAI_S3_ENDPOINT_URL, the AWS credentials), or unset "
            "FASTROAI_RESULT_STORAGE to keep results in a local folder."
        ) from error


def _probe_bucket(bucket: Any, name: str) -> None:
    client = bucket.credentials.get_s3_client()
    key = f"{bucket.bucket_folder.rstrip('/')}/{name}".lstrip("/")
    client.put_object(Bucket=bucket.bucket_name, Key=key, Body=PROBE)
    _check_probe(client.get_object(Bucket=bucket.bucket_name, Key=key)["Body"].read())
    client.delete_object(Bucket=bucket.bucket_name, Key=key)


async def _probe_files(storage: Any, name: str) -> None:
    written = await call_explicitly_async_block_method(storage, "write_path", (name,), {"content": PROBE})
    _check_probe(await call_explicitly_async_block_method(storage, "read_path", (name,), {}))
    if isinstance(storage, LocalFileSystem):
        await anyio.Path(written).unlink()


def _check_probe(content: bytes) -> None:
    if content != PROBE:
        raise OSError(f"read back {content[:60]!r} instead of what was written")


def describe_storage(choice: Any) -> str:
    """A storage as people know it."""
    if isinstance(choice, Block):
        name = getattr(choice, "bucket_name", None) or getattr(choice, "basepath", None)
        return f"{type(choice).__name__} {name!r}"
    return repr(str(choice))
