"""Stored results: they come back equal and of the same type, and what can't is refused or handed on
with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from fastroai import (
    BaseStep,
    ConversationState,
    ConversationStatus,
    Pipeline,
    PipelineConfig,
    StepConfig,
    StepContext,
)
from fastroai.errors import ResultStorageError
from fastroai.executors import PrefectExecutor
from tests.integration.models import Ask, CountingModel
from tests.support.steps import Give

pytestmark = pytest.mark.usefixtures("prefect_api")


class Colour(Enum):
    RED = 1
    BLUE = "blue"


class Level(StrEnum):
    HIGH = "high"


class Leaf(BaseModel):
    name: str
    weight: Decimal = Decimal("1.50")


class Tree(BaseModel):
    leaves: list[Leaf]
    planted: datetime
    tags: set[str] = set()


class Stone(BaseModel):
    hardness: int


@dataclass
class Point:
    x: int
    y: float
    labels: tuple[str, ...] = field(default=())


NOON = datetime(2026, 5, 1, 12, 30, 0, 123456, tzinfo=UTC)

OUTPUTS: list[tuple[Any, Any]] = [
    (Tree, Tree(leaves=[Leaf(name="ä😀")], planted=NOON, tags={"a", "b"})),
    (list[Tree], [Tree(leaves=[], planted=NOON)]),
    (Point, Point(1, 2.0, ("a", "b"))),
    (Colour, Colour.BLUE),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (datetime, NOON),
    (date, date(2026, 5, 1)),
    (timedelta, timedelta(days=1, microseconds=1)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (Path, Path("/some/where")),
    (bytes, b"text"),
    (set[int], {3, 1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (tuple[Leaf, ...], (Leaf(name="a"), Leaf(name="b"))),
    (dict[int, str], {1: "a", 20: "b"}),
    (dict[str, Leaf], {"a": Leaf(name="a")}),
    (Leaf | Stone, Stone(hardness=3)),
    (Leaf | Stone, Leaf(name="a")),
    (Leaf | None, None),
    (Leaf | None, Leaf(name="a")),
    (int | str, "1"),
    (int | str, 1),
    (float, 1.0),
    (float, 1),
    (int, 10**30),
    (bool, True),
    (str, "line\n\u2028 end \x00"),
    (Any, {"nested": [1, 2.5, None, True, {"a": "ü"}]}),
    (None, None),
    (
        ConversationState[Leaf],
        ConversationState(status=ConversationStatus.COMPLETE, data=Leaf(name="a")),
    ),
    (
        ConversationState[dict[str, str]],
        ConversationState(status=ConversationStatus.COMPLETE, data={"name": "a"}),
    ),
    (
        Any,
        ConversationState(
            status=ConversationStatus.COMPLETE, data={"name": "a"}, context={"turn": 2}
        ),
    ),
]


def giving(declared: Any, value: Any) -> Give:
    """A step that declares a return type and counts its runs."""

    class Typed(Give):
        async def execute(self, context: StepContext[Any]) -> declared:  # type: ignore[valid-type]
            return await super().execute(context)

    Typed.execute.__annotations__["return"] = declared
    return Typed(value)


def kept(steps: dict[str, BaseStep[Any, Any]], folder: Path) -> Pipeline[Any, Any, Any]:
    """Independent steps whose results are kept in a folder; a failed one does not stop the
    others.
    """
    return Pipeline(
        "kept",
        steps,
        output_step=next(iter(steps)),
        config=PipelineConfig(on_error="continue", cache_policy="inputs"),
        executor=PrefectExecutor(result_storage=folder),
    )


async def test_replayed_outputs_are_equal_and_of_the_same_type(tmp_path: Path):
    steps = {
        f"{n}: {value!r}"[:60]: giving(declared, value)
        for n, (declared, value) in enumerate(OUTPUTS)
    }
    pipeline = kept(steps, tmp_path / "r")
    first = await pipeline.execute({}, None)
    second = await pipeline.execute({}, None)
    for (step_id, step), (_, value) in zip(steps.items(), OUTPUTS, strict=True):
        replayed = second.step_outputs[step_id]
        assert step.runs == 1, step_id
        # a generic model comes back with the data type that is declared
        if not isinstance(value, ConversationState):
            assert type(replayed) is type(value), step_id
        assert replayed == first.step_outputs[step_id] == value, step_id
        if isinstance(value, ConversationState):
            assert isinstance(replayed, ConversationState)
            assert type(replayed.data) is type(value.data), step_id


async def test_an_incomplete_conversation_stops_a_replayed_run_too(tmp_path: Path):
    state = ConversationState(
        status=ConversationStatus.INCOMPLETE, data={"name": None}, context={"asked": ["name"]}
    )
    ask, never = Give(state), Give("never")
    pipeline = Pipeline(
        "conversation",
        {"ask": ask, "then": never},
        {"then": ["ask"]},
        step_configs={"ask": StepConfig(cache_policy="inputs")},
        executor=PrefectExecutor(result_storage=tmp_path / "r"),
    )
    for _ in range(2):
        result = await pipeline.execute({}, None)
        assert result.stopped_early
        assert result.conversation_state == state
    assert (ask.runs, never.runs) == (1, 0)


class Opaque:
    pass


UNSTORABLE: dict[str, Any] = {
    "object": Opaque(),
    "undeclared set": {1, 2},
    "generator": (x for x in ()),
    "class": Opaque,
    "not a number": float("nan"),
}


def unstorable(
    folder: Path, **config: Any
) -> tuple[Pipeline[Any, Any, Any], dict[str, Give], dict[str, Give]]:
    steps = {name: Give(value) for name, value in UNSTORABLE.items()}
    dependents = {f"after {name}": Give("reached") for name in UNSTORABLE}
    pipeline = Pipeline(
        "unstorable",
        steps | dependents,
        {f"after {name}": [name] for name in UNSTORABLE},
        output_step="object",
        config=PipelineConfig(on_error="continue", retries=2, retry_delay=0.0, **config),
        executor=PrefectExecutor(result_storage=folder),
    )
    return pipeline, steps, dependents


@pytest.mark.parametrize(
    "asked", [{"persist_result": True}, {"cache_policy": "inputs"}], ids=lambda a: next(iter(a))
)
async def test_outputs_that_shall_be_kept_and_can_not_be_name_step_type_and_remedy(
    asked: Any, tmp_path: Path
):
    pipeline, steps, dependents = unstorable(tmp_path / "r", **asked)
    result = await pipeline.execute({}, None)
    assert set(result.errors) == set(UNSTORABLE)
    for name, value in UNSTORABLE.items():
        error = result.errors[name].original_error
        assert isinstance(error, ResultStorageError), name
        assert repr(name) in str(error)
        assert type(value).__qualname__ in str(error)
        assert "persist_result=False" in str(error)
        assert steps[name].runs == 1, "another attempt would pay again for the same"
    assert {step.runs for step in dependents.values()} == {0}


async def test_outputs_that_nobody_asked_to_keep_are_handed_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pipeline, steps, dependents = unstorable(tmp_path / "r")
    result = await pipeline.execute({}, None)
    assert not result.errors
    assert {step.runs for step in (*steps.values(), *dependents.values())} == {1}
    for name in UNSTORABLE:
        assert result.step_outputs[name] is UNSTORABLE[name]
        assert f"'{name}'" in caplog.text
    assert "persist_result=False" in caplog.text


async def test_an_output_that_is_not_kept_is_made_again_when_the_flow_is_retried(tmp_path: Path):
    model = CountingModel()

    class AsksForAnObject(Ask):
        async def execute(self, context: StepContext[Any]) -> Any:
            runs.append(await super().execute(context))
            return Opaque()

    runs: list[str] = []
    steps: dict[str, BaseStep[Any, Any]] = {
        "a": AsksForAnObject(model.agent()),
        "b": Give(ConnectionError("once"), "done"),
    }
    result = await Pipeline("made again", steps, {"b": ["a"]}).to_flow(retries=1)({"topic": "t"})
    assert result.output == "done"
    assert len(runs) == 2
    assert model.calls == 1, "what it asked was answered before"


async def test_text_that_is_no_unicode_is_kept_or_refused_but_never_lost(tmp_path: Path):
    """A model's answer may hold half a surrogate pair."""
    steps = {
        "text": Give("\ud800"),
        "in a dict": Give({"a": "\udfff"}),
        "as a key": Give({"\ud800": 1}),
    }
    outcomes: dict[str, list[Any]] = {name: [] for name in steps}
    pipeline = kept(steps, tmp_path / "r")
    for _ in range(2):
        result = await pipeline.execute({}, None)
        for name in steps:
            error = result.errors.get(name)
            outcomes[name].append(
                type(error.original_error) if error else result.step_outputs[name]
            )
    for name, step in steps.items():
        value = step._values[0]
        assert outcomes[name] in ([value, value], [ResultStorageError] * 2), name
        if outcomes[name] == [value, value]:
            assert step.runs == 1, f"{name}: it was not stored, and nothing said so"


async def test_without_persisting_any_output_is_handed_on(tmp_path: Path):
    value = Opaque()
    seen = []

    class See(BaseStep[Any, None]):
        async def execute(self, context: StepContext[Any]) -> None:
            seen.append(context.get_dependency("a"))

    pipeline = Pipeline(
        "handed on",
        {"a": Give(value), "b": See()},
        {"b": ["a"]},
        step_configs={"a": StepConfig(persist_result=False)},
        executor=PrefectExecutor(result_storage=tmp_path / "r"),
    )
    result = await pipeline.execute({}, None)
    assert seen == [value]
    assert result.step_outputs["a"] is value
    assert len(list((tmp_path / "r").iterdir())) == 1
