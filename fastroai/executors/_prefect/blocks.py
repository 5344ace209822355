"""Where results go: S3 through prefect-aws, a saved block, or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import aget_default_result_storage

from ...errors import ResultStorageError
from ...settings import STORAGE_FORMS, FastroAISettings, names_storage

if TYPE_CHECKING:
    from prefect_aws.s3 import S3Bucket


async def resolve_storage(choice: Any, settings: FastroAISettings) -> WritableFileSystem:
    """The storage for `s3://bucket/prefix`, `s3-bucket/block-name`, a folder, or a block; None: the
    flow's.

    Raises:
        ResultStorageError: The choice has none of these forms, or the block can't be loaded.
    """
    if choice is None:
        return await _storage_of_the_flow()
    if isinstance(choice, WritableFileSystem):
        return choice
    if isinstance(choice, Path):
        return _folder(choice)
    if not isinstance(choice, str) or not names_storage(choice):
        raise ResultStorageError(
            f"result_storage={choice!r}: {STORAGE_FORMS}, or a Prefect storage block."
        )
    if choice.startswith("s3://"):
        return _s3_bucket(choice, settings)
    if choice.startswith("s3-bucket/"):
        return await _saved_block(choice)
    return _folder(Path(choice))


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
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    credentials = AwsCredentials(
        aws_access_key_id=key_id.get_secret_value() if key_id else None,
        aws_secret_access_key=secret,
        region_name=settings.s3_region,
        aws_client_parameters=AwsClientParameters(endpoint_url=settings.s3_endpoint_url),
    )
    return S3Bucket(
        bucket_name=parts.netloc, bucket_folder=parts.path.strip("/"), credentials=credentials
    )


async def _saved_block(reference: str) -> WritableFileSystem:
    import prefect_aws  # noqa: F401  # registers the block type

    try:
        block = await Block.aload(reference)
    except ValueError as error:
        raise ResultStorageError(
            f"result_storage={reference!r}: Prefect has no such block ({error}). Create it, or "
            "name a bucket as s3://bucket/prefix."
        ) from error
    if not isinstance(block, WritableFileSystem):
        raise ResultStorageError(
            f"result_storage={reference!r} is a {type(block).__name__}, which can't keep files."
        )
    return block


def describe_storage(choice: Any, storage: WritableFileSystem) -> str:
    """A storage as people know it: as they chose it, or as what it is where they chose none."""
    if choice is not None and not isinstance(choice, Block):
        return repr(str(choice))
    if hasattr(storage, "bucket_name"):
        return repr(f"s3://{storage.bucket_name}/{getattr(storage, 'bucket_folder', '')}")
    return f"{type(storage).__name__} {getattr(storage, 'basepath', '')!r}"
