"""Results in S3 over HTTP, in a saved block and in folders: where they go, and what a second run
costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.cache_policies import INPUTS
from prefect_aws import AwsClientParameters, AwsCredentials
from prefect_aws.s3 import S3Bucket
from pydantic import SecretStr

from fastroai import Pipeline, StepConfig
from fastroai.executors import PrefectExecutor
from fastroai.settings import load_settings
from fastroai.storage.location import open_object_store
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import read_run
from tests.support.s3 import S3Service, is_of_a_request

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def in_s3(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """Result storage is the bucket, as an operator sets it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}/results/team")
    return s3


def two_steps(
    model: CountingModel, *, policy: Any = "inputs", **options: Any
) -> Pipeline[Any, Any, Any]:
    agent = model.agent(name="reader")
    config = StepConfig(cache_policy=policy)
    return Pipeline(
        "kept",
        {"read": Ask(agent), "sum": Ask(agent, "read")},
        {"sum": ["read"]},
        step_configs={"read": config, "sum": config},
        **options,
    )


def block(s3: S3Service, folder: str = "") -> S3Bucket:
    credentials = AwsCredentials(
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=SecretStr(s3.secret_access_key),
        region_name=s3.region,
        aws_client_parameters=AwsClientParameters(endpoint_url=s3.endpoint_url),
    )
    return S3Bucket(bucket_name=s3.bucket, bucket_folder=folder, credentials=credentials)


async def test_results_are_objects_under_the_prefix(in_s3: S3Service):
    model = CountingModel()
    await two_steps(model).execute({"topic": "t"}, None)
    keys = in_s3.results()
    assert len(keys) == 2
    assert all(key.startswith("results/team/") for key in keys)
    assert all(b"answer:" in in_s3.read(key) for key in keys)


@pytest.mark.parametrize(
    "policy", ["inputs", pytest.param(INPUTS, marks=pytest.mark.long)], ids=["inputs", "INPUTS"]
)
async def test_a_second_run_with_the_same_input_sends_nothing(in_s3: S3Service, policy: Any):
    model = CountingModel()
    first = await two_steps(model, policy=policy).execute({"topic": "t"}, None)
    assert model.calls == 2
    second = await two_steps(model, policy=policy).execute({"topic": "t"}, None)
    assert model.calls == 2
    assert second.output == first.output
    assert second.run_id != first.run_id
    run = await read_run(second.run_id, tasks=2, artifacts=3)
    assert {t.state_name for t in run.task_runs.values()} == {"Cached"}
    for step_id in ("read", "sum"):
        [row] = run.rows(step_id)
        assert (row["state"], row["requests"], row["replayed"]) == ("replayed", 0, 1)
        assert (row["cost_usd"], row["saved_usd"]) == ("0", str(PRICE))
        assert (row["input_tokens"], row["output_tokens"]) == (0, 0)
    assert {row["state"] for row in run.rows()} == {"replayed"}
    assert second.usage.total_cost_usd == 0
    assert second.usage.total_replayed_cost_usd == 2 * PRICE


async def test_the_edges_are_there_also_when_both_steps_are_cached(in_s3: S3Service):
    model = CountingModel()
    for _ in range(2):
        result = await two_steps(model).execute({"topic": "t"}, None)
    run = await read_run(result.run_id, tasks=2)
    assert run.edges() == {("read", "sum")}


async def test_a_changed_input_is_a_miss(in_s3: S3Service):
    model = CountingModel()
    await two_steps(model).execute({"topic": "one"}, None)
    await two_steps(model).execute({"topic": "two"}, None)
    assert model.calls == 4


@pytest.mark.long
async def test_a_changed_prompt_is_a_miss(in_s3: S3Service):
    model = CountingModel()
    for prompt in ("Be short.", "Be long."):
        agent = model.agent(system_prompt=prompt)
        await Pipeline(
            "prompted", {"a": Ask(agent)}, step_configs={"a": StepConfig(cache_policy="inputs")}
        ).execute({"topic": "t"}, None)
    assert model.calls == 2


@pytest.mark.long
async def test_without_a_policy_another_run_pays_again(in_s3: S3Service):
    model = CountingModel()
    for _ in range(2):
        await two_steps(model, policy=None).execute({"topic": "t"}, None)
    assert model.calls == 4


