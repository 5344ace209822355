"""`fastroai results prune`: what is old and ours goes, anything else stays, and what went is run
again.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.filesystems import LocalFileSystem

from fastroai import Pipeline, PipelineConfig, StepConfig
from fastroai.cli import main
from fastroai.errors import ResultStorageError
from fastroai.executors import PrefectExecutor
from fastroai.executors._prefect.run_storage import open_store
from fastroai.executors.stored_results import Pruned, prune_results
from fastroai.settings import load_settings
from fastroai.storage.signing import Signer
from tests.integration.models import Ask, CountingModel
from tests.support.s3 import S3Service
from tests.support.serving import serving
from tests.support.steps import Give

HOUR = timedelta(hours=1)
MONTH = timedelta(days=30)


@pytest.fixture
def in_s3(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}/results/team")
    return s3


def asking(model: CountingModel, folder: Path | None = None) -> Pipeline[Any, Any, Any]:
    executor = PrefectExecutor() if folder is None else PrefectExecutor(result_storage=folder)
    return Pipeline(
        "kept",
        {"a": Ask(model.agent())},
        config=PipelineConfig(cache_policy="inputs"),
        executor=executor,
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def age(folder: Path, by: timedelta) -> None:
    """Have all in it been written so much earlier."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            at = path.stat().st_mtime - by.total_seconds()
            os.utime(path, (at, at))


def result_of(name: str) -> bytes:
    """A result under this name, as it is stored."""
    metadata = {"storage_key": f"/somewhere/{name}", "serializer": {"type": "fastroai-json"}}
    record = json.dumps({"metadata": metadata, "result": "{}"}, separators=(",", ":")).encode()
    return Signer().close(name, record)


RECORD = b'{"result":"{}"}'


def counts(pruned: Pruned) -> tuple[int, int, int, int]:
    return pruned.results, pruned.requests, pruned.younger, pruned.others


async def results_of_their_own_flows(folder: Path) -> None:
    """Results of flows that are no pipelines, under names as ours are."""
    storage = LocalFileSystem(basepath=str(folder))
    await storage.save("foreign", overwrite=True)

    @task(
        persist_result=True,
        result_storage=storage,
        result_serializer="json",
        cache_key_fn=lambda *_: "ab" * 32,
    )
    async def json_of_theirs() -> int:
        return 1

    @task(persist_result=True, result_storage=storage, cache_policy=INPUTS)
    async def pickle_of_theirs(number: int) -> int:
        return number

    @flow
    async def theirs() -> None:
        await json_of_theirs()
        await pickle_of_theirs(2)

    await theirs()


