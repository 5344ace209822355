"""What makes a stored result someone's own: pipeline, step, code, and every bit of the input."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from fastroai import (
    BaseStep,
    Pipeline,
    PipelineConfig,
    PipelineResult,
    StepConfig,
    StepContext,
    step,
)
from fastroai.executors import PrefectExecutor
from fastroai.executors._prefect.caching import digest_or_unique
from tests.integration.models import Ask, CountingModel
from tests.support.steps import Give

pytestmark = pytest.mark.usefixtures("prefect_api")

INPUTS_ONLY = PipelineConfig(cache_policy="inputs")


async def test_two_pipelines_with_the_same_steps_do_not_share_results(tmp_path: Path):
    model = CountingModel()
    for name in ("one", "other"):
        await Pipeline(name, {"a": Ask(model.agent())}, config=INPUTS_ONLY).execute(
            {"topic": "t"}, None
        )
    assert model.calls == 2


async def test_two_steps_of_the_same_code_do_not_share_results():
    model = CountingModel()
    agent = model.agent()

    @step
    async def ask(context: StepContext[Any]) -> str:
        return (await context.run(agent, "the same")).output

    pipeline = Pipeline("twins", {"a": ask, "b": ask}, output_step="a", config=INPUTS_ONLY)
    await pipeline.execute({}, None)
    await pipeline.execute({}, None)
    assert model.calls == 2


class Kind(Enum):
    A = "a"


@dataclass
class Spot:
    x: int


class Document(BaseModel):
    name: str
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    tags: set[str] = set()
    token: SecretStr = SecretStr("")
    tenant: str = Field(default="", exclude=True)


SAME: dict[str, Callable[[], Any]] = {
    "text": lambda: "ä",
    "model": lambda: Document(name="n", tags={"a", "b", "c"}),
    "list of models": lambda: [Document(name="n"), Document(name="m")],
    "dataclass": lambda: Spot(1),
    "enum": lambda: Kind.A,
    "decimal": lambda: Decimal("1.10"),
    "datetime": lambda: datetime(2026, 5, 1, tzinfo=UTC),
    "path": lambda: Path("/a/b"),
    "set": lambda: {"c", "a", "b"},
    "tuple": lambda: (1, "a"),
    "bytes": lambda: b"\xff\x00",
    "int keys": lambda: {1: "a"},
    "nested": lambda: {"a": [{"b": Document(name="n")}]},
}


def test_the_same_value_of_any_plain_type_has_the_same_digest():
    for case, make in SAME.items():
        assert digest_or_unique(make()) == digest_or_unique(make()), case


async def test_the_same_input_of_any_plain_types_is_a_hit():
    class Reads(BaseStep[Any, str]):
        async def execute(self, context: StepContext[Any]) -> str:
            runs.append("ran")
            return repr(context.get_input("text"))

    runs: list[str] = []
    pipeline = Pipeline("same", {"a": Reads()}, config=INPUTS_ONLY)
    for _ in range(2):
        await pipeline.execute({case: make() for case, make in SAME.items()}, None)
    assert len(runs) == 1


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "excluded field": (Document(name="n", tenant="a"), Document(name="n", tenant="b")),
    "secret": (Document(name="n", token=SecretStr("a")), Document(name="n", token=SecretStr("b"))),
    "key type": ({1: "a"}, {"1": "a"}),
    "text and number": ("1", 1),
    "number and bool": (1, True),
    "none and absent": ({"a": None}, {}),
    "time zone": (datetime(2026, 5, 1), datetime(2026, 5, 1, tzinfo=UTC)),
    "path and text": (Path("a"), "a"),
    "order": ([1, 2], [2, 1]),
}


def test_different_values_never_share_a_digest():
    for case, (first, second) in DIFFERENT.items():
        assert digest_or_unique(first) != digest_or_unique(second), case


async def test_what_a_model_keeps_out_of_its_json_still_tells_inputs_apart():
    class Reads(BaseStep[Any, str]):
        async def execute(self, context: StepContext[Any]) -> str:
            document = context.get_input("document")
            return f"{document.tenant} {document.token.get_secret_value()}"

    pipeline = Pipeline("different", {"a": Reads()}, config=INPUTS_ONLY)
    for tenant, token in (("a", "x"), ("b", "x"), ("b", "y")):
        document = Document(name="n", tenant=tenant, token=SecretStr(token))
        assert (await pipeline.execute({"document": document}, None)).output == f"{tenant} {token}"


async def test_an_input_that_can_be_read_once_is_read_by_the_step(tmp_path: Path):
    (tmp_path / "text").write_text("content")

    class Reads(BaseStep[Any, Any]):
        async def execute(self, context: StepContext[Any]) -> Any:
            return [list(context.get_input("items")), context.get_input("file").read()]

    with (tmp_path / "text").open() as file:
        result = await Pipeline("once", {"a": Reads()}).execute(
            {"items": (n for n in (1, 2)), "file": file}, None
        )
    assert result.output == [[1, 2], "content"]


async def test_state_kept_on_a_step_does_not_change_its_key():
    counting = Give("same")
    pipeline = Pipeline("stateful", {"a": counting}, config=INPUTS_ONLY)
    for _ in range(3):
        await pipeline.execute({}, None)
    assert counting.runs == 1


async def test_a_changed_output_upstream_is_a_miss_downstream():
    model = CountingModel()
    values = iter("xy")

    @step(cache_policy="off")
    async def up(context: StepContext[Any]) -> str:
        return next(values)

    pipeline = Pipeline(
        "upstream",
        {"up": up, "down": Ask(model.agent(), "up")},
        {"down": ["up"]},
        step_configs={"down": StepConfig(cache_policy="inputs")},
    )
    outputs = [(await pipeline.execute({"topic": "t"}, None)).output for _ in "xy"]
    assert outputs == ["answer:down|t|x", "answer:down|t|y"]


async def test_the_same_output_of_a_step_that_is_not_stored_is_still_a_hit_downstream(
    tmp_path: Path,
):
    model = CountingModel()
    configs = {"up": StepConfig(persist_result=False), "down": StepConfig(cache_policy="inputs")}
    pipeline = Pipeline(
        "unstored",
        {"up": Give({"a": 1}), "down": Ask(model.agent(), "up")},
        {"down": ["up"]},
        step_configs=configs,
    )
    for _ in range(2):
        await pipeline.execute({"topic": "t"}, None)
    assert model.calls == 1


async def test_a_replayed_step_is_booked_once_however_often_it_is_replayed():
    model = CountingModel()
    pipeline = Pipeline("again", {"a": Ask(model.agent())}, config=INPUTS_ONLY)
    results: list[PipelineResult[Any]] = [
        await pipeline.execute({"topic": "t"}, None) for _ in range(3)
    ]
    assert [len(r.entries) for r in results] == [1, 1, 1]
    assert {e.replay_of for r in results[1:] for e in r.entries} == {results[0].entries[0].id}
    assert model.calls == 1


async def test_one_executor_serves_many_pipelines_at_once(tmp_path: Path):
    model = CountingModel()
    executor = PrefectExecutor(result_storage=tmp_path / "r")
    pipelines = [
        Pipeline(f"many {n}", {"a": Ask(model.agent())}, executor=executor) for n in range(4)
    ]
    results = await asyncio.gather(
        *(p.execute({"topic": n}, None) for n, p in enumerate(pipelines))
    )
    assert [r.output for r in results] == [f"answer:a|{n}" for n in range(4)]
    assert [len(r.entries) for r in results] == [1] * 4
