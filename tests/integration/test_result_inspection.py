"""`fastroai results show`: the record of a step is found, decoded, and not shown when no run would
believe it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fastroai import Pipeline, PipelineConfig, StepContext, step
from fastroai.cli import main
from fastroai.errors import ResultStorageError
from fastroai.executors import PrefectExecutor
from fastroai.executors.stored_results import read_stored_result
from tests.integration.models import Ask, CountingModel
from tests.integration.read_back import read_run
from tests.support.s3 import S3Service

pytestmark = pytest.mark.usefixtures("prefect_api")


class Words(BaseModel):
    words: set[str]


@step
def split(context: StepContext[Any]) -> Words:
    return Words(words=set(context.get_dependency("asked").split("|")))


def pipeline(**options: Any) -> Pipeline[Any, Any, Any]:
    steps: dict[str, Any] = {"asked": Ask(CountingModel().agent()), "split": split}
    return Pipeline(
        "inspected",
        steps,
        {"split": ["asked"]},
        config=PipelineConfig(cache_policy="inputs"),
        **options,
    )


async def ran(made: Pipeline[Any, Any, Any]) -> str:
    """The id of a run of it, once the server knows its tasks."""
    result = await made.execute({"topic": "t"}, None)
    await read_run(result.run_id, tasks=2)
    return str(result.run_id)


async def test_a_record_in_s3_is_found_by_run_and_step_and_decoded(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}/p")
    monkeypatch.setenv("FASTROAI_RESULT_SECRET", "the secret of the team")
    monkeypatch.setenv("FASTROAI_RESULT_COMPRESSION", "gzip")
    made = pipeline()
    run_id = await ran(made)
    asked = await read_stored_result(run_id, "asked")
    assert asked.content["output"] == {"codec": "json", "value": "answer:asked|t"}
    assert len(asked.content["entries"]) == 1
    assert asked.record is None
    assert f"s3://{s3.bucket}/p" in asked.location
    typed = await read_stored_result(asked.run_name, "split", pipeline=made)
    assert typed.record is not None
    assert typed.record.output == Words(words={"answer:asked", "t"})
    assert typed.record.replayed
    monkeypatch.setenv("FASTROAI_RESULT_SECRET", "some other secret")
    with pytest.raises(ResultStorageError, match="FASTROAI_RESULT_SECRET"):
        await read_stored_result(run_id, "asked")


async def test_a_record_in_a_folder_is_found_without_naming_the_folder(tmp_path: Path):
    made = pipeline(executor=PrefectExecutor(result_storage=tmp_path / "r"))
    first = await ran(made)
    cached = await ran(made)
    for run_id, state in ((first, "Completed"), (cached, "Cached")):
        found = await read_stored_result(run_id, "split", pipeline=made)
        assert found.state == state
        assert found.record is not None
        assert found.record.output.words == {"answer:asked", "t"}


async def test_what_is_not_there_is_named(tmp_path: Path):
    run_id = await ran(pipeline(executor=PrefectExecutor(result_storage=tmp_path / "r")))
    with pytest.raises(ResultStorageError, match="no flow run 'nobody-ran-this'"):
        await read_stored_result("nobody-ran-this", "asked")
    with pytest.raises(ResultStorageError, match=r"no step 'ask'\. It has: asked, split"):
        await read_stored_result(run_id, "ask")
    for path in filter(Path.is_file, (tmp_path / "r").iterdir()):
        path.write_bytes(path.read_bytes().replace(b"answer:", b"Answer:"))
    with pytest.raises(ResultStorageError, match="seal"):
        await read_stored_result(run_id, "asked")


async def test_of_the_executions_of_a_run_key_the_latest_is_read(tmp_path: Path):
    made = pipeline(executor=PrefectExecutor(result_storage=tmp_path / "r"))
    for _ in range(2):
        latest = await made.execute({"topic": "t"}, None, run_key="nightly")
    await read_run(latest.run_id, tasks=2)
    assert (await read_stored_result("nightly", "asked")).run_id == str(latest.run_id)


async def test_the_command_prints_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_id = await ran(pipeline(executor=PrefectExecutor(result_storage=tmp_path / "r")))
    assert await asyncio.to_thread(main, ["results", "show", run_id, "asked"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["output"]["value"] == "answer:asked|t"
    assert run_id in printed.err
