"""Storage that can't keep results is named before anything is spent, with cause and remedy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect_aws import AwsClientParameters, AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr

from fastroai import Pipeline
from fastroai.errors import ResultStorageError, StepExecutionError
from fastroai.executors import PrefectExecutor
from fastroai.executors._prefect.run_storage import open_store
from fastroai.settings import load_settings
from tests.integration.models import Ask, CountingModel
from tests.support.s3 import S3Service
from tests.support.serving import serving

# Not a limit on speed: botocore's defaults take minutes where ours take seconds.
NOT_FOR_EVER = 30.0


@contextmanager
def forbidding(endpoint_url: str, method: str, *parts: str) -> Iterator[str]:
    """URL of a front that refuses one HTTP method with a 403 as S3 sends it, and passes on any
    other.

    Args:
        parts: It is refused only for paths that contain one of them. None: for all.
    """

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            refused = not parts or any(part in self.path for part in parts)
            if self.command == method and refused:
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

    with serving(Front) as url:
        yield url


async def probe(storage: Any) -> None:
    """As a run does it before its first step."""
    async with asyncio.timeout(NOT_FOR_EVER):
        store = await open_store(storage, load_settings())
        await store.probe()


def point_to(s3: S3Service, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in (s3.environment | changes).items():
        monkeypatch.setenv(name, value)


async def test_a_missing_bucket_is_named_before_anything_is_spent(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    with pytest.raises(ResultStorageError, match="s3://no-such-bucket/prefix") as caught:
        await probe("s3://no-such-bucket/prefix")
    assert "NoSuchBucket" in str(caught.value)
    assert "FASTROAI_RESULT_STORAGE" in str(caught.value)


async def test_missing_credentials_are_named_before_anything_is_spent(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    for name in ("FASTROAI_S3_ACCESS_KEY_ID", "FASTROAI_S3_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
        await probe(f"s3://{s3.bucket}/p")
    assert "NoCredentialsError" in str(caught.value)
    assert "the AWS credentials" in str(caught.value)


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_a_permission_that_is_missing_is_named_before_anything_is_spent(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch, method: str
):
    """A front that says what S3 says to one who may not do this, and passes the rest on."""
    with forbidding(s3.endpoint_url, method) as url:
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url)
        with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
            await probe(f"s3://{s3.bucket}/p")
    assert "AccessDenied" in str(caught.value)
    assert "may write, read and delete there" in str(caught.value)


async def test_credentials_that_may_not_list_are_refused_before_anything_is_spent(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    """To them S3 says of what is not there that it may not be read."""
    with forbidding(s3.endpoint_url, "GET", ".fastroai-missing") as url:
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url)
        with pytest.raises(ResultStorageError, match=r"AccessDenied.*s3:ListBucket"):
            await probe(f"s3://{s3.bucket}/p")


@pytest.mark.parametrize("probed", [True, False])
async def test_a_refused_read_never_says_that_nothing_is_there(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch, probed: bool
):
    """Or a record whose key was withdrawn (`kms:Decrypt`) would be paid for again."""
    with forbidding(s3.endpoint_url, "GET", "p/record") as url:
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url)
        store = await open_store(f"s3://{s3.bucket}/p", load_settings())
        if probed:
            await store.probe()
        with pytest.raises(ClientError):
            await store.read("record")


async def test_a_dead_endpoint_is_named_in_seconds(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
):
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=dead)
    with pytest.raises(ResultStorageError, match=f"s3://{s3.bucket}/p") as caught:
        await probe(f"s3://{s3.bucket}/p")
    assert dead in str(caught.value)
    assert "FASTROAI_S3_ENDPOINT_URL" in str(caught.value)


async def test_an_endpoint_that_never_answers_is_given_up(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url, FASTROAI_S3_READ_TIMEOUT="1")
        with pytest.raises(ResultStorageError, match="FASTROAI_S3_ENDPOINT_URL"):
            await probe(f"s3://{s3.bucket}/p")


async def test_a_block_that_sets_no_limits_gets_short_ones(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
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
            await probe(S3Bucket(bucket_name=s3.bucket, bucket_folder="p", credentials=credentials))


@pytest.mark.parametrize(
    "form",
    ["s3://", "s3:///prefix", "", "   ", "s3:/bucket/x", "s3-bucket/", "s3-bucket", 7],
    ids=repr,
)
async def test_a_wrong_form_is_refused_with_the_right_ones(form: Any):
    with pytest.raises(ResultStorageError, match="s3://bucket/prefix") as caught:
        await probe(form)
    assert repr(form) in str(caught.value)


@pytest.mark.usefixtures("prefect_api")
async def test_a_run_whose_storage_fails_is_refused_and_spends_nothing(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    point_to(s3, monkeypatch)
    model = CountingModel()
    executor = PrefectExecutor(result_storage="s3://no-such-bucket/prefix")
    pipeline = Pipeline("unkept", {"a": Ask(model.agent())}, executor=executor)
    with pytest.raises(ResultStorageError, match="s3://no-such-bucket/prefix"):
        await pipeline.execute({"topic": "t"}, None)
    assert model.calls == 0


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    "reference",
    ["s3-bucket/nobody-saved-this", "gcs-bucket/x", "remote-file-system/x", "no-such-type/x"],
)
async def test_a_missing_block_is_named_and_never_a_folder(reference: str, tmp_path: Path):
    with pytest.raises(ResultStorageError, match=reference) as caught:
        await probe(reference)
    assert "s3://bucket/prefix" in str(caught.value)
    assert f"./{reference}" in str(caught.value)
    assert not (tmp_path / reference).exists()


@pytest.mark.usefixtures("prefect_api")
async def test_any_saved_block_keeps_results_under_its_type_and_name(tmp_path: Path):
    await LocalFileSystem(basepath=str(tmp_path / "local")).save("kept", overwrite=True)
    await RemoteFileSystem(basepath="memory://saved-block").save("kept", overwrite=True)
    for reference in ("local-file-system/kept", "remote-file-system/kept"):
        store = await open_store(reference, load_settings())
        await store.probe()
        await store.write("ab" * 32, b'{"a":1}', "step")
        assert await store.read("ab" * 32) == b'{"a":1}'
        assert store.described == repr(reference)
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["ab" * 32]


@pytest.mark.usefixtures("prefect_api")
async def test_a_folder_of_two_parts_is_one_where_it_is_there_and_no_block_type(tmp_path: Path):
    for folder in ("data/results", "gcs-bucket/x"):
        (tmp_path / folder).mkdir(parents=True)
    await probe("data/results")
    await probe("./gcs-bucket/x")
    with pytest.raises(ResultStorageError, match="gcs-bucket/x"):
        await probe("gcs-bucket/x")


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    "reference", ["gcs-bucket/X", "GCS-bucket/x", "gcs_bucket/x", "gcs-bucket/x/y", "GcsBucket/x"]
)
async def test_a_near_miss_of_a_block_is_no_folder_unless_that_exists(
    reference: str, tmp_path: Path
):
    with pytest.raises(ResultStorageError, match="gcs-bucket/name") as caught:
        await probe(reference)
    assert repr(reference) in str(caught.value)
    assert not (tmp_path / reference).exists()
    (tmp_path / reference).mkdir(parents=True)
    await probe(reference)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("folder", ["data/Results", "data/results/deep", "./GCS-bucket/x"])
async def test_a_new_folder_that_is_no_near_miss_is_made(folder: str, tmp_path: Path):
    await probe(folder)
    assert (tmp_path / folder).is_dir()


async def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with pytest.raises(ResultStorageError, match=str(occupied)):
        await probe(str(occupied))


async def test_no_secret_is_in_the_message(s3: S3Service, monkeypatch: pytest.MonkeyPatch):
    point_to(s3, monkeypatch)
    with pytest.raises(ResultStorageError) as caught:
        await probe("s3://no-such-bucket/prefix")
    assert s3.secret_access_key not in str(caught.value)
    assert s3.access_key_id not in str(caught.value)


@pytest.mark.usefixtures("prefect_api")
async def test_what_was_paid_for_is_not_paid_again_while_its_records_are_refused(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    async def fail(prompt: str) -> str:
        raise ValueError(prompt)

    model, second = CountingModel(), CountingModel(fail)

    async def go_on() -> None:
        steps = {"a": Ask(model.agent()), "b": Ask(second.agent(), "a")}
        executor = PrefectExecutor(result_storage=f"s3://{s3.bucket}/p")
        pipeline = Pipeline("refused", steps, {"b": ["a"]}, executor=executor)
        await pipeline.execute({"topic": "t"}, None, run_key="refused")

    point_to(s3, monkeypatch)
    with pytest.raises(StepExecutionError):
        await go_on()
    with forbidding(s3.endpoint_url, "GET", *s3.keys()) as url:
        point_to(s3, monkeypatch, FASTROAI_S3_ENDPOINT_URL=url)
        with pytest.raises(StepExecutionError, match="AccessDenied"):
            await go_on()
    assert (model.calls, second.calls) == (1, 1)
