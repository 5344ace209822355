"""Canonical JSON: values that are the same have one digest, also after they went through JSON;
others do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from fastroai.serialization.canonical_json import canonical_json, digest, digest_of_json


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    ONE = 1


@dataclass
class Spot:
    x: float
    tags: tuple[str, ...] = ()


class Document(BaseModel):
    amount: float
    price: Decimal
    at: datetime
    spot: Spot
    words: set[str]
    counts: dict[int, float]


NUMBERS = (
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
)
JSON = st.recursive(
    NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_that_went_through_json_has_the_same_digest(value: Any):
    assert digest(json.loads(json.dumps(value))) == digest(value)


@given(JSON)
def test_floats_in_the_place_of_equal_integers_have_the_same_digest(value: Any):
    assert digest(_as_floats(value)) == digest(value)


def _as_floats(value: Any) -> Any:
    """As a float field of a model would make of it."""
    if type(value) is int and float(min(max(value, -(2**53)), 2**53)) == value:
        return float(value)
    if isinstance(value, list):
        return [_as_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_floats(item) for key, item in value.items()}
    return value


@given(JSON, JSON)
def test_what_is_not_equal_has_another_digest(one: Any, other: Any):
    """Python takes True for 1; nothing else is equal here that differs."""
    assert (digest(one) == digest(other)) == (_typed(one) == _typed(other))


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return ["list", *map(_typed, value)]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return ("bool", value) if isinstance(value, bool) else ("plain", value)


SAME: dict[str, tuple[Any, Any]] = {
    "zero": (0, 0.0),
    "negative zero": (0.0, -0.0),
    "a large number": (10**22, 1e22),
    "the largest float": (int(sys.float_info.max), sys.float_info.max),
    "not a number": (float("nan"), float("nan")),
    "order of keys": ({"a": {"x": 1, "y": 2}, "b": 2}, {"b": 2, "a": {"y": 2, "x": 1}}),
    "order of a set": ({"a", "b", "c"}, {"c", "b", "a"}),
    "order of keys that are no text": ({1: "a", 2: "b"}, {2: "b", 1: "a"}),
    "a key's number": ({1: "a"}, {1.0: "a"}),
    "number of an object": (Spot(1), Spot(1.0)),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same(case: str):
    one, other = SAME[case]
    assert digest(one) == digest(other)


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "number and bool": (1, True),
    "zero and false": (0, False),
    "number and text": (1, "1"),
    "numbers": (0.1, 0.1 + 2**-55),
    "numbers beyond what a float holds": (2**53, 2**53 + 1),
    "huge numbers": (2**5000, 2**5000 + 1),
    "infinities": (float("inf"), float("-inf")),
    "infinity and text": (float("inf"), "inf"),
    "a composed letter and a decomposed one": ("\u00e9", "e\u0301"),
    "list and tuple": ([1], (1,)),
    "set and list": ({1}, [1]),
    "enum and text": (Colour.RED, "red"),
    "enum and number": (Level.ONE, 1),
    "bytes and text": (b"a", "a"),
    "keys": ({1: "a"}, {"1": "a"}),
    "dicts of another type": ({"a": 1}, OrderedDict(a=1)),
    "a tagged dict and what it looks like": (float("inf"), {"$type": "float", "value": "inf"}),
    "decimals": (Decimal("1.1"), 1.1),
    "none and empty": (None, ""),
    "lone surrogates": ("\ud800", "\ud801"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different(case: str):
    one, other = DIFFERENT[case]
    assert digest(one) != digest(other)


def test_a_value_that_comes_back_by_its_type_has_the_same_digest():
    """Tuples, sets and keys that are no text come back as what the type says."""
    document = Document(
        amount=0,
        price=Decimal("1.10"),
        at=datetime(2026, 5, 1, tzinfo=UTC),
        spot=Spot(2.0, ("a", "b")),
        words={"x", "y"},
        counts={1: 0.0, 2: -0.0},
    )
    adapter = TypeAdapter(Document)
    assert digest(adapter.validate_json(adapter.dump_json(document))) == digest(document)


@given(JSON)
def test_a_journals_digest_does_not_tell_a_float_from_an_equal_integer(value: Any):
    assert digest_of_json(_as_floats(value)) == digest_of_json(json.loads(json.dumps(value)))


def test_journals_are_found_by_the_digests_that_they_were_written_under():
    for value, expected in (
        ([1, "request", {"b": 2.0, "a": None}, ["\u00e9", True, 0.5]], "ac6c71d7"),
        ({"$type": "X", "items": ("a", 1)}, "2f95193d"),
    ):
        assert digest_of_json(value)[:8] == expected


def test_a_path_is_called_the_same_on_every_system():
    assert canonical_json(Path("a/b")) == '{"$type":"Path","value":"a/b"}'
    assert canonical_json(PurePosixPath("a")) == '{"$type":"PurePath","value":"a"}'


def test_what_has_no_content_that_is_known_has_no_digest():
    for value in (object(), (n for n in ()), print, {"client": object()}):
        with pytest.raises(TypeError, match="has no canonical JSON"):
            digest(value)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(RecursionError):
        digest(circle)


def test_no_hash_seed_changes_a_digest():
    """This process has a seed of its own, another one in each run."""
    value = [{"b", "a", "c", "d"}, frozenset([("x", 1), ("y", 2)]), {(1, "a"): {"z": 0.0}}]
    program = (
        "from fastroai.serialization.canonical_json import digest\n"
        f"print(digest(eval({repr(value)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "42", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(value)
    assert digest(value) == "834e5531dadcf20abf0610bedd494157f3bdf920e725b4a063015676823072da"
