"""Outputs as typed JSON: each comes back the same, of the same types, or is refused; no other value
is ever read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, SecretStr
from pydantic_ai.output import NativeOutput, PromptedOutput, TextOutput, ToolOutput

from fastroai import (
    BaseStep,
    ConversationState,
    ConversationStatus,
    FastroAgent,
    StepContext,
    step,
)
from fastroai.errors import ResultStorageError
from fastroai.executors.output_types import declared_output
from fastroai.executors.step_codec import StepCodec
from fastroai.serialization.strict_json import is_plain, loads_strictly
from fastroai.testing import OfflineModel
from tests.support.examples import examples
from tests.support.typed_values import Colour, Named, One, Point, Twin, declared_values, spelled

OFTEN = examples(150, suppress_health_check=list(HealthCheck))


def codec_for(declared: Any) -> StepCodec:
    """The codec of a step that declares this type."""

    def typed(context: StepContext[None]) -> Any:
        raise AssertionError("it is not run")

    typed.__annotations__["return"] = declared
    return StepCodec.of("typed", step(typed))


def stored(codec: StepCodec, output: Any) -> Any:
    """An output as it is read from a storage."""
    return loads_strictly(json.dumps(codec.encode(output), allow_nan=False))


@OFTEN
@given(declared_values)
def test_an_output_comes_back_the_same_or_is_refused(pair: tuple[Any, Any]) -> None:
    declared, value = pair
    codec, before = codec_for(declared), spelled(value)
    refusal = kept = None
    try:
        kept = stored(codec, value)
    except ResultStorageError as error:
        refusal = str(error)
    if refusal is None:
        assert spelled(codec.decode(kept)) == before
    else:
        for part in ("'typed'", type(value).__qualname__, "persist_result=False"):
            assert part in refusal
    assert spelled(value) == before, "storing an output must not change it"


STORABLE: list[tuple[Any, Any]] = [
    (bytes, b"\xff\x00"),
    (One, One(x=1, data=b"\xff")),
    (list[One | Named], [Named(1, "a"), One(x=1)]),
    (dict[int, str], {1: "a"}),
    (dict[int | str, int], {1: 1, "1": 2}),
    (dict[tuple[int, str], float], {(1, "a"): 1.0}),
    (float, float("inf")),
    (list[Colour | str], [Colour.RED, "x"]),
    (Point, Point(1.0, {"b", "a"})),
    (list[Named], [Named(1, "a")]),
    (
        ConversationState[One],
        ConversationState(status=ConversationStatus.COMPLETE, data=One(x=1, data=b"\xfe")),
    ),
    (
        Any,
        ConversationState(
            status=ConversationStatus.INCOMPLETE, data={"a": [1]}, context={"turn": 2}
        ),
    ),
]


@pytest.mark.parametrize(("declared", "value"), STORABLE)
def test_what_teams_return_is_storable(declared: Any, value: Any) -> None:
    """The property above would also hold of a codec that refuses everything."""
    codec = codec_for(declared)
    assert spelled(codec.decode(stored(codec, value))) == spelled(value)


class Guarded(BaseModel):
    token: SecretStr


class Remembering(BaseModel):
    x: int
    hidden: int = Field(default=0, exclude=True)
    _memory: list[int] = PrivateAttr(default_factory=list)


class Caching(BaseModel):
    x: int

    @cached_property
    def twice(self) -> int:
        return 2 * self.x


@dataclass
class Attached:
    x: int


def attached() -> Attached:
    value = Attached(1)
    value.note = "not a field"  # type: ignore[attr-defined]
    return value


def remembering() -> Remembering:
    value = Remembering(x=1)
    value._memory.append(1)
    return value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def within_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


REFUSED: dict[str, tuple[Any, Any]] = {
    "a secret": (Guarded, Guarded(token=SecretStr("hunter2"))),
    "an excluded field": (Remembering, Remembering(x=1, hidden=3)),
    "a private attribute": (Remembering, remembering()),
    "an attribute that is no field": (Attached, attached()),
    "an undeclared set": (Any, {1}),
    "a subclass that loses a field": (
        One,
        type("Sub", (One,), {"__annotations__": {"y": int}})(x=1, y=2),
    ),
    "NaN": (float, float("nan")),
    "nesting without end": (Any, nested(5000)),
    "nesting without end, declared": (list, nested(5000)),
    "a list within itself": (Any, within_itself()),
    "a list within itself, declared": (list[Any], within_itself()),
    "an integer of 9000 digits": (int, 10**9000),
    "a class": (type, One),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_come_back_as_something_else_is_refused(case: str) -> None:
    declared, value = REFUSED[case]
    with pytest.raises(ResultStorageError, match="'typed'") as caught:
        codec_for(declared).encode(value)
    assert "hunter2" not in str(caught.value)


def test_what_was_computed_from_the_fields_does_not_hinder() -> None:
    value = Caching(x=1)
    assert value.twice == 2
    codec = codec_for(Caching)
    assert codec.decode(stored(codec, value)) == value


@pytest.mark.parametrize(
    "declared", [Iterator[int], Iterable[int], list[Iterator[int]], Any], ids=str
)
def test_an_iterator_is_refused_and_not_used_up(declared: Any) -> None:
    numbers = iter([1, 2, 3])
    output = [numbers] if declared == list[Iterator[int]] else numbers
    with pytest.raises(ResultStorageError, match="'typed'"):
        codec_for(declared).encode(output)
    assert list(numbers) == [1, 2, 3]


def test_a_set_is_written_the_same_in_every_process() -> None:
    """Keys of dependents are made of it."""
    program = (
        "import json\nfrom pydantic import TypeAdapter\n"
        "from fastroai.serialization.codec import Codec\n"
        "names = {f'name {n}' for n in range(40)}\n"
        "print(json.dumps(Codec(TypeAdapter(set[str])).encode(names)))"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(written) == 1


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["$", "tuple", "bytes", "declared", "python", "os.system", "__class__"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["$", "value", "codec", "__class__", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@OFTEN
@given(
    declared_values,
    st.sampled_from(["declared", "python", "conversation", "json", "pickle"]),
    _json,
)
def test_a_forged_value_is_refused_or_what_the_codec_itself_would_write(
    pair: tuple[Any, Any], codec_name: str, value: Any
) -> None:
    codec = codec_for(pair[0])
    try:
        output = codec.decode({"codec": codec_name, "value": value})
    except ResultStorageError:
        return
    if codec_name == "json":
        assert spelled(output) == spelled(value)
    elif codec_name != "conversation":
        assert isinstance(output, ConversationState) or spelled(output) == spelled(
            codec.decode(stored(codec, output))
        )


FORGED: list[tuple[Any, Any]] = [
    (int, {"codec": "declared", "value": "7"}),
    (int, {"codec": "declared", "value": True}),
    (bool, {"codec": "declared", "value": 1}),
    (str, {"codec": "declared", "value": 1}),
    (One, {"codec": "declared", "value": {"x": 1, "data": "", "y": 2}}),
    (One, {"codec": "declared", "value": {"x": 1}}),
    (One, {"codec": "declared", "value": nested(150)}),
    (Any, {"codec": "json", "value": nested(900)}),
    (Any, {"codec": "declared", "value": 1}),
    (Any, {"codec": "python", "value": {"$": "tuple", "value": [1]}}),
    (Any, {"codec": "conversation", "value": {"status": "complete", "data": None}}),
    (Any, {"codec": "conversation", "value": ["status"]}),
    (bytes, {"codec": "python", "value": {"$": "os.system", "value": "true"}}),
    (bytes, {"codec": "python", "value": {"$": "bytes", "value": "not base64!"}}),
    (bytes, {"codec": "python", "value": {"$": ["bytes"], "value": ""}}),
    (dict[str, Any], {"codec": "json", "value": {"a": 1}, "also": 1}),
    (Any, {"codec": "json"}),
    (Any, ["codec", "value"]),
    (Any, None),
    (Any, "codec"),
]


@pytest.mark.parametrize(("declared", "record"), FORGED)
def test_a_value_that_the_codec_does_not_write_is_not_read(declared: Any, record: Any) -> None:
    with pytest.raises(ResultStorageError, match="'typed'"):
        codec_for(declared).decode(record)


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "",
        "{",
        "1 2",
    ],
    ids=lambda t: t[:20],
)
def test_json_that_we_do_not_write_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        loads_strictly(text)


def test_plain_values_are_told_from_their_lookalikes() -> None:
    assert is_plain({"a": [1, 2.5, None, True, "x"]})
    for value in (
        Colour.RED,
        (1,),
        {1: "a"},
        {1},
        b"",
        float("nan"),
        type("Text", (str,), {})("a"),
    ):
        assert not is_plain(value)


def test_types_are_taken_from_annotations_and_bases() -> None:
    class Local(BaseModel):
        x: int

    @step
    def of_a_function(context: StepContext[None]) -> Local:
        return Local(x=1)

    class ByBase(BaseStep[None, dict[int, Local]]):
        async def execute(self, context):  # type: ignore[no-untyped-def]
            return {1: Local(x=1)}

    class ByMethod(BaseStep[None, Any]):
        async def execute(self, context: StepContext[None]) -> set[int]:
            return {1}

    @step
    def silent(context):  # type: ignore[no-untyped-def]
        return 1

    assert declared_output(of_a_function).type is Local
    assert declared_output(ByBase()).type == dict[int, Local]
    assert declared_output(ByMethod()).type == set[int]
    assert declared_output(silent).type is Any


def shout(text: str) -> list[str]:
    return [text.upper()]


async def look_up(x: int) -> One:
    return One(x=x)


AGENT_OUTPUTS: list[tuple[Any, Any]] = [
    (str, str),
    (One, One),
    ([One, Twin], One | Twin),
    (ToolOutput(One), One),
    (NativeOutput([One, Twin]), One | Twin),
    (PromptedOutput(One), One),
    (TextOutput(shout), list[str]),
    (look_up, One),
    ([ToolOutput(look_up), str], One | str),
]


@pytest.mark.parametrize(("output_type", "declared"), AGENT_OUTPUTS)
def test_the_type_of_an_agents_step_is_what_the_agent_gives(
    output_type: Any, declared: Any
) -> None:
    agent: FastroAgent[Any] = FastroAgent(model=OfflineModel(), output_type=output_type)
    assert declared_output(agent.as_step("ask")).type == declared


def test_the_declaration_of_a_step_is_looked_at_once() -> None:
    @step
    def typed(context: StepContext[None]) -> One:
        return One(x=1)

    assert StepCodec.of("a", typed).output is StepCodec.of("b", typed).output


class Rate(TypedDict):
    """Of `typing`, which pydantic refuses before Python 3.12."""

    day: date
    rates: NotRequired[dict[int, Decimal]]


class Handle:
    """A class of one's own."""


