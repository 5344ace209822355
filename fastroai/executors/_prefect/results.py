"""Step results as typed JSON: written and read through the type the code declares, never by a name in the data."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from prefect.serializers import Serializer
from pydantic import BaseModel, ConfigDict, StrictInt, TypeAdapter, ValidationError

from ...errors import ResultStorageError
from ...pipelines.agent_step import AgentStepWrapper
from ...pipelines.base import BaseStep
from ...pipelines.decorators import FunctionStep
from ...pipelines.schemas import ConversationState, StepUsage
from ...usage.ledger import LedgerEntry
from ..protocol import StepRecord

FORMAT: Literal[1] = 1
SERIALIZER: Literal["fastroai-json"] = "fastroai-json"


class StoredStep:
    """What a step's task returns: plain JSON that Prefect does not look into.

    Prefect notes the result of a task, and one level of what it holds, by `id()`, and takes any later task with such an
    object among its parameters for a dependent. The keys of a dict are shared strings, so a dict would draw edges
    between steps that have none.
    """

    __slots__ = ("__weakref__", "content")

    def __init__(self, content: Any) -> None:
        self.content = content


class StepResultSerializer(Serializer):  # no Serializer[Any]: Prefect would register that, under no name
    """Plain JSON under a name of our own: Prefect's `json` imports the classes that the data names."""

    type: Literal["fastroai-json"] = SERIALIZER

    def dumps(self, obj: Any) -> bytes:
        """A stored step as bytes. Of the error of a failed task, which Prefect hands over too, the text is kept."""
        if isinstance(obj, StoredStep):
            content = obj.content
        elif isinstance(obj, BaseException):
            content = {"error": f"{type(obj).__name__}: {obj}"}
        else:
            raise TypeError(f"Only results of steps are stored here, not a {type(obj).__qualname__}.")
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()

    def loads(self, blob: bytes) -> Any:
        """The stored JSON, as it is."""
        return StoredStep(json.loads(blob))


@dataclass(frozen=True)
class StepCodec:
    """Encodes and decodes one step's outputs.

    An output is stored as the step's declared type when it comes back equal through it; as it is when it is plain
    JSON; as a `ConversationState` when it is one. Nothing else is stored.
    """

    step_id: str
    declared: Any
    adapter: TypeAdapter[Any] | None

    @classmethod
    def of(cls, step_id: str, step: BaseStep[Any, Any]) -> StepCodec:
        """The codec for a step, from what its code declares."""
        declared = declared_output(step)
        return cls(step_id, declared, None if declared is Any else TypeAdapter(declared))

    def encode(self, output: Any) -> dict[str, Any]:
        """An output as plain JSON.

        Raises:
            ResultStorageError: It would not come back equal. The message names the step, the type and the remedy.
        """
        if _is_plain(output):
            return {"codec": "json", "value": output}
        if self.adapter is not None:
            # Whatever a type's own serializer or comparison raises, it means: not through this type.
            with suppress(Exception):
                value = json.loads(self.adapter.dump_json(output, warnings="error"))
                if _same(_validate(self.adapter, value), output):
                    return {"codec": "declared", "value": value}
        if isinstance(output, ConversationState) and _is_plain(output.data) and _is_plain(output.context):
            return {"codec": "conversation", "value": output.model_dump(mode="json")}
        declared = "declares no return type" if self.declared is Any else f"declares {self.declared!r}"
        raise ResultStorageError(
            f"Step '{self.step_id}' returned {type(output).__qualname__}, which can't be stored and read back equal; "
            f"the step {declared}. Declare its return type as a pydantic model, a dataclass or another "
            "type pydantic can read back, or set persist_result=False in its StepConfig."
        )

    def decode(self, stored: Any) -> Any:
        """An output from plain JSON.

        Raises:
            ResultStorageError: The stored value does not fit what the code declares now.
        """
        try:
            codec, value = stored["codec"], stored["value"]
            if codec == "json":
                return value
            if codec == "conversation":
                return ConversationState(**value)
            if codec != "declared" or self.adapter is None:
                raise TypeError(f"codec {codec!r}, while the step declares {self.declared!r}")
            return _validate(self.adapter, value)
        except (KeyError, TypeError, ValidationError) as error:
            raise ResultStorageError(
                f"The stored result of step '{self.step_id}' does not fit {self.declared!r}: {error}"
            ) from error


