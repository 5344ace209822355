"""Results of tool calls from the journal, if it has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapToolExecuteHandler
from pydantic_ai.messages import (
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
)
from pydantic_ai.tools import ToolDefinition

from ..serialization.strict_json import is_plain
from .encoding import adapter_of
from .journal import Journal, JournalRecord


@dataclass(frozen=True, slots=True)
class _Returned(JournalRecord):
    returned: Any


class ToolJournal(AbstractCapability[Any]):
    """Gives the results of tool calls that were executed in an earlier attempt, and records those
    of this one.

    A call is known by the model's id for it, so only one whose request was answered from the
    journal is ever found. A result that would not read the same to the model when it comes from a
    record is not recorded: that tool runs again.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        # The call as the model made it: what became of its arguments is the tool's, and to look
        # into an iterator would use it up.
        asked = call.args_as_dict()
        place = self._journal.place("tool", call.tool_name, call.tool_call_id, asked)
        record = await self._journal.read(place, adapter_of(_Returned))
        if record is None and args != asked and is_plain(args):
            # Earlier versions knew a call by its arguments as validated, with their defaults.
            earlier = self._journal.place("tool", call.tool_name, call.tool_call_id, args)
            record = await self._journal.read(earlier, adapter_of(_Returned))
        if record is not None:
            return adapter_of(ToolReturnPart).validate_python(record.returned).content
        result = await handler(args)
        if (returned := recordable(result, call)) is not None:
            await self._journal.write(place, returned=returned)
        return result


def recordable(result: Any, call: ToolCallPart) -> Any:
    """A tool's result as JSON, or None where what comes back is not the same to a model."""
    if isinstance(result, ToolReturn):
        return None
    part = ToolReturnPart(tool_name=call.tool_name, content=result, tool_call_id=call.tool_call_id)
    try:
        returned = json.loads(adapter_of(ToolReturnPart).dump_json(part))
        again = adapter_of(ToolReturnPart).validate_python(returned)
        same = again.model_response_str() == part.model_response_str() and len(again.files) == len(
            part.files
        )
    except (ValueError, TypeError):
        return None
    return returned if same else None
