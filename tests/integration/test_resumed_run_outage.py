"""A run whose storage dies: what was never paid for goes on, what an earlier execution may have
paid for is not paid again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.filesystems import RemoteFileSystem

from fastroai import BaseStep, Pipeline, StepConfig, StepContext
from fastroai.errors import ResultStorageError, StepExecutionError
from fastroai.executors import PrefectExecutor
from tests.integration.models import Ask, CountingModel
from tests.support.flaky_filesystem import FlakyFileSystem
from tests.support.fragile_s3 import FragileS3, fragile_s3

__all__ = ["fragile_s3"]

pytestmark = pytest.mark.usefixtures("prefect_api")


class Act(BaseStep[Any, str]):
    """Does what the caller's deps do, each time."""

    async def execute(self, context: StepContext[Any]) -> str:
        # The service's process is waited for, away from the loop.
        await asyncio.to_thread(context.deps)
        return "done"


def keyed(model: CountingModel, storage: Any, error: Exception | None = None) -> Any:
    return Pipeline(
        "keyed",
        {"act": Act(), "ask": Ask(model.agent(), "act", then=error)},
        {"ask": ["act"]},
        step_configs={"act": StepConfig(cache_policy="off")},
        executor=PrefectExecutor(result_storage=storage),
    )


def nothing() -> None:
    """A storage that goes on."""


LONG = ("block", "folder")


@pytest.fixture(
    params=["S3", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)],
)
def dying(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A storage, and what lets it die."""
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    if request.param == "S3":
        service: FragileS3 = request.getfixturevalue("fragile_s3")
        return None, service.kill
    if request.param == "block":
        block = RemoteFileSystem(basepath=f"flaky://{uuid4().hex}")
        return block, request.getfixturevalue("interrupted")
    folder = tmp_path / "r"
    return folder, partial(lose, folder)


def lose(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    folder.write_text("a file where the folder was")


@pytest.fixture
def interrupted() -> Any:
    with FlakyFileSystem.fails() as _:
        yield lambda: FlakyFileSystem.failing.update({"read", "write"})
        FlakyFileSystem.failing.clear()


async def test_the_first_run_of_a_key_goes_on(dying: tuple[Any, Callable[[], None]]):
    storage, die = dying
    model = CountingModel()
    key = uuid4().hex
    result = await keyed(model, storage).execute({"topic": "t"}, die, run_key=key)
    assert model.calls == 1
    assert result.output.startswith("answer:ask")
    assert "ask" in result.not_stored


async def fails(pipeline: Any, act: Callable[[], None], key: str) -> BaseException:
    """Why its step fails."""
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute({"topic": "t"}, act, run_key=key)
    return caught.value.original_error


async def test_a_later_run_of_a_key_sends_nothing_that_may_be_answered(
    dying: tuple[Any, Callable[[], None]],
):
    storage, die = dying
    model = CountingModel()
    key = uuid4().hex
    first = await fails(keyed(model, storage, ConnectionError("interrupted")), nothing, key)
    assert isinstance(first, ConnectionError)
    second = await fails(keyed(model, storage), die, key)
    assert isinstance(second, ResultStorageError)
    assert "not sent again" in str(second)
    assert model.calls == 1


async def test_of_two_witnesses_one_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The ledger of an earlier execution was lost, the name of its flow run was not."""
    model = CountingModel()
    key = uuid4().hex
    folder = tmp_path / "r"
    for number, act in enumerate((nothing, partial(lose, folder))):
        monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{tmp_path}/{number}.db")
        await fails(keyed(model, folder, ConnectionError("interrupted")), act, key)
    assert model.calls == 1


async def test_a_run_within_someones_flow_goes_on_in_the_first_try_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    model, folder = CountingModel(), tmp_path / "r"

    @flow
    async def outer() -> Any:
        return await keyed(model, folder).execute({"topic": "t"}, partial(lose, folder))

    assert (await outer()).output.startswith("answer:ask")
    assert model.calls == 1


async def test_a_run_within_someones_retried_flow_sends_nothing_that_may_be_answered(
    tmp_path: Path,
):
    model, folder = CountingModel(), tmp_path / "r"
    tries = iter((nothing, partial(lose, folder)))

    @flow(retries=1)
    async def outer() -> Any:
        pipeline = keyed(model, folder, ConnectionError("interrupted"))
        return await pipeline.execute({"topic": "t"}, next(tries))

    with pytest.raises(StepExecutionError, match="not sent again"):
        await outer()
    assert model.calls == 1
