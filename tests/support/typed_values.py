"""Pairs of a declared type and a value, generated; and a spelling of values that tells every type
in them.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union
from uuid import UUID

from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from fastroai import ConversationState, ConversationStatus

T = TypeVar("T")


class Colour(Enum):
    RED = 1
    BLUE = "1"
    PAIR = (1, 2)


class Count(IntEnum):
    ONE = 1
    TWO = 2


class Level(StrEnum):
    HIGH = "high"
    ONE = "1"


class Named(NamedTuple):
    x: int
    y: str


class OtherNamed(NamedTuple):
    x: int
    y: str


class Typed(TypedDict, total=False):
    a: int
    b: bytes


class One(BaseModel):
    x: int
    data: bytes = b""


class Twin(BaseModel):
    """Looks like `One`."""

    x: int
    data: bytes = b""


class Derived(One):
    more: str = ""


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    when: datetime
    labels: tuple[str, ...] = ()
    count: Count = Count.ONE


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    anything: Any = None


class Aliased(BaseModel):
    inner: One = Field(alias="INNER")
    other: int = Field(default=0, validation_alias=AliasChoices("o", "O"), serialization_alias="oo")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.other


class Box(BaseModel, Generic[T]):
    content: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int


class Node(BaseModel):
    name: str
    children: list[Node] = []


@dataclasses.dataclass
class Point:
    x: float
    seen: set[str] = dataclasses.field(default_factory=set, compare=False)


@dataclasses.dataclass(frozen=True)
class TwinPoint:
    x: float
    seen: frozenset[str] = frozenset()


@dataclasses.dataclass
class Counter:
    start: int
    value: int = dataclasses.field(init=False, default=0)


@pydantic_dataclass
class Checked:
    x: Decimal
    by: dict[int, str]


Pair = tuple[Any, Any]
"""A declared type and a value."""

_text = st.text(max_size=6)
_zones = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=3))]
)

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers() | st.sampled_from([0, 1, -(2**70), 10**30]),
    bool: st.booleans(),
    str: _text | st.sampled_from(["1", "true", "null", "2026-01-01", "\x00", "\u2028", "1.0", "$"]),
    float: st.floats(allow_nan=True) | st.sampled_from([0.0, -0.0, 1.0, 1e308, 5e-324]),
    bytes: st.binary(max_size=8),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False)
    | st.sampled_from(list(map(Decimal, ("1.10", "1E+3")))),
    datetime: st.datetimes(timezones=_zones),
    date: st.dates(),
    time: st.times(),
    timedelta: st.timedeltas(),
    UUID: st.uuids(),
    Path: st.sampled_from([Path("a"), Path("/a/b"), Path(".")]),
    Colour: st.sampled_from(Colour),
    Count: st.sampled_from(Count),
    Level: st.sampled_from(Level),
    complex: st.complex_numbers(allow_nan=False),
    type(None): st.none(),
    Literal[1, "1", True, "a"]: st.sampled_from([1, "1", True, "a"]),
    Annotated[int, Field(ge=0)]: st.integers(0, 9),
}

_one = st.builds(One, x=SCALARS[int], data=SCALARS[bytes])
OBJECTS: dict[Any, st.SearchStrategy[Any]] = {
    One: _one,
    Twin: st.builds(Twin, x=SCALARS[int], data=SCALARS[bytes]),
    Derived: st.builds(Derived, x=SCALARS[int], more=_text),
    Strict: st.builds(
        Strict, when=SCALARS[datetime], labels=st.tuples(_text), count=SCALARS[Count]
    ),
    Open: st.builds(
        lambda a, b: Open(anything=a, extra=b), SCALARS[str] | SCALARS[bytes], SCALARS[int] | _one
    ),
    Aliased: st.builds(lambda i, o: Aliased(INNER=i, o=o), _one, SCALARS[int]),
    Named: st.builds(Named, SCALARS[int], _text),
    OtherNamed: st.builds(OtherNamed, SCALARS[int], _text),
    Typed: st.fixed_dictionaries({}, optional={"a": SCALARS[int], "b": SCALARS[bytes]}),
    Cat: st.builds(Cat, lives=SCALARS[int]),
    Dog: st.builds(Dog, lives=SCALARS[int]),
    Point: st.builds(Point, SCALARS[float], st.sets(_text, max_size=3)),
    TwinPoint: st.builds(TwinPoint, SCALARS[float]),
    Counter: st.builds(Counter, SCALARS[int])
    | st.just(Counter(1)).map(lambda c: setattr(c, "value", 7) or c),
    Checked: st.builds(Checked, SCALARS[Decimal], st.dictionaries(SCALARS[int], _text, max_size=2)),
    Node: st.recursive(
        st.builds(Node, name=_text),
        lambda nodes: st.builds(Node, name=_text, children=st.lists(nodes, max_size=2)),
        max_leaves=4,
    ),
}

_leaf_types = [*SCALARS, *OBJECTS]
_hashable_types = [t for t in SCALARS if t is not float]


def _values(declared: Any) -> st.SearchStrategy[Any]:
    return SCALARS.get(declared, OBJECTS.get(declared))  # type: ignore[return-value,arg-type]


def _states(data: Pair) -> st.SearchStrategy[Any]:
    return st.builds(
        ConversationState,
        status=st.sampled_from(ConversationStatus),
        data=st.just(data[1]) | st.none(),
        context=st.dictionaries(_text, SCALARS[int] | _text, max_size=2),
    )


def either(*types: Any) -> Any:
    """The union of types."""
    return Union[types]  # noqa: UP007  # made of a tuple


_WRAPPED: list[Callable[[Pair, Pair], st.SearchStrategy[Pair]]] = [
    lambda a, b: st.lists(st.just(a[1]), max_size=2).map(lambda v: (list[a[0]], v)),
    lambda a, b: st.just((tuple[a[0], b[0]], (a[1], b[1]))),
    lambda a, b: st.just((tuple[a[0], ...], (a[1], a[1]))),
    lambda a, b: st.just((dict[str, a[0]], {"$": a[1], "value": a[1]})),
    lambda a, b: st.just((either(a[0], b[0]), a[1])),
    lambda a, b: st.just((either(a[0], b[0], None), b[1])),
    lambda a, b: st.just((list[either(a[0], b[0])], [b[1], a[1]])),
    lambda a, b: st.just((list[Any], [a[1], b[1]])),
    lambda a, b: st.just((Any, a[1])),
    lambda a, b: st.just((a[0], b[1])),
    lambda a, b: st.just((Box[a[0]], Box(content=a[1]))),
    lambda a, b: st.just((Box, Box(content=a[1]))),
    lambda a, b: st.just((defaultdict[str, list[a[0]]], defaultdict(list, {"k": [a[1]]}))),
    lambda a, b: st.just((OrderedDict[str, Any], OrderedDict([("b", a[1]), ("a", b[1])]))),
    lambda a, b: _states(a).map(lambda s: (ConversationState[a[0]], s)),
    lambda a, b: _states(a).map(lambda s: (ConversationState, s)),
    lambda a, b: _states(a).map(lambda s: (Any, s)),
]


@st.composite
def _keyed(draw: st.DrawFn) -> Pair:
    declared = draw(st.sampled_from(_hashable_types))
    values = draw(st.lists(_values(declared), max_size=3))
    form = draw(st.sampled_from(["set", "frozenset", "dict", "tuple keys", "either key"]))
    if form == "set":
        return set[declared], set(values)
    if form == "frozenset":
        return frozenset[declared], frozenset(values)
    if form == "dict":
        return dict[declared, int], {value: n for n, value in enumerate(values)}
    if form == "either key":
        return dict[either(str, declared), int], {value: n for n, value in enumerate(values)}
    return dict[tuple[declared, int], str], {(value, n): "v" for n, value in enumerate(values)}


_base: st.SearchStrategy[Pair] = (
    st.sampled_from(_leaf_types).flatmap(
        lambda declared: st.tuples(st.just(declared), _values(declared))
    )
    | _keyed()
)

declared_values: st.SearchStrategy[Pair] = st.recursive(
    _base,
    lambda inner: st.tuples(inner, inner).flatmap(
        lambda pairs: st.one_of(*[make(*pairs) for make in _WRAPPED])
    ),
    max_leaves=4,
)
"""Mostly values of the declared type, some of another one."""


def spelled(value: Any) -> str:
    """A value with the types of all it holds, for one to be told from any other; the order of sets
    does not count.
    """
    kind = type(value)
    if isinstance(value, BaseModel):
        bare = value.__pydantic_generic_metadata__["origin"] or kind
        fields = {name: getattr(value, name) for name in kind.model_fields} | (
            value.model_extra or {}
        )
        return f"{bare.__qualname__}({', '.join(f'{k}={spelled(v)}' for k, v in fields.items())})"
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{kind.__qualname__}({', '.join(f'{k}={spelled(v)}' for k, v in fields.items())})"
    if isinstance(value, Enum):
        return f"{kind.__qualname__}.{value.name}"
    if isinstance(value, dict):
        items = ", ".join(f"{spelled(k)}: {spelled(v)}" for k, v in value.items())
        return f"{kind.__qualname__}{{{items}}}"
    if isinstance(value, set | frozenset):
        return f"{kind.__qualname__}{{{', '.join(sorted(map(spelled, value)))}}}"
    if isinstance(value, list | tuple):
        return f"{kind.__qualname__}[{', '.join(map(spelled, value))}]"
    if isinstance(value, datetime | time):
        # What tells two moments of the same name apart: the offset where there is one, else `fold`.
        return (
            f"{kind.__qualname__} {value.isoformat()} {value.fold if value.tzinfo is None else ''}"
        )
    return f"{kind.__qualname__} {value!r}"
