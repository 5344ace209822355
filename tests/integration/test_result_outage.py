"""A storage that dies during a run: the run goes on, pays for nothing twice, and says what it could
not store.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastroai import BaseStep, Pipeline, PipelineConfig, PipelineResult, StepContext
from fastroai.executors import PrefectExecutor
from tests.integration.models import Ask, CountingModel
from tests.integration.read_back import read_run
from tests.support.fragile_s3 import FragileS3, Moment, fragile_s3
from tests.support.steps import Give

__all__ = ["fragile_s3"]

pytestmark = pytest.mark.usefixtures("prefect_api")

# Not a limit on speed: with botocore's defaults and a dead endpoint it is minutes.
NOT_FOR_EVER = 60.0

PROBE = ["PUT", "GET", "DELETE", "GET"]
ONE_STEP = ["GET", "PUT", "PUT"]
"""Is there a result; the answer to the request within it; the result."""


class Then(Ask):
    """Asks, then does something."""

    def __init__(self, model: CountingModel, act: Callable[[], Any], *step_ids: str) -> None:
        super().__init__(model.agent(), *step_ids)
        self.act = act

    async def execute(self, context: StepContext[Any]) -> str:
        answer = await super().execute(context)
        # The service's process is waited for, away from the loop.
        await asyncio.to_thread(self.act)
        return answer


def two_steps(
    model: CountingModel, act: Callable[[], Any] = lambda: None, **options: Any
) -> Pipeline[Any, Any, Any]:
    steps: dict[str, BaseStep[Any, Any]] = {"a": Then(model, act), "b": Ask(model.agent(), "a")}
    return Pipeline(
        "outage", steps, {"b": ["a"]}, config=PipelineConfig(cache_policy="inputs"), **options
    )


async def run(pipeline: Pipeline[Any, Any, Any], topic: str = "t") -> PipelineResult[Any]:
    async with asyncio.timeout(NOT_FOR_EVER):
        return await pipeline.execute({"topic": topic}, None)


async def told(result: PipelineResult[Any], tasks: int = 2) -> tuple[str, str, str]:
    """Name and message of the run's state, and what its table is headed with."""
    on_server = await read_run(result.run_id, tasks=tasks)
    state = on_server.flow_run.state
    assert state is not None
    return str(state.name), str(state.message), str(on_server.artifact().description)


async def test_a_run_that_stored_all_is_plainly_complete(fragile_s3: FragileS3):
    model = CountingModel()
    result = await run(two_steps(model))
    assert [r.method for r in fragile_s3.requests] == PROBE + ONE_STEP + ONE_STEP
    assert result.not_stored == {}
    name, _, table = await told(result)
    assert name == "Completed"
    assert "not stored" not in table


BOTH, LAST = {"a", "b"}, {"b"}
LOST: list[Any] = [
    pytest.param(5, "before", BOTH, marks=pytest.mark.long),  # a is looked for
    (7, "after", LAST),  # a is written
    pytest.param(10, "after", set(), marks=pytest.mark.long),  # b is written
]
"""Of those in `test_storage_outage`."""


def _named(value: Any) -> str:
    return "+".join(sorted(value)) or "none" if isinstance(value, set) else str(value)