@pytest.mark.usefixtures("prefect_api")
async def test_only_old_records_of_ours_are_deleted_from_a_folder_that_others_use_too(
    tmp_path: Path,
):
    folder = tmp_path / "r"
    await results_of_their_own_flows(folder)
    (folder / ("cd" * 32)).write_bytes(b"\x1f\x8bno gzip")
    (folder / ("de" * 32)).write_bytes(b"")
    (folder / ("ef" * 32)).write_bytes(b'{"seal":"none","metadata":{}}')
    (folder / "requests").mkdir()
    (folder / "requests" / ("ab" * 32 + "-1")).write_bytes(b'{"format":1,"place":"other-1"}')
    (folder / "notes.txt").write_bytes(result_of("notes.txt"))
    (folder / "deeper").mkdir()
    (folder / "deeper" / ("ab" * 32)).write_bytes(result_of("ab" * 32))
    (tmp_path / "outside").write_bytes(result_of("aa" * 32))
    (folder / ("aa" * 32)).symlink_to(tmp_path / "outside")
    foreign = files(folder)
    assert len(foreign) == 9
    assert sum(re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", name) is not None for name in foreign) == 6
    await asking(CountingModel(), folder).execute({"topic": "old"}, None)
    assert len(files(folder) - foreign) == 2
    age(folder, MONTH + HOUR)
    await asking(CountingModel(), folder).execute({"topic": "new"}, None)
    young = files(folder) - foreign
    pruned = await prune_results(older_than=MONTH, storage=folder)
    assert counts(pruned) == (1, 1, 2, 7)  # not the symbolic link, and not what is deeper
    assert pruned.failures == {}
    assert files(folder) > foreign
    assert len(files(folder)) == len(foreign) + 2
    assert files(folder) - foreign < young
    again = await prune_results(older_than=MONTH, storage=folder)
    assert counts(again) == (0, 0, 2, 7)


@pytest.mark.usefixtures("prefect_api")
async def test_a_pruned_step_runs_again_and_one_that_was_not_is_replayed(tmp_path: Path):
    model = CountingModel()
    pipeline = asking(model, tmp_path / "r")
    await pipeline.execute({"topic": "old"}, None)
    age(tmp_path / "r", 2 * HOUR)
    await pipeline.execute({"topic": "new"}, None)
    assert model.calls == 2
    pruned = await prune_results(older_than=HOUR, storage=str(tmp_path / "r"))
    assert counts(pruned) == (1, 1, 2, 0)
    replayed = await pipeline.execute({"topic": "new"}, None)
    assert model.calls == 2
    assert replayed.usage.total_cost_usd == 0
    again = await pipeline.execute({"topic": "old"}, None)
    assert model.calls == 3
    assert again.usage.total_cost_usd > 0


@pytest.mark.usefixtures("prefect_api")
async def test_errors_of_failed_steps_and_results_under_prefects_own_keys_are_deleted_too(
    tmp_path: Path,
):
    pipeline: Pipeline[Any, Any, Any] = Pipeline(
        "named",
        {"keyed": Give("k"), "fails": Give(RuntimeError("no"))},
        {"fails": ["keyed"]},
        step_configs={"keyed": StepConfig(cache_policy=INPUTS)},
        executor=PrefectExecutor(result_storage=tmp_path / "r"),
    )
    with pytest.raises(Exception, match="no"):
        await pipeline.execute({})
    assert len(files(tmp_path / "r")) == 2
    age(tmp_path / "r", MONTH)
    pruned = await prune_results(older_than=HOUR, storage=tmp_path / "r")
    assert counts(pruned) == (2, 0, 0, 0)
    assert files(tmp_path / "r") == set()


async def test_what_is_exactly_as_old_as_that_stays(tmp_path: Path):
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    at = (now - MONTH).timestamp()
    for name, seconds in (("aa" * 32, -1), ("bb" * 32, 0), ("cc" * 32, 1)):
        (tmp_path / name).write_bytes(result_of(name))
        os.utime(tmp_path / name, (at + seconds, at + seconds))
    pruned = await prune_results(older_than=MONTH, storage=tmp_path, now=now)
    assert counts(pruned) == (1, 0, 2, 0)
    assert files(tmp_path) == {"bb" * 32, "cc" * 32}


@pytest.mark.parametrize("uri", ["s3://{}/results/team", "s3://{}", "s3://{}/requests"])
@pytest.mark.parametrize(
    "options", [{}, {"SECRET": "x" * 16, "COMPRESSION": "gzip"}], ids=["plain", "signed, gzip"]
)
async def test_old_records_are_deleted_from_a_bucket_and_nothing_beside_them(
    in_s3: S3Service, uri: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", uri.format(in_s3.bucket))
    for name, value in options.items():
        monkeypatch.setenv(f"FASTROAI_RESULT_{name}", value)
    folder = "/".join(uri.split("/")[3:])
    beside = {
        f"{folder}-2/{'ab' * 32}": result_of("ab" * 32),
        f"{folder}/deeper/{'ab' * 32}": result_of("ab" * 32),
    }
    within = {
        f"{folder}/{'ab' * 32}".lstrip(
            "/"
        ): b'{"metadata":{"serializer":{"type":"pickle"}},"result":""}'
    }
    for key, content in (beside | within).items():
        in_s3.client.put_object(Bucket=in_s3.bucket, Key=key.lstrip("/"), Body=content)
    foreign = set(in_s3.keys())
    store = await open_store(load_settings().result_storage, load_settings())
    await store.write("ee" * 32, RECORD, "step")
    await store.write(f"requests/{'ee' * 32}-1", RECORD, None)
    ours = set(in_s3.keys()) - foreign
    assert len(ours) == 2
    young = await prune_results(older_than=HOUR)
    assert counts(young) == (0, 0, 3, 0)
    # Who prunes need not know the secret.
    monkeypatch.delenv("FASTROAI_RESULT_SECRET", raising=False)
    later = datetime.now(UTC) + 2 * HOUR
    size = sum(len(in_s3.read(key)) for key in ours)
    looked = await prune_results(older_than=HOUR, now=later, dry_run=True)
    assert counts(looked) == (1, 1, 0, 1)
    assert looked.size == size
    assert set(in_s3.keys()) == foreign | ours
    pruned = await prune_results(older_than=HOUR, now=later)
    assert (counts(pruned), pruned.size, pruned.failures) == (counts(looked), size, {})
    assert set(in_s3.keys()) == foreign
    with pytest.raises(FileNotFoundError):
        await store.read("ee" * 32)


async def test_more_records_than_one_request_lists_are_deleted_in_batches(
    in_s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastroai.storage.s3.PAGE", 50)
    names = [f"{number:064x}" for number in range(80)]

    def put(name: str) -> None:
        key = f"results/team/{name}"
        in_s3.client.put_object(Bucket=in_s3.bucket, Key=key, Body=result_of(name))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, names))
    before = len(in_s3.requests)
    pruned = await prune_results(older_than=HOUR, now=datetime.now(UTC) + 2 * HOUR)
    asked = in_s3.requests[before:]
    assert counts(pruned) == (80, 0, 0, 0)
    assert in_s3.keys() == []
    # two pages, and the folders of requests and items
    assert sum("list-type=2" in request.query for request in asked) == 4
    assert [request.query for request in asked if request.method == "POST"] == ["delete", "delete"]
    assert len(asked) == 4 + 80 + 2


@contextmanager
def refusing(endpoint_url: str, unread: str, undeleted: str) -> Iterator[str]:
    """URL of a front of S3 that lets one object not be read, and another not be deleted."""

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if unread in self.path:
                status, content = (
                    403,
                    b"<Error><Code>AccessDenied</Code><Message>not this one</Message></Error>",
                )
            else:
                kept = re.search(rb"<Object><Key>[^<]*%b</Key></Object>" % undeleted.encode(), body)
                passed = body.replace(kept[0], b"") if kept else body
                left_out = ("content-length", "content-md5")
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in left_out and "checksum" not in name.lower()
                }
                asked = httpx.request(
                    self.command, endpoint_url + self.path, content=passed, headers=headers
                )
                status, content = asked.status_code, asked.content
                if kept:
                    error = (
                        f"<Error><Key>p/{undeleted}</Key><Code>AccessDenied</Code>"
                        "<Message>held</Message></Error>"
                    )
                    content = (
                        b'<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                        + error.encode()
                        + b"</DeleteResult>"
                    )
                headers = {
                    name: value for name, value in asked.headers.items() if name == "last-modified"
                }
                return self._send(status, content, headers)
            return self._send(status, content, {})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815  # the names http.server looks for

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # the base's name

    with serving(Front) as url:
        yield url


