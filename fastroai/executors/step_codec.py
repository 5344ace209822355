"""Step outputs as JSON, by the type that the step's code declares."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import ResultStorageError
from ..pipelines.base import BaseStep
from ..pipelines.schemas import ConversationState
from ..serialization.codec import Codec, Encoded, NotFaithfulError
from ..serialization.strict_json import is_plain
from .output_types import DeclaredOutput, declared_output


@dataclass(frozen=True)
class StepCodec:
    """Encodes and decodes one step's outputs.

    As `Codec` does; a `ConversationState` of plain JSON also where the step declares nothing.
    """

    step_id: str
    output: DeclaredOutput

    @classmethod
    def of(cls, step_id: str, step: BaseStep[Any, Any]) -> StepCodec:
        """The codec for a step, from what its code declares.

        That is found out once: building an adapter takes milliseconds for a large model.
        """
        declared: DeclaredOutput | None = None
        with suppress(TypeError):  # a step that has no hash or no weak reference
            declared = _declarations.get(step)
        if declared is None:
            declared = declared_output(step)
            with suppress(TypeError):
                _declarations[step] = declared
        return cls(step_id, declared)

    def encode(self, output: Any) -> Encoded:
        """An output as plain JSON.

        Raises:
            ResultStorageError: It would not come back the same. The message names the step, the
                type and the remedy.
        """
        try:
            return Codec(self.output.adapter).encode(output)
        except NotFaithfulError as error:
            if _is_plain_conversation(output):
                return {"codec": "conversation", "value": _conversation(output)}
            raise ResultStorageError(
                f"Step '{self.step_id}' returned {type(output).__qualname__}, which can't be "
                f"stored and {error}; the step {self.output.described}. Declare its return type as "
                "a pydantic model, a dataclass or another type pydantic can read back, or set "
                "persist_result=False in its StepConfig."
            ) from error

    def decode(self, stored: Any) -> Any:
        """An output from plain JSON.

        Raises:
            ResultStorageError: The stored value is not one that `encode` makes, as the code is now.
        """
        try:
            if stored["codec"] == "conversation":
                return _decoded_conversation(stored)
            return Codec(self.output.adapter).decode(stored)
        # whatever a type's own code raises for a value that it never wrote
        except Exception as error:
            raise ResultStorageError(
                f"The stored result of step '{self.step_id}' does not fit, as the step "
                f"{self.output.described}: {error}"
            ) from error


def _is_plain_conversation(output: object) -> bool:
    return (
        isinstance(output, ConversationState) and is_plain(output.data) and is_plain(output.context)
    )


def _conversation(state: ConversationState[Any]) -> dict[str, Any]:
    return {"status": state.status.value, "data": state.data, "context": state.context}


def _decoded_conversation(stored: dict[str, Any]) -> ConversationState[Any]:
    value = stored["value"]
    if len(stored) != 2 or not is_plain(value):
        raise TypeError("more or other than a codec and its value")
    state: ConversationState[Any] = ConversationState.model_validate(value)
    if json.dumps(_conversation(state)) != json.dumps(value):
        raise ValueError(f"{_conversation(state)!r} was expected instead of {value!r}")
    return state


_declarations: WeakKeyDictionary[BaseStep[Any, Any], DeclaredOutput] = WeakKeyDictionary()
"""Kept for as long as their steps, which outlive runs."""
