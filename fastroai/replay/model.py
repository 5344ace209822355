"""A model that answers from a journal if it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import (
    CompletedStreamedResponse,
    Model,
    ModelRequestContext,
    StreamedResponse,
)

from ..ledger.entries import LedgerEntry
from .encoding import adapter_of
from .journal import Journal, JournalRecord
from .later_fields import drop_later_defaults, has_later_fields, known_parameters
from .requests import Books, RequestOfModel, RequestWrapper

# Fields of messages that a model is sent; the others tell of the run.
_SENT = ("kind", "parts", "instructions", "provider_response_id")
# Fields of their parts that it is not sent.
_NOT_SENT = ("timestamp", "metadata")
# How ids begin that pydantic-ai makes up, where they may differ from run to run.
_GENERATED_ID = "pyd_ai_"

RECORDING_SECONDS = 5.0
"""How long a request that is cancelled waits for its answer to be recorded."""


@dataclass(frozen=True, slots=True)
class _Answer(JournalRecord):
    response: ModelResponse
    entries: tuple[LedgerEntry, ...]


class JournaledModel(RequestWrapper):
    """Answers from the journal what was answered in an earlier attempt, and records what is
    answered now.

    Args:
        wrapped: The metered model: what comes from the journal never reaches it.
        books: The run's `RequestMeter`.
    """

    def __init__(self, wrapped: Model, journal: Journal, books: Books) -> None:
        super().__init__(wrapped, books)
        self.journal = journal

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        asked = self._asked_before(request) if self.journal.waiting else None
        if asked is None:
            asked = self.place_of(request), len(self.books.sent)
            if (recorded := await self.recall(asked[0])) is not None:
                return recorded
        response = await request.answer_of(self.wrapped)
        await self._keep_or_wait(response, *asked)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        asked = self._asked_before(request) if self.journal.waiting else None
        if asked is None:
            asked = self.place_of(request), len(self.books.sent)
            if (recorded := await self.recall(asked[0])) is not None:
                yield CompletedStreamedResponse(
                    recorded, model_request_parameters=request.parameters, replay_events=True
                )
                return
        async with request.stream_of(self.wrapped) as stream:
            yield stream
        await self._keep_or_wait(stream.get(), *asked)

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        context = request_context
        asked = RequestOfModel(
            context.messages, context.model_settings, context.model_request_parameters
        )
        place, sent_before = self.place_of(asked, "compact", instructions), len(self.books.sent)
        if (recorded := await self.recall(place)) is not None:
            return recorded
        response = await self.wrapped.compact_messages(context, instructions=instructions)
        await self.keep(place, response, sent_before)
        return response

    def _asked_before(self, request: RequestOfModel) -> tuple[str, int] | None:
        """Where the answer belongs for which this request only looks whether it is there."""
        last = request.messages[-1] if request.messages else None
        return self.journal.waiting.get(getattr(last, "provider_response_id", None) or "")

    async def _keep_or_wait(self, response: ModelResponse, place: str, sent_before: int) -> None:
        is_to_come = response.state == "suspended" and response.provider_response_id is not None
        if is_to_come and self.wrapped.continuation_delay(response) is not None:
            self.journal.waiting[response.provider_response_id or ""] = place, sent_before
        else:
            await self.keep(place, response, sent_before)

    def place_of(self, request: RequestOfModel, kind: str = "request", *more: str | None) -> str:
        """Where the answer to a request belongs, this being the next time it is asked."""
        messages = ModelMessagesTypeAdapter.dump_python(request.messages, mode="json")
        sent = list(map(sent_of, messages))
        parameters: object = request.parameters
        if has_later_fields():
            drop_later_defaults(sent)
            parameters = known_parameters(request.parameters)
        model_id = self.wrapped.model_id
        return self.journal.place(kind, model_id, sent, request.settings, parameters, *more)

    async def recall(self, place: str) -> ModelResponse | None:
        """The recorded answer, booked as replayed; None where there is none."""
        adapter: TypeAdapter[_Answer] = adapter_of(_Answer)
        record = await self.journal.read(place, adapter)
        if record is None:
            return None
        self.books.replayed(record.entries)
        return record.response

    async def keep(self, place: str, response: ModelResponse, sent_before: int) -> None:
        """Record an answer, with what was paid for it since so many entries."""
        if response.state != "complete":
            return
        paid = tuple(entry for entry in self.books.entries[sent_before:] if entry.is_spend)
        recording = asyncio.create_task(self._record(place, response, paid))
        try:
            await asyncio.shield(recording)
        except asyncio.CancelledError:
            # It is paid for: whoever cancels has a moment to wait, and not an answer less.
            with anyio.move_on_after(RECORDING_SECONDS, shield=True):
                await asyncio.wait({recording})
            raise

    async def _record(
        self, place: str, response: ModelResponse, paid: tuple[LedgerEntry, ...]
    ) -> None:
        await self.books.settled()
        await self.journal.write(
            place,
            response=adapter_of(ModelResponse).dump_python(response, mode="json"),
            entries=adapter_of(tuple[LedgerEntry, ...]).dump_python(paid, mode="json"),
        )


def sent_of(message: dict[str, Any]) -> dict[str, Any]:
    """What a model is sent of a message, whose parts are changed to that."""
    for part in message["parts"]:
        for name in _NOT_SENT:
            part.pop(name, None)
        for name, value in part.items():
            if isinstance(value, str) and value.startswith(_GENERATED_ID):
                part[name] = _GENERATED_ID
    sent: dict[str, Any] = {}
    for name in _SENT:
        if name in message:
            sent[name] = message[name]
    return sent