def test_a_typed_dict_comes_back_with_its_types() -> None:
    for declared, value in (
        (Rate, Rate(day=date(2026, 11, 1), rates={1: Decimal("1.10")})),
        (Rate, Rate(day=date(2026, 11, 1))),
        (list[Rate], [Rate(day=date(2026, 11, 1))]),
        (dict[str, Rate | None], {"a": Rate(day=date(2026, 11, 1)), "b": None}),
    ):
        codec = codec_for(declared)
        assert spelled(codec.decode(stored(codec, value))) == spelled(value)


@pytest.mark.parametrize(
    ("declared", "value"),
    [(Handle, Handle()), (ValueError, ValueError("no")), (list[Handle], [Handle()])],
    ids=["class", "exception", "list"],
)
def test_a_type_that_cannot_be_stored_is_named_with_the_reason(declared: Any, value: Any) -> None:
    with pytest.raises(ResultStorageError) as caught:
        codec_for(declared).encode(value)
    message = str(caught.value)
    assert f"declares {declared!r}" in message
    assert "pydantic can't read back" in message
    assert "declares no return type" not in message


def test_a_step_that_declares_nothing_is_told_so() -> None:
    with pytest.raises(ResultStorageError, match="declares no return type"):
        codec_for(Any).encode(Handle())


def test_a_return_type_that_is_not_there_is_told_with_its_name() -> None:
    def typed(context: StepContext[None]) -> Any:
        raise AssertionError("it is not run")

    typed.__annotations__["return"] = "Vanished"
    with pytest.raises(ResultStorageError, match="Vanished"):
        StepCodec.of("typed", step(typed)).encode(Handle())


async def test_streams_are_no_results() -> None:
    async def stream() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ResultStorageError, match="'typed'"):
        codec_for(Any).encode(stream())
