"""A model that answers from a journal if it can."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import CompletedStreamedResponse, Model, StreamedResponse

from ..ledger.entries import LedgerEntry
from .encoding import adapter_of, as_json
from .journal import Journal
from .requests import Books, RequestOfModel, RequestWrapper

_SENT = ("kind", "parts", "instructions", "provider_response_id")
"""Fields of messages that a model is sent; the others tell of the run."""
_NOT_SENT = frozenset({"timestamp", "metadata"})
"""Fields of their parts that it is not sent."""
_GENERATED_ID = "pyd_ai_"
"""How ids begin that pydantic-ai makes up, where they may differ from run to run."""


class JournaledModel(RequestWrapper):
    """Answers from the journal what was answered in an earlier attempt, and records what is
    answered now.

    Args:
        wrapped: The metered model: what comes from the journal never reaches it.
        books: The run's `RequestMeter`.
    """

    def __init__(self, wrapped: Model, journal: Journal, books: Books) -> None:
        super().__init__(wrapped, books)
        self._journal = journal

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        place = self._place(request)
        if (recorded := await self._recall(place)) is not None:
            return recorded
        sent_before = len(self.books.entries)
        response = await request.answer_of(self.wrapped)
        await self._keep(place, response, sent_before)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        place = self._place(request)
        if (recorded := await self._recall(place)) is not None:
            yield CompletedStreamedResponse(
                recorded, model_request_parameters=request.parameters, replay_events=True
            )
            return
        sent_before = len(self.books.entries)
        async with request.stream_of(self.wrapped) as stream:
            yield stream
        await self._keep(place, stream.get(), sent_before)

    def _place(self, request: RequestOfModel) -> str:
        messages = ModelMessagesTypeAdapter.dump_python(request.messages, mode="json")
        return self._journal.place(
            "request",
            self.wrapped.model_id,
            [_sent(message) for message in messages],
            as_json(request.settings),
            as_json(request.parameters),
        )

    async def _recall(self, place: str) -> ModelResponse | None:
        record = await self._journal.read(place)
        if record is None:
            return None
        try:
            response: ModelResponse = adapter_of(ModelResponse).validate_json(
                json.dumps(record["response"])
            )
            entries = adapter_of(tuple[LedgerEntry, ...]).validate_json(
                json.dumps(record["entries"])
            )
        except (KeyError, ValueError):
            return None
        self.books.replayed(entries)
        return response

    async def _keep(self, place: str, response: ModelResponse, sent_before: int) -> None:
        if response.state != "complete":
            return
        paid = tuple(entry for entry in self.books.entries[sent_before:] if entry.is_spend)
        await self.books.settled()
        await self._journal.write(
            place,
            response=adapter_of(ModelResponse).dump_python(response, mode="json"),
            entries=adapter_of(tuple[LedgerEntry, ...]).dump_python(paid, mode="json"),
        )


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """What a model is sent of a message."""
    sent = {name: message[name] for name in _SENT if name in message}
    sent["parts"] = [
        {name: _known_id(value) for name, value in part.items() if name not in _NOT_SENT}
        for part in message["parts"]
    ]
    return sent


def _known_id(value: Any) -> Any:
    return _GENERATED_ID if isinstance(value, str) and value.startswith(_GENERATED_ID) else value