@pytest.mark.parametrize(("number", "moment", "lost"), LOST, ids=_named)
async def test_killed_before_during_or_after_a_step_the_run_ends_with_all_its_values(
    fragile_s3: FragileS3,
    number: int,
    moment: Moment,
    lost: set[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0.5")
    model = CountingModel()
    fragile_s3.die_at(number, moment)
    result = await run(two_steps(model), topic=f"{number} {moment}")
    assert result.output == f"answer:b|{number} {moment}|answer:a|{number} {moment}"
    assert model.calls == 2, "each answer is paid for once"
    assert set(result.not_stored) == lost
    name, message, table = await told(result)
    if not lost:
        assert name == "Completed"
        return
    assert name == "ResultsNotStored"
    assert "s3://results/p" in message
    assert {step for step in "ab" if f"'{step}'" in message} == lost
    assert f"not stored**: {', '.join(sorted(lost))}" in table
    rows = (await read_run(result.run_id, tasks=2)).rows()
    assert {row["step"] for row in rows if row["state"] == "completed, not stored"} == lost


async def test_a_storage_that_comes_back_gets_everything(fragile_s3: FragileS3):
    """`b` runs while what `a` gave still waits, for it is `b` that brings the storage back."""
    model = CountingModel()

    class Reviving(Ask):
        async def execute(self, context: StepContext[Any]) -> str:
            await asyncio.to_thread(fragile_s3.start)
            return await super().execute(context)

    steps: dict[str, BaseStep[Any, Any]] = {
        "a": Then(model, fragile_s3.kill),
        "b": Reviving(model.agent(), "a"),
    }
    pipeline = Pipeline(
        "comes back", steps, {"b": ["a"]}, config=PipelineConfig(cache_policy="inputs")
    )
    result = await run(pipeline)
    assert result.not_stored == {}
    assert (await told(result))[0] == "Completed"
    assert len(fragile_s3.results()) == 2
    assert (await run(pipeline)).output == result.output
    assert model.calls == 2


async def test_what_could_not_be_written_is_used_by_the_next_run_of_the_process_and_written_then(
    fragile_s3: FragileS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    model = CountingModel()
    pipeline = two_steps(model, fragile_s3.kill)
    first = await run(pipeline, "next run")
    assert set(first.not_stored) == {"a", "b"}
    fragile_s3.start()
    second = await run(pipeline, "next run")
    assert second.output == first.output
    assert model.calls == 2
    assert second.not_stored == {}
    assert len(fragile_s3.results()) == 2


@pytest.mark.long
async def test_a_retried_flow_does_not_pay_for_what_its_first_attempt_could_not_write(
    fragile_s3: FragileS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    model = CountingModel()
    steps: dict[str, BaseStep[Any, Any]] = {
        "a": Then(model, fragile_s3.kill),
        "b": Give(ConnectionError("once"), "done"),
    }

    def revive(*_: Any) -> None:
        """Called when an attempt of the flow begins."""
        if model.calls:
            fragile_s3.start()

    made = Pipeline("retried", steps, {"b": ["a"]}).to_flow(retries=1, on_running=[revive])
    async with asyncio.timeout(NOT_FOR_EVER):
        result: Any = await made({"topic": "t"})
    assert result.output == "done"
    assert model.calls == 1


async def test_a_storage_that_stops_answering_does_not_keep_the_run(
    fragile_s3: FragileS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_S3_READ_TIMEOUT", "1")
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "1")
    model = CountingModel()
    result = await run(two_steps(model, fragile_s3.freeze), "frozen")
    assert model.calls == 2
    assert set(result.not_stored) == {"a", "b"}
    assert "ReadTimeout" in result.not_stored["a"]


async def test_a_failing_step_fails_the_run_and_the_others_losses_are_in_the_table(
    fragile_s3: FragileS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    model = CountingModel()
    steps: dict[str, BaseStep[Any, Any]] = {
        "a": Then(model, fragile_s3.kill),
        "b": Give(ValueError("no")),
    }
    pipeline = Pipeline(
        "fails too", steps, {"b": ["a"]}, config=PipelineConfig(on_error="continue")
    )
    result = await run(pipeline)
    assert set(result.errors) == {"b"}
    assert set(result.not_stored) == {"a"}
    name, _, table = await told(result)
    assert name == "ResultsNotStored"
    assert "not stored**: a" in table


async def in_a_flow(pipeline: Pipeline[Any, Any, Any]) -> Any:
    return await pipeline.to_flow()({"topic": "in a flow"})


async def by_execute(pipeline: Pipeline[Any, Any, Any]) -> Any:
    return await pipeline.execute({"topic": "by execute"}, None)


@pytest.mark.parametrize(
    "start", [in_a_flow, pytest.param(by_execute, marks=pytest.mark.long)], ids=lambda f: f.__name__
)
async def test_the_values_are_returned_however_the_run_was_started(
    fragile_s3: FragileS3, start: Callable[[Any], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0")
    result = await start(two_steps(CountingModel(), fragile_s3.kill))
    assert isinstance(result, PipelineResult)
    assert re.match(r"answer:b\|", result.output)
    assert (await told(result))[0] == "ResultsNotStored"


async def test_a_folder_that_is_lost_during_a_run_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTROAI_RESULT_RETRY_SECONDS", "0.2")
    folder = tmp_path / "r"

    def lose() -> None:
        folder.rename(tmp_path / "away")
        folder.write_text("a file where the folder was")

    model = CountingModel()
    result = await run(two_steps(model, lose, executor=PrefectExecutor(result_storage=folder)))
    assert model.calls == 2
    assert set(result.not_stored) == {"a", "b"}
    name, message, _ = await told(result)
    assert name == "ResultsNotStored"
    assert str(folder) in message