class _StoredRecord(BaseModel):
    """The shape of what is stored; anything else that is found is a miss."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    step_id: str
    output: Any
    entries: tuple[LedgerEntry, ...]
    usage: StepUsage | None
    attempts: StrictInt
    duration_ms: StrictInt


def encode_record(record: StepRecord, codec: StepCodec) -> dict[str, Any]:
    """A step's record as the plain JSON that is stored."""
    stored = _StoredRecord(
        step_id=record.step_id,
        output=codec.encode(record.output),
        entries=record.entries,
        usage=record.usage,
        attempts=record.attempts,
        duration_ms=record.duration_ms,
    )
    # The output is JSON already, and may hold text that pydantic does not encode.
    return stored.model_dump(mode="json", exclude={"output"}) | {"output": stored.output}


def unstorable_record(record: StepRecord) -> dict[str, Any]:
    """What is stored in the place of a record that can't be: whoever reads it takes it for a miss."""
    return {"format": FORMAT, "step_id": record.step_id, "unstorable": type(record.output).__qualname__}


def decode_record(stored: Any, codec: StepCodec) -> StepRecord:
    """A step's record as it was stored, marked as replayed.

    Raises:
        ResultStorageError: It is not a record of this step.
    """
    try:
        content = _StoredRecord.model_validate(getattr(stored, "content", None))
    except ValidationError as error:
        raise ResultStorageError(f"The stored result of step '{codec.step_id}' can't be read: {error}") from error
    if content.step_id != codec.step_id:
        raise ResultStorageError(f"What is stored for step '{codec.step_id}' is of step '{content.step_id}'.")
    return StepRecord(
        step_id=content.step_id,
        output=codec.decode(content.output),
        entries=content.entries,
        usage=content.usage,
        attempts=content.attempts,
        duration_ms=content.duration_ms,
        replayed=True,
    )


def declared_output(step: BaseStep[Any, Any]) -> Any:
    """The type a step's code declares for its output; `Any` where it declares none."""
    if isinstance(step, AgentStepWrapper):
        return _plain_type(getattr(step.agent.agent, "output_type", Any))
    if isinstance(step, FunctionStep):
        return _return_hint(step.function)
    hint = _return_hint(type(step).execute)
    return hint if hint is not Any else _base_argument(type(step))


def _return_hint(function: Any) -> Any:
    try:
        hint = get_type_hints(function, include_extras=True).get("return", Any)
    except Exception:  # a forward reference that can't be resolved here declares nothing we could use
        return Any
    return _plain_type(hint)


def _base_argument(cls: type) -> Any:
    """`Out` of `BaseStep[Deps, Out]` among a class's bases."""
    for klass in cls.__mro__:
        for base in getattr(klass, "__orig_bases__", ()):
            if get_origin(base) is BaseStep:
                return _plain_type(get_args(base)[1])
    return Any


def _plain_type(hint: Any) -> Any:
    """A hint that pydantic can build an adapter for, or `Any`."""
    try:
        TypeAdapter(hint)
    except Exception:  # a TypeVar, an output function, a custom class: nothing that could be read back
        return Any
    return Any if hint is object else hint


def _validate(adapter: TypeAdapter[Any], value: Any) -> Any:
    return adapter.validate_json(json.dumps(value))


def _same(decoded: Any, output: Any) -> bool:
    return _kind(decoded) is _kind(output) and bool(decoded == output)


def _kind(value: Any) -> Any:
    """A value's type; of a generic model the bare one, since people write `State(data=…)` for a `State[Data]`."""
    generic: Any = getattr(type(value), "__pydantic_generic_metadata__", {})
    return generic.get("origin") or type(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is JSON already, so that it comes back equal and of the same types."""
    if value is None or type(value) in (str, bool, int):
        return True
    if type(value) is float:
        return value == value and value not in (float("inf"), float("-inf"))
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_is_plain, value.values()))
    return False
