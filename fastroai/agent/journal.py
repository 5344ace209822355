"""What was answered within a step: when the step is tried again, nothing of it is asked again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Protocol

from pydantic import TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, WrapToolExecuteHandler
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
)
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_core import to_jsonable_python

from ..usage.ledger import LedgerEntry

FORMAT = 1

_SENT = ("kind", "parts", "instructions", "provider_response_id")
"""Fields of messages that a model is sent; the others tell of the run."""
_NOT_SENT = frozenset({"timestamp", "metadata"})
"""Fields of their parts that it is not sent."""
_GENERATED_ID = "pyd_ai_"
"""How ids begin that pydantic-ai makes up, where they may differ from run to run."""


class JournalStore(Protocol):
    """Where a journal outlives its process."""

    async def read(self, key: str) -> bytes | None:
        """What is recorded, or None when that is nothing for sure.

        Raises:
            ResultStorageError: It can't be told; what may have been paid is not to be paid again.
        """
        ...

    async def write(self, key: str, content: bytes) -> None:
        """Record; a failure is told and not raised."""
        ...


class Journal:
    """The answered model requests and tool calls of one step.

    They are found again by what was asked, and the same question asked several times by its number. Concurrent calls
    may therefore come in any order, and a step whose code was changed between two attempts keeps what still fits.

    Args:
        step: Identity of the step within its run; the same whenever the run is executed again.
        store: Where records are kept beyond this process. None: nowhere.
    """

    def __init__(self, step: str, store: JournalStore | None = None) -> None:
        self._step = step
        self._store = store
        self._known: dict[str, bytes] = {}
        self._asked: Counter[str] = Counter()

    @property
    def is_durable(self) -> bool:
        """Whether records outlive the process."""
        return self._store is not None

    def begin_attempt(self) -> None:
        """Read from the beginning again."""
        self._asked.clear()

    def place(self, kind: str, *question: Any) -> str:
        """Where the answer to a question belongs, this being the next time it is asked in this attempt."""
        key = _digest([FORMAT, self._step, kind, *question])
        self._asked[key] += 1
        return f"{key}-{self._asked[key]}"

    async def read(self, place: str) -> dict[str, Any] | None:
        """The record at a place; None where there is none that can be read."""
        content = self._known.get(place)
        if content is None and self._store is not None:
            content = await self._store.read(place)
        if content is None:
            return None
        try:
            record = json.loads(content)
            return record if record["format"] == FORMAT and record["place"] == place else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    async def write(self, place: str, **record: Any) -> None:
        """Record an answer; also when the caller is cancelled meanwhile, since it was paid for."""
        content = json.dumps({"format": FORMAT, "place": place} | record, separators=(",", ":")).encode()
        self._known[place] = content
        if self._store is not None:
            await asyncio.shield(self._store.write(place, content))


class JournaledModel(WrapperModel):
    """Answers from the journal what was answered in an earlier attempt, and records what is answered now.

    Args:
        wrapped: The metered model: what comes from the journal never reaches it.
        books: The run's `RequestMeter`.
    """

    def __init__(self, wrapped: Model, journal: Journal, books: Books) -> None:
        super().__init__(wrapped)
        self._journal = journal
        self._books = books

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        place = self._place(messages, model_settings, model_request_parameters)
        if (recorded := await self._recall(place)) is not None:
            return recorded
        sent_before = len(self._books.entries)
        response = await self.wrapped.request(messages, model_settings, model_request_parameters)
        await self._keep(place, response, sent_before)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        place = self._place(messages, model_settings, model_request_parameters)
        if (recorded := await self._recall(place)) is not None:
            yield CompletedStreamedResponse(
                recorded, model_request_parameters=model_request_parameters, replay_events=True
            )
            return
        sent_before = len(self._books.entries)
        async with self.wrapped.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as stream:
            yield stream
        await self._keep(place, stream.get(), sent_before)

    def _place(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> str:
        return self._journal.place(
            "request",
            self.wrapped.model_id,
            [_sent(message) for message in ModelMessagesTypeAdapter.dump_python(messages, mode="json")],
            _as_json(settings),
            _as_json(parameters),
        )

    async def _recall(self, place: str) -> ModelResponse | None:
        record = await self._journal.read(place)
        if record is None:
            return None
        try:
            response: ModelResponse = _adapter(ModelResponse).validate_json(json.dumps(record["response"]))
            entries = _adapter(tuple[LedgerEntry, ...]).validate_json(json.dumps(record["entries"]))
        except (KeyError, ValueError):
            return None
        self._books.replayed(entries)
        return response

    async def _keep(self, place: str, response: ModelResponse, sent_before: int) -> None:
        if response.state != "complete":
            return
        paid = tuple(entry for entry in self._books.entries[sent_before:] if entry.is_spend)
        await self._books.settled()
        await self._journal.write(
            place,
            response=_adapter(ModelResponse).dump_python(response, mode="json"),
            entries=_adapter(tuple[LedgerEntry, ...]).dump_python(paid, mode="json"),
        )


class Books(Protocol):
    """What a journaled model asks of the meter."""

    @property
    def entries(self) -> Sequence[LedgerEntry]: ...
    def replayed(self, entries: Sequence[LedgerEntry]) -> None: ...
    async def settled(self) -> None: ...


class ToolJournal(AbstractCapability[Any]):
    """Gives the results of tool calls that were executed in an earlier attempt, and records those of this one.

    A call is known by the model's id for it, so only one whose request was answered from the journal is ever found. A
    result that would not read the same to the model when it comes from a record is not recorded: that tool runs again.
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
        place = self._journal.place("tool", call.tool_name, call.tool_call_id, _as_json(args))
        record = await self._journal.read(place)
        if record is not None:
            return _adapter(ToolReturnPart).validate_python(record["returned"]).content
        result = await handler(args)
        if (returned := _recordable(result, call)) is not None:
            await self._journal.write(place, returned=returned)
        return result


def _recordable(result: Any, call: ToolCallPart) -> Any:
    """A tool's result as JSON, or None where what comes back is not the same to a model."""
    if isinstance(result, ToolReturn):
        return None
    part = ToolReturnPart(tool_name=call.tool_name, content=result, tool_call_id=call.tool_call_id)
    try:
        returned = json.loads(_adapter(ToolReturnPart).dump_json(part))
        again = _adapter(ToolReturnPart).validate_python(returned)
        same = again.model_response_str() == part.model_response_str() and len(again.files) == len(part.files)
    except (ValueError, TypeError):
        return None
    return returned if same else None


@cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    """Made when it is needed: that takes longer than to import all the rest of this module."""
    return TypeAdapter(type_)


def _as_json(value: Any) -> Any:
    """A value as plain JSON; of what has no such form only the type counts."""
    return to_jsonable_python(value, fallback=lambda other: type(other).__qualname__)


def _digest(question: Any) -> str:
    text = json.dumps(_normalised(question), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """What a model is sent of a message."""
    sent = {name: message[name] for name in _SENT if name in message}
    sent["parts"] = [
        {name: _known_id(value) for name, value in part.items() if name not in _NOT_SENT} for part in message["parts"]
    ]
    return sent


def _known_id(value: Any) -> Any:
    return _GENERATED_ID if isinstance(value, str) and value.startswith(_GENERATED_ID) else value


def _normalised(value: Any) -> Any:
    """JSON whose numbers are the same before and after a way through a float field."""
    if isinstance(value, dict):
        return {key: _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
