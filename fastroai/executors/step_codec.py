"""Step outputs as JSON: written and read through the type the code declares, never by a name in the
data.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter

from ..errors import ResultStorageError
from ..pipelines.base import BaseStep
from ..pipelines.schemas import ConversationState
from ..serialization.round_trip import holds_set, same
from ..serialization.strict_json import is_plain
from ..serialization.tagged_json import pack, unpack
from .output_types import declared_output


@dataclass(frozen=True)
class StepCodec:
    """Encodes and decodes one step's outputs.

    An output is stored as it is when it is plain JSON; through the step's declared type when it
    comes back the same from that type's JSON, or from its Python form; as a `ConversationState`
    when it is one. Nothing else is stored.
    """

    step_id: str
    declared: Any
    adapter: TypeAdapter[Any] | None

    @classmethod
    def of(cls, step_id: str, step: BaseStep[Any, Any]) -> StepCodec:
        """The codec for a step, from what its code declares."""
        declared, adapter = _declaration(step)
        return cls(step_id, declared, adapter)

    def encode(self, output: Any) -> dict[str, Any]:
        """An output as plain JSON.

        Raises:
            ResultStorageError: It would not come back the same. The message names the step, the
                type and the remedy.
        """
        if is_plain(output):
            return {"codec": "json", "value": output}
        reason = "read back equal"
        try:
            # Not through a type's own JSON, which lists a set in the order of this process.
            codecs = ("python", "declared") if holds_set(output) else ("declared", "python")
            for codec in codecs if self.adapter is not None else ():
                # Whatever a type's own serializer or comparison raises, it means: not in this way.
                with suppress(Exception):
                    value = self._dump(codec, output)
                    if is_plain(value) and same(self._load(codec, value), output):
                        return {"codec": codec, "value": value}
        except TypeError as error:
            reason = f"read back: {error}"
        if (
            isinstance(output, ConversationState)
            and is_plain(output.data)
            and is_plain(output.context)
        ):
            return {"codec": "conversation", "value": _conversation(output)}
        declared = (
            "declares no return type" if self.declared is Any else f"declares {self.declared!r}"
        )
        raise ResultStorageError(
            f"Step '{self.step_id}' returned {type(output).__qualname__}, which can't be stored "
            f"and {reason}; the step {declared}. Declare its return type as a pydantic model, a "
            "dataclass or another type pydantic can read back, or set persist_result=False in its "
            "StepConfig."
        )

    def decode(self, stored: Any) -> Any:
        """An output from plain JSON.

        Raises:
            ResultStorageError: The stored value is not one that `encode` makes, as the code is now.
        """
        try:
            codec, value = stored["codec"], stored["value"]
            if len(stored) != 2 or not is_plain(value):
                raise TypeError("more or other than a codec and its value")
            if codec == "json":
                return value
            if codec == "conversation":
                output: Any = ConversationState.model_validate(value)
                again = _conversation(output)
            elif codec in ("declared", "python") and self.adapter is not None:
                output = self._load(codec, value)
                again = self._dump(codec, output)
            else:
                raise TypeError(f"codec {codec!r}, while the step declares {self.declared!r}")
            # Text for a number, say: pydantic takes it, we never wrote it. Of a set, the order is
            # the writer's.
            if json.dumps(again) != json.dumps(value) and not (
                codec == "declared" and holds_set(output)
            ):
                raise ValueError(f"{again!r} was expected instead of {value!r}")
        # whatever a type's own code raises for a value that it never wrote
        except Exception as error:
            raise ResultStorageError(
                f"The stored result of step '{self.step_id}' does not fit {self.declared!r}: "
                f"{error}"
            ) from error
        return output

    def _dump(self, codec: str, output: Any) -> Any:
        assert self.adapter is not None
        # Fields by their own names, and without what is computed from others.
        if codec == "python":
            return pack(
                self.adapter.dump_python(output, by_alias=False, round_trip=True, warnings="error")
            )
        return json.loads(
            self.adapter.dump_json(output, by_alias=False, round_trip=True, warnings="error")
        )

    def _load(self, codec: str, value: Any) -> Any:
        assert self.adapter is not None
        if codec == "python":
            return self.adapter.validate_python(unpack(value), by_alias=False, by_name=True)
        return self.adapter.validate_json(json.dumps(value), by_alias=False, by_name=True)


def _conversation(state: ConversationState[Any]) -> dict[str, Any]:
    return {"status": state.status.value, "data": state.data, "context": state.context}


_declarations: WeakKeyDictionary[BaseStep[Any, Any], tuple[Any, TypeAdapter[Any] | None]] = (
    WeakKeyDictionary()
)


def _declaration(step: BaseStep[Any, Any]) -> tuple[Any, TypeAdapter[Any] | None]:
    """A step's declared type and its adapter, made once: building one takes milliseconds for a
    large model.
    """
    with suppress(TypeError, KeyError):  # a step that has no hash or no weak reference
        return _declarations[step]
    declared = declared_output(step)
    found = declared, None if declared is Any else TypeAdapter(declared)
    with suppress(TypeError):
        _declarations[step] = found
    return found
