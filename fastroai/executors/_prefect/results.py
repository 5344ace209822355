"""Step results: the record that Prefect stores of a finished step, and its decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from prefect.serializers import Serializer
from pydantic import BaseModel, ConfigDict, StrictInt

from ...errors import ResultStorageError
from ...ledger.entries import LedgerEntry
from ...pipelines.schemas import StepUsage
from ...serialization.strict_json import loads_strictly
from ..protocol import StepRecord
from ..step_codec import StepCodec
from .caching import CacheKey

FORMAT: Literal[1] = 1
SERIALIZER: Literal["fastroai-json"] = "fastroai-json"


class StoredStep:
    """What a step's task returns: plain JSON that Prefect does not look into, as it would into a
    dataclass.

    Prefect notes the result of a task, and one level of what it holds, by `id()`, and takes any
    later task with such an object among its parameters for a dependent. The keys of a dict are
    shared strings, so a dict would draw edges between steps that have none. It also walks through
    all that a task waits for, twice for each task.
    """

    __slots__ = ("__weakref__", "content")

    def __init__(self, content: Any) -> None:
        self.content = content


# no Serializer[Any]: Prefect would register that, under no name
class StepResultSerializer(Serializer):
    """Plain JSON under a name of our own: Prefect's `json` imports the classes that the data
    names.
    """

    type: Literal["fastroai-json"] = SERIALIZER

    def dumps(self, obj: Any) -> bytes:
        """A stored step as bytes.

        Of the error of a failed task, which Prefect hands over too, the text is kept.
        """
        if isinstance(obj, StoredStep):
            content = obj.content
        elif isinstance(obj, BaseException):
            content = {"error": f"{type(obj).__name__}: {obj}"}
        else:
            raise TypeError(
                f"Only results of steps are stored here, not a {type(obj).__qualname__}."
            )
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()

    def loads(self, blob: bytes) -> Any:
        """The stored JSON, as it is."""
        return StoredStep(loads_strictly(blob))


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
    reads: dict[str, str]
    key: dict[str, Any] | None = None
    """What the record's key is made of; older records don't say."""

    def as_json(self) -> dict[str, Any]:
        """The record as it is stored."""
        # The output is JSON already, and may hold text that pydantic does not encode.
        unwritten = {"output"} if self.key is not None else {"output", "key"}
        return self.model_dump(mode="json", exclude=unwritten) | {"output": self.output}


def encode_record(
    record: StepRecord,
    codec: StepCodec,
    reads: Mapping[str, str],
    key: CacheKey | None = None,
) -> dict[str, Any]:
    """A step's record as the plain JSON that is stored.

    Args:
        reads: Digest of each value of the run's input that the step has read.
        key: Under what it is stored; what that is made of is stored, too.
    """
    stored = _StoredRecord(
        step_id=record.step_id,
        output=codec.encode(record.output),
        entries=record.entries,
        usage=record.usage,
        attempts=record.attempts,
        duration_ms=record.duration_ms,
        reads=dict(reads),
        key=None if key is None else dict(vars(key)),
    )
    return stored.as_json()


def unstorable_record(record: StepRecord) -> dict[str, Any]:
    """What is stored in the place of a record that can't be: whoever reads it takes it for a
    miss.
    """
    return {
        "format": FORMAT,
        "step_id": record.step_id,
        "unstorable": type(record.output).__qualname__,
    }


def decode_record(stored: Any, codec: StepCodec, formerly: str | None = None) -> StepRecord:
    """A step's record as it was stored, marked as replayed.

    Args:
        formerly: Id of the step before it was renamed.

    Raises:
        ResultStorageError: It is not a record of this step.
    """
    try:
        found = getattr(stored, "content", None)
        content = _StoredRecord.model_validate(found)
        # pydantic takes the text "1" for 1; we never wrote it
        if not agrees(found, content.as_json()):
            raise ValueError("it is not written as a record is")
    except (ValueError, RecursionError) as error:
        raise ResultStorageError(
            f"The stored result of step '{codec.step_id}' can't be read: {error}"
        ) from error
    if content.step_id not in (codec.step_id, formerly):
        raise ResultStorageError(
            f"What is stored for step '{codec.step_id}' is of step '{content.step_id}'."
        )
    return StepRecord(
        step_id=codec.step_id,
        output=codec.decode(content.output),
        entries=content.entries,
        usage=content.usage,
        attempts=content.attempts,
        duration_ms=content.duration_ms,
        replayed=True,
    )


def agrees(found: Any, written: Any) -> bool:
    """Whether JSON is what would be written now, save for fields that an earlier version did not
    have.
    """
    if type(found) is not type(written):
        return False
    if type(found) is dict:
        fields = [agrees(found[name], written[name]) for name in found if name in written]
        return len(fields) == len(found) and all(fields)
    if type(found) is list:
        return len(found) == len(written) and all(map(agrees, found, written))
    return bool(found == written)