@pytest.mark.parametrize(
    "options",
    [{"RESULT_SECRET": "x" * 16, "RESULT_COMPRESSION": "gzip"}],
    ids=["signed"],
)
async def test_what_one_step_asks_of_s3(
    in_s3: S3Service, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """Per run four requests of the probe; per step a read and a write for a miss, one read for a
    hit.

    And a write for each request that was answered within it.
    """
    for name, value in options.items():
        monkeypatch.setenv(f"FASTROAI_{name}", value)
    model = CountingModel()
    agent = model.agent()
    pipeline = Pipeline(
        "counted", {"a": Ask(agent)}, step_configs={"a": StepConfig(cache_policy="inputs")}
    )
    asked = []
    for _ in range(2):
        before = in_s3.count()
        await pipeline.execute({"topic": "t"}, None)
        asked.append([request.method for request in in_s3.requests[before:]])
    assert model.calls == 1
    probe = ["PUT", "GET", "DELETE", "GET"]
    assert asked == [[*probe, "GET", "PUT", "PUT"], [*probe, "GET"]]
    [answered] = [r for r in in_s3.requests if r.method == "PUT" and is_of_a_request(r.path)]
    assert answered.path.startswith(f"/{in_s3.bucket}/results/team/requests/")


async def test_there_are_connections_for_many_steps_at_once(
    in_s3: S3Service, caplog: pytest.LogCaptureFixture
):
    objects = open_object_store(f"s3://{in_s3.bucket}/results/team", load_settings())
    names = [f"{number:064x}" for number in range(70)]
    await asyncio.gather(*(objects.put(name, name.encode()) for name in names))
    contents = await asyncio.gather(*(objects.get(name) for name in names))
    assert contents == [name.encode() for name in names]
    assert "Connection pool is full" not in caplog.text


async def saved_by_name(s3: S3Service) -> Any:
    await block(s3, "saved").save("fastroai-results", overwrite=True)
    return "s3-bucket/fastroai-results"


async def saved_block(s3: S3Service) -> Any:
    saved = block(s3, "saved")
    await saved.save("fastroai-object", overwrite=True)
    return saved


async def unsaved_block(s3: S3Service) -> Any:
    return block(s3, "unsaved")


@pytest.mark.parametrize(
    "storage",
    [pytest.param(saved_block, marks=pytest.mark.long), unsaved_block],
    ids=lambda f: f.__name__,
)
async def test_every_way_to_name_a_bucket_keeps_and_replays_results(
    s3: S3Service, storage: Callable[[S3Service], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    model = CountingModel()
    for _ in range(2):
        executor = PrefectExecutor(result_storage=await storage(s3))
        await two_steps(model, executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 2
    assert len(s3.results()) == 2


async def test_any_url_of_fsspec_keeps_and_replays_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"memory://{uuid4().hex}/results")
    model = CountingModel()
    for _ in range(2):
        result = await two_steps(model).execute({"topic": "t"}, None)
        assert result.not_stored == {}
    assert model.calls == 2


async def test_a_saved_block_named_in_the_variable_keeps_results(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", await saved_by_name(s3))
    await two_steps(CountingModel()).execute({"topic": "t"}, None)
    assert len(s3.results("saved/")) == 2


async def test_a_step_may_have_storage_of_its_own(in_s3: S3Service, tmp_path: Path):
    model = CountingModel()
    agent = model.agent()
    configs = {"a": StepConfig(result_storage=str(tmp_path / "own"), cache_policy="inputs")}
    pipeline = Pipeline(
        "own storage", {"a": Ask(agent), "b": Ask(agent, "a")}, {"b": ["a"]}, step_configs=configs
    )
    await pipeline.execute({"topic": "t"}, None)
    assert len(in_s3.results()) == 1
    assert len([p for p in (tmp_path / "own").iterdir() if p.is_file()]) == 1


@pytest.mark.parametrize(
    "form", [str, pytest.param(Path, marks=pytest.mark.long)], ids=["text", "Path"]
)
async def test_a_folder_keeps_and_replays_results(tmp_path: Path, form: Callable[[Path], Any]):
    folder = tmp_path / "new" / "results"
    model = CountingModel()
    for _ in range(2):
        executor = PrefectExecutor(result_storage=form(folder))
        await two_steps(model, executor=executor).execute({"topic": "t"}, None)
    assert model.calls == 2
    assert len([path for path in folder.iterdir() if path.is_file()]) == 2


async def test_prefects_own_folder_is_the_default(prefect_api: str, tmp_path: Path):
    model = CountingModel()
    for _ in range(2):
        await two_steps(model).execute({"topic": "t"}, None)
    assert model.calls == 2
    assert len([path for path in (tmp_path / "prefect-results").iterdir() if path.is_file()]) == 2


async def test_a_bucket_that_is_deleted_during_the_run_does_not_lose_it(
    in_s3: S3Service, caplog: Any
):
    model = CountingModel()

    class Deleting(Ask):
        async def execute(self, context: Any) -> str:
            answer = await super().execute(context)
            for key in in_s3.keys():  # noqa: SIM118  # not a dict
                in_s3.client.delete_object(Bucket=in_s3.bucket, Key=key)
            in_s3.client.delete_bucket(Bucket=in_s3.bucket)
            return answer

    agent = model.agent()
    pipeline = Pipeline("deleted", {"a": Deleting(agent), "b": Ask(agent, "a")}, {"b": ["a"]})
    result = await pipeline.execute({"topic": "t"}, None)
    assert model.calls == 2
    assert set(result.step_outputs) == {"a", "b"}
    assert in_s3.bucket in caplog.text or "NoSuchBucket" in caplog.text
