"""An S3 service on loopback (moto's server over HTTP) that counts what is asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

REGION = "us-east-1"
ACCESS_KEY_ID = "loopback-key-id"
SECRET_ACCESS_KEY = "loopback-secret"


@dataclass(frozen=True, slots=True)
class S3Request:
    """One HTTP request the service got."""

    method: str
    path: str
    """Without the query: `/bucket/key`."""
    query: str


@dataclass(frozen=True, slots=True)
class S3Service:
    """A bucket of one test on a loopback S3 service."""

    endpoint_url: str
    bucket: str
    client: S3Client
    access_key_id: str = ACCESS_KEY_ID
    secret_access_key: str = SECRET_ACCESS_KEY
    region: str = REGION
    _log: list[S3Request] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The `FASTROAI_*` variables that point result storage's endpoint and credentials here."""
        return {
            "FASTROAI_S3_ENDPOINT_URL": self.endpoint_url,
            "FASTROAI_S3_REGION": self.region,
            "FASTROAI_S3_ACCESS_KEY_ID": self.access_key_id,
            "FASTROAI_S3_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    @property
    def requests(self) -> list[S3Request]:
        """The requests for this bucket so far, this fixture's own `keys()` and `read()`
        included.
        """
        prefix = f"/{self.bucket}"
        return [r for r in tuple(self._log) if r.path == prefix or r.path.startswith(prefix + "/")]

    def count(self, method: str | None = None) -> int:
        """How many requests the bucket got, of one HTTP method or of all."""
        return sum(1 for r in self.requests if method in (None, r.method))

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of the objects under a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [o["Key"] for page in pages for o in page.get("Contents", [])]

    def results(self, prefix: str = "") -> list[str]:
        """The keys of the results of steps under a prefix: not of the requests that were answered
        within them.
        """
        return [key for key in self.keys(prefix) if not is_of_a_request(key)]

    def read(self, key: str) -> bytes:
        """The content of an object."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


def is_of_a_request(path: str) -> bool:
    """Whether a record is of a request that was answered within a step."""
    return "requests/" in path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, S3Client, list[S3Request]]]:
    """Endpoint URL of a loopback S3 service, a client, and the list it logs its requests in."""
    import boto3
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    log: list[S3Request] = []
    application = _logging(DomainDispatcherApplication(create_backend_app), log)
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    yield url, client, log
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def s3(
    s3_server: tuple[str, S3Client, list[S3Request]], monkeypatch: pytest.MonkeyPatch
) -> S3Service:
    """A new empty bucket on a loopback S3 service; its credentials are also in the usual AWS
    variables.
    """
    url, client, log = s3_server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    bucket = f"results-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    log.clear()
    return S3Service(endpoint_url=url, bucket=bucket, client=client, _log=log)


def _logging(
    application: Callable[..., Iterable[bytes]], log: list[S3Request]
) -> Callable[..., Iterable[bytes]]:
    def logged(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        log.append(
            S3Request(
                environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            )
        )
        return application(environ, start_response)

    return logged
