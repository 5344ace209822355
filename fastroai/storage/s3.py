"""S3 as an object store, through boto3.

Not through s3fs: a record is read or written by one request here, with a time limit of our own and
without botocore's retries, and boto3 comes with prefect-aws anyway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from ..retries import retry
from ..settings import FastroAISettings
from .object_store import CONNECTIONS, PAGE, ObjectStore, StoredObject, Threads

if TYPE_CHECKING:
    import boto3
    from botocore.exceptions import ClientError
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        DeleteTypeDef,
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
    )

T = TypeVar("T")

PAUSES = (0.2, 1.0)
"""Seconds before listing and deleting is tried again, where that may help."""

GONE = frozenset({"NoSuchKey", "404"})
"""S3's codes for an object that is not there."""
REFUSED = frozenset({"AccessDenied", "403"})
"""S3's codes for what is refused."""


class S3Store(ObjectStore):
    """A bucket, or a folder in it.

    Args:
        bucket: Its name.
        prefix: The folder.
        client: Gives boto3's client of S3; called in a thread, for each request.
        endpoint: Where the bucket is.
    """

    def __init__(
        self, bucket: str, prefix: str, client: Callable[[], S3Client], endpoint: str | None
    ) -> None:
        self.bucket = bucket
        self._prefix = PurePosixPath(prefix).as_posix() if prefix else ""
        self._client = client
        self.threads = Threads(abandon=True)
        self.identity = f"s3://{bucket}/{self._prefix} at {endpoint or 'AWS'}"

    def resolve(self, path: str) -> str:
        """See `ObjectStore`."""
        prefix = self._prefix
        if not prefix or path == prefix or path.startswith(prefix.rstrip("/") + "/"):
            return path
        return (PurePosixPath(prefix) / path).as_posix()

    async def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        key = self.resolve(name)
        with _as_not_found(key):
            return await self._ask(
                lambda client: client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            )

    async def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        key = self.resolve(name)
        await self._ask(lambda client: client.put_object(Bucket=self.bucket, Key=key, Body=content))

    async def probe(self) -> None:
        """See `ObjectStore`.

        Raises:
            PermissionError: The credentials may not list the bucket. To such S3 refuses the read of
                what is not there, too, so that results that may not be read would be paid again.
        """
        from botocore.exceptions import ClientError

        await super().probe()
        try:
            await self.get(f".fastroai-missing-{uuid4().hex}")
        except FileNotFoundError:
            return
        except ClientError as error:
            if _code(error) not in REFUSED:
                raise
            raise PermissionError(
                f"{error}. The credentials may not list the bucket {self.bucket!r}, so S3 does not "
                "say whether an object is not there or may not be read. Allow s3:ListBucket"
            ) from error

    def is_transient(self, error: Exception) -> bool:
        """Whether it is a silent or an overloaded server, rather than one that says no."""
        from botocore import exceptions as botocore

        if isinstance(error, botocore.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            return bool(status >= 500 or status == 429)
        passing = (botocore.HTTPClientError, botocore.ConnectionError, botocore.IncompleteReadError)
        refusals = (botocore.BotoCoreError, PermissionError)
        return isinstance(error, passing) or not isinstance(error, refusals)

    async def pages(self, folder: str, beginning: str = "") -> AsyncIterator[list[StoredObject]]:
        """See `ObjectStore`."""
        path = self.resolve(folder)
        prefix = (f"{path}/" if path else "") + beginning
        token: str | None = None
        while True:
            answer = await self._insist(partial(self._list, prefix, token))
            found = [
                StoredObject(listed["Key"], listed["Size"], listed["LastModified"])
                for listed in answer.get("Contents", ())
            ]
            # A key that ends with a slash stands for the folder itself.
            yield [stored for stored in found if stored.name]
            token = answer.get("NextContinuationToken")
            if token is None:
                return

    def _list(self, prefix: str, token: str | None, client: S3Client) -> ListObjectsV2OutputTypeDef:
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self.bucket,
            "Prefix": prefix,
            "Delimiter": "/",
            "MaxKeys": PAGE,
        }
        if token is not None:
            request["ContinuationToken"] = token
        return client.list_objects_v2(**request)

    async def peek(self, stored: StoredObject, size: int) -> tuple[bytes, datetime]:
        """See `ObjectStore`."""
        if not stored.size:  # has no first byte that could be asked for
            return b"", stored.modified

        def read(client: S3Client) -> tuple[bytes, datetime]:
            first = f"bytes=0-{size - 1}"
            answer = client.get_object(Bucket=self.bucket, Key=stored.path, Range=first)
            return answer["Body"].read(), answer["LastModified"]

        with _as_not_found(stored.path):
            return await self._insist(read)

    async def delete(self, paths: Sequence[str]) -> dict[str, str]:
        """See `ObjectStore`."""
        if not paths:
            return {}
        if len(paths) == 1:
            # Not as a list of one: some services that speak S3 lack the deletion of many.
            return await self._delete_one(paths[0])
        keys: DeleteTypeDef = {"Objects": [{"Key": path} for path in paths], "Quiet": True}
        answer = await self._insist(
            lambda client: client.delete_objects(Bucket=self.bucket, Delete=keys)
        )
        return {error["Key"]: _reason(error) for error in answer.get("Errors", ())}

    async def _delete_one(self, path: str) -> dict[str, str]:
        from botocore.exceptions import ClientError

        try:
            await self._insist(lambda client: client.delete_object(Bucket=self.bucket, Key=path))
        except ClientError as error:
            if self.is_transient(error):
                raise
            return {path: _reason(error.response.get("Error", {}))}
        return {}

    async def _insist(self, call: Callable[[S3Client], T]) -> T:
        def delay_after(error: Exception, failures: int) -> float | None:
            if failures > len(PAUSES) or not self.is_transient(error):
                return None
            return PAUSES[failures - 1]

        return await retry(lambda _: self._ask(call), delay_after)

    async def _ask(self, call: Callable[[S3Client], T]) -> T:
        """What a call gives, answers read within the thread that asks."""
        return await self.threads.run(lambda: call(self._client()))


