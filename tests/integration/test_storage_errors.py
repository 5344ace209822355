"""Storage that can't keep results ends a run before it spends anything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect_aws import AwsClientParameters, AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr

from fastroai import Pipeline
from fastroai.errors import ResultStorageError, SettingsError
from fastroai.executors import PrefectExecutor
from tests.integration.models import Ask, CountingModel
from tests.support.s3 import S3Service

pytestmark = pytest.mark.usefixtures("prefect_api")

# Not a limit on speed: botocore's defaults take minutes where ours take seconds.
NOT_FOR_EVER = 30.0


@pytest.fixture
def model() -> CountingModel:
    return CountingModel()


@contextmanager
def forbidding(endpoint_url: str, method: str) -> Iterator[str]:
    """URL of a front that refuses one HTTP method with a 403 as S3 sends it, and passes on any
    other.
    """

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == method:
                status, content = (
                    403,
                    b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
                )
            else:
                asked = httpx.request(
                    self.command, endpoint_url + self.path, content=body, headers=dict(self.headers)
                )
                status, content = asked.status_code, asked.content
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_DELETE = _answer  # noqa: N815  # the names http.server looks for

        def handle_expect_100(self) -> bool:
            self.send_response_only(100)
            self.end_headers()
            return True

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # the base's name

    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def run_with(model: CountingModel, storage: Any) -> None:
    import asyncio

    executor = PrefectExecutor(result_storage=storage)
    pipeline = Pipeline("unkept", {"a": Ask(model.agent())}, executor=executor)
    async with asyncio.timeout(NOT_FOR_EVER):
        await pipeline.execute({"topic": "t"}, None)


def point_to(s3: S3Service, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (s3.environment | changes).items():
        monkeypatch.setenv(name, value)


async def test_a_missing_bucket_is_named_before_anything_is_spent(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    with pytest.raises(ResultStorageError, match="s3://no-such-bucket/prefix") as caught:
        await run_with(model, "s3://no-such-bucket/prefix")
    assert "NoSuchBucket" in str(caught.value)
    assert "FASTROAI_RESULT_STORAGE" in str(caught.value)
    assert model.calls == 0


async def test_missing_credentials_are_named_before_anything_is_spent(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    for name in ("FASTROAI_S3_ACCESS_KEY_ID", "FASTROAI_S3_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
        await run_with(model, f"s3://{s3.bucket}/p")
    assert "NoCredentialsError" in str(caught.value)
    assert "the AWS credentials" in str(caught.value)
    assert model.calls == 0


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_a_permission_that_is_missing_is_named_before_anything_is_spent(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch, method: str
):
    """A front that says what S3 says to one who may not do this, and passes the rest on."""
    with forbidding(s3.endpoint_url, method) as url:
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url)
        with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
            await run_with(model, f"s3://{s3.bucket}/p")
    assert "AccessDenied" in str(caught.value)
    assert "may write, read and delete there" in str(caught.value)
    assert model.calls == 0


async def test_a_dead_endpoint_is_named_in_seconds(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
):
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=dead)
    with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
        await run_with(model, f"s3://{s3.bucket}/p")
    assert dead in str(caught.value)
    assert "FASTROAI_S3_ENDPOINT_URL" in str(caught.value)
    assert model.calls == 0


async def test_an_endpoint_that_never_answers_is_given_up(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url, FASTROAI_S3_READ_TIMEOUT="1")
        with pytest.raises(ResultStorageError, match="FASTROAI_S3_ENDPOINT_URL"):
            await run_with(model, f"s3://{s3.bucket}/p")
    assert model.calls == 0


async def test_a_block_that_sets_no_limits_gets_short_ones(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    """botocore waits 60 s for an answer, five times."""
    monkeypatch.setenv("FASTROAI_S3_READ_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        credentials = AwsCredentials(
            aws_access_key_id=s3.access_key_id,
            aws_secret_access_key=SecretStr(s3.secret_access_key),
            region_name=s3.region,
            aws_client_parameters=AwsClientParameters(endpoint_url=url),
        )
        with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p"):
            await run_with(
                model, S3Bucket(bucket_name=s3.bucket, bucket_folder="p", credentials=credentials)
            )
    assert model.calls == 0


@pytest.mark.parametrize(
    "form",
    [
        "gs://bucket/x",
        "s3://",
        "s3:///prefix",
        "",
        "   ",
        "file:///tmp/x",
        "s3:/bucket/x",
        "s3-bucket/",
        "s3-bucket",
        7,
    ],
    ids=repr,
)
async def test_a_wrong_form_is_refused_with_the_right_ones(model: CountingModel, form: Any):
    with pytest.raises(ResultStorageError, match="s3://bucket/prefix") as caught:
        await run_with(model, form)
    assert repr(form) in str(caught.value)
    assert model.calls == 0


async def test_a_missing_block_is_named_with_what_to_do(model: CountingModel):
    with pytest.raises(ResultStorageError, match="s3-bucket/nobody-saved-this") as caught:
        await run_with(model, "s3-bucket/nobody-saved-this")
    assert "s3://bucket/prefix" in str(caught.value)
    assert model.calls == 0


async def test_wrong_storage_in_the_variable_is_refused_too(
    model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", "gs://bucket/x")
    with pytest.raises(SettingsError, match=r"FASTROAI_RESULT_STORAGE=.gs://bucket/x"):
        await Pipeline("unkept", {"a": Ask(model.agent())}).execute({}, None)
    assert model.calls == 0


async def test_a_file_where_the_folder_should_be_is_named(model: CountingModel, tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with pytest.raises(ResultStorageError, match=str(occupied)):
        await run_with(model, str(occupied))
    assert model.calls == 0


async def test_no_secret_is_in_the_message(
    s3: S3Service, model: CountingModel, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    with pytest.raises(ResultStorageError) as caught:
        await run_with(model, "s3://no-such-bucket/prefix")
    assert s3.secret_access_key not in str(caught.value)
    assert s3.access_key_id not in str(caught.value)
