"""Nothing of a run's input, deps or secrets is stored on the server by `pipeline.execute`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from fastroai import (
    BaseStep,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
)
from tests.integration.models import CountingModel
from tests.integration.read_back import everything_stored, read_run
from tests.support.s3 import S3Service

pytestmark = pytest.mark.usefixtures("prefect_api", "logs_on_server")

SENTINELS = ("input-7f3a", "deps-91bc", "secret-c0de", "output-55aa", "prompt-e2e2")


class Letter(BaseModel):
    text: str
    key: SecretStr


@dataclass
class Deps:
    token: str


class Answer(BaseStep[Deps, str]):
    def __init__(self, model: CountingModel, fails: bool) -> None:
        self.agent = model.agent(system_prompt="prompt-e2e2")
        self.fails = fails

    async def execute(self, context: StepContext[Deps]) -> str:
        assert context.deps.token == "deps-91bc"
        assert context.get_input("key").get_secret_value() == "secret-c0de"
        await context.run(
            self.agent, f"{context.get_input('text')} prompt-e2e2 {context.deps.token}"
        )
        if self.fails:
            raise ConnectionError("no connection")
        return "output-55aa"


@pytest.mark.parametrize("fails", [False, True], ids=["completed", "failed"])
async def test_input_deps_secrets_and_outputs_stay_out_of_the_server(
    fails: bool, s3: S3Service, monkeypatch: pytest.MonkeyPatch
):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", f"s3://{s3.bucket}/r")
    step = Answer(CountingModel(), fails)
    pipeline = Pipeline(
        "private",
        {"a": step, "b": Answer(CountingModel(), False)},
        {"b": ["a"]},
        config=PipelineConfig(cache_policy="inputs"),
        step_configs={"a": StepConfig(retries=1, retry_delay=0.0)},
        input_type=Letter,
    )
    letter = Letter(text="input-7f3a", key=SecretStr("secret-c0de"))
    result: Any
    if fails:
        with pytest.raises(StepExecutionError) as caught:
            await pipeline.execute(letter, Deps("deps-91bc"))
        result = caught.value.partial_result
    else:
        result = await pipeline.execute(letter, Deps("deps-91bc"))
    run = await read_run(result.run_id, tasks=1 if fails else 2)
    assert run.flow_run.parameters == {}
    stored = await everything_stored(run.flow_run.id)
    assert "costs-private" in stored, "artifacts were read back"
    for secret in (*SENTINELS, s3.secret_access_key, s3.access_key_id):
        assert secret not in stored


async def test_the_input_of_a_deployed_flow_is_a_parameter_and_its_deps_are_not():
    class Echo(BaseStep[Deps, str]):
        async def execute(self, context: StepContext[Deps]) -> str:
            assert context.deps.token == "deps-91bc"
            return "done"

    made = Pipeline("with parameters", {"a": Echo()}).to_flow(deps=Deps("deps-91bc"))
    result: Any = await made({"text": "input-7f3a"})
    run = await read_run(result.run_id, tasks=1)
    assert run.flow_run.parameters == {"inputs": {"text": "input-7f3a"}}
    assert "deps-91bc" not in await everything_stored(run.flow_run.id)


async def test_a_secret_in_a_flows_input_is_not_readable_on_the_server():
    class Use(BaseStep[Any, int]):
        async def execute(self, context: StepContext[Any]) -> int:
            return len(context.get_input("key").get_secret_value())

    made = Pipeline("with a secret", {"a": Use()}, input_type=Letter).to_flow()
    result: Any = await made(Letter(text="t", key=SecretStr("secret-c0de")))
    assert result.output == len("secret-c0de")
    run = await read_run(result.run_id, tasks=1)
    assert "secret-c0de" not in await everything_stored(run.flow_run.id)


async def test_a_large_input_is_no_problem_for_execute():
    class Length(BaseStep[Any, int]):
        async def execute(self, context: StepContext[Any]) -> int:
            return len(context.get_input("text"))

    result = await Pipeline("large", {"a": Length()}).execute({"text": "x" * 3_000_000}, None)
    assert result.output == 3_000_000