@contextmanager
def _as_not_found(key: str) -> Iterator[None]:
    """Raise S3's error for an object that is not there as a `FileNotFoundError`."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if _code(error) in GONE:
            raise FileNotFoundError(key) from error
        raise


def _code(error: ClientError) -> str | None:
    return error.response.get("Error", {}).get("Code")


def _reason(error: Mapping[str, object]) -> str:
    return f"{error.get('Code')}: {error.get('Message')}"


def s3_store(url: str, settings: FastroAISettings) -> S3Store:
    """The store at `s3://bucket/prefix`, reached as the settings say."""
    parts = urlsplit(url)
    key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    client = partial(
        _client_of_settings,
        key_id.get_secret_value() if key_id else None,
        secret.get_secret_value() if secret else None,
        settings.s3_region,
        settings.s3_endpoint_url,
        settings.s3_connect_timeout,
        settings.s3_read_timeout,
    )
    return S3Store(parts.netloc, parts.path.strip("/"), client, settings.s3_endpoint_url)


@lru_cache(maxsize=16)
def _client_of_settings(
    key_id: str | None,
    secret: str | None,
    region: str | None,
    endpoint: str | None,
    connect_timeout: float,
    read_timeout: float,
) -> S3Client:
    """Kept, because making one takes 0.1 s."""
    import boto3

    session = boto3.Session(key_id, secret, region_name=region)
    return make_client(session, {"endpoint_url": endpoint}, connect_timeout, read_timeout)


def make_client(
    session: boto3.Session,
    options: Mapping[str, Any],
    connect_timeout: float,
    read_timeout: float,
) -> S3Client:
    """A client of S3 with short time limits where the options don't give their own."""
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        # The result store decides what is tried again, and for how long.
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
    )
    own = options.get("config")
    merged = config.merge(own) if own is not None else config
    return session.client("s3", **(dict(options) | {"config": merged}))