async def test_an_object_that_cannot_be_read_or_deleted_is_named_and_the_others_are_deleted(
    in_s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    unread, undeleted, plain = "aa" * 32, "bb" * 32, "cc" * 32
    for name in (unread, undeleted, plain):
        in_s3.client.put_object(Bucket=in_s3.bucket, Key=f"p/{name}", Body=result_of(name))
    with refusing(in_s3.endpoint_url, unread, undeleted) as url:
        monkeypatch.setenv("FASTROAI_S3_ENDPOINT_URL", url)
        storage = f"s3://{in_s3.bucket}/p"
        pruned = await prune_results(
            older_than=HOUR, storage=storage, now=datetime.now(UTC) + 2 * HOUR
        )
    assert in_s3.keys() == [f"p/{unread}", f"p/{undeleted}"]
    assert counts(pruned) == (1, 0, 0, 0)
    assert pruned.size == len(result_of(plain))
    assert set(pruned.failures) == {f"p/{unread}", f"p/{undeleted}"}
    assert "not this one" in pruned.failures[f"p/{unread}"]
    assert pruned.failures[f"p/{undeleted}"] == "AccessDenied: held"


async def test_storage_that_cannot_be_listed_is_one_clear_error(
    in_s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(
        ResultStorageError,
        match=r"'s3://no-such-bucket/p'.*NoSuchBucket.*may list, read and delete",
    ):
        await prune_results(older_than=HOUR, storage="s3://no-such-bucket/p")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultStorageError, match="file"):
        await prune_results(older_than=HOUR, storage=tmp_path / "file")
    monkeypatch.setenv("FASTROAI_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ResultStorageError, match=r"team'.*127\.0\.0\.1:9.*FASTROAI_S3_ENDPOINT_URL"
    ):
        await prune_results(older_than=HOUR)


async def test_the_command_says_what_it_deletes_and_what_it_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "r"
    command = ["results", "prune", "--older-than", "30d", "--storage", str(folder)]

    async def run(*options: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, [*command, *options])
        return code, capsys.readouterr().out

    nothing = f"No results or recorded requests are stored in {str(folder)!r}.\n"
    assert await run() == (0, nothing)
    assert not folder.exists()
    folder.mkdir()
    assert await run() == (0, nothing)
    for name in ("aa" * 32, "bb" * 32):
        (folder / name).write_bytes(result_of(name))
    (folder / "notes.txt").write_text("mine")
    code, said = await run()
    assert code == 0
    assert said.startswith(f"Nothing was deleted from {str(folder)!r}")
    assert "2 younger ones stayed." in said
    age(folder, MONTH + HOUR)
    size = 2 * len(result_of("aa" * 32))
    code, said = await run("--dry-run")
    assert code == 0
    assert said.startswith(
        f"Would delete 2 results and 0 recorded requests, {size} bytes, from {str(folder)!r}"
    )
    assert "1 other object stayed" in said
    code, found = await run("--json")
    pruned = json.loads(found)
    assert (code, pruned["results"], pruned["requests"], pruned["size"]) == (0, 2, 0, size)
    assert pruned["dry_run"] is False
    assert files(folder) == {"notes.txt"}


@pytest.mark.parametrize(
    ("given", "why"),
    [("59m", "1h or more"), ("0d", "1h or more"), ("30", "24h"), ("999999w", "too large")],
)
async def test_an_age_that_is_too_low_or_none_is_refused(
    given: str, why: str, capsys: pytest.CaptureFixture[str]
):
    assert (
        await asyncio.to_thread(main, ["results", "prune", "--older-than", given, "--storage", "r"])
        == 2
    )
    said = capsys.readouterr().err
    assert repr(given) in said
    assert why in said
