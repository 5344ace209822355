"""A model that answers from a journal what was answered before."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
)
from pydantic_ai.models import (
    CompletedStreamedResponse,
    Model,
    ModelRequestParameters,
    StreamedResponse,
)
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ..ledger.entries import LedgerEntry
from .encoding import adapter_of, as_json
from .journal import Journal

_SENT = ("kind", "parts", "instructions", "provider_response_id")
"""Fields of messages that a model is sent; the others tell of the run."""
_NOT_SENT = frozenset({"timestamp", "metadata"})
"""Fields of their parts that it is not sent."""
_GENERATED_ID = "pyd_ai_"
"""How ids begin that pydantic-ai makes up, where they may differ from run to run."""


class JournaledModel(WrapperModel):
    """Answers from the journal what was answered in an earlier attempt, and records what is
    answered now.

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
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> str:
        return self._journal.place(
            "request",
            self.wrapped.model_id,
            [
                _sent(message)
                for message in ModelMessagesTypeAdapter.dump_python(messages, mode="json")
            ],
            as_json(settings),
            as_json(parameters),
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
        self._books.replayed(entries)
        return response

    async def _keep(self, place: str, response: ModelResponse, sent_before: int) -> None:
        if response.state != "complete":
            return
        paid = tuple(entry for entry in self._books.entries[sent_before:] if entry.is_spend)
        await self._books.settled()
        await self._journal.write(
            place,
            response=adapter_of(ModelResponse).dump_python(response, mode="json"),
            entries=adapter_of(tuple[LedgerEntry, ...]).dump_python(paid, mode="json"),
        )


class Books(Protocol):
    """What a journaled model asks of the meter."""

    @property
    def entries(self) -> Sequence[LedgerEntry]: ...
    def replayed(self, entries: Sequence[LedgerEntry]) -> None: ...
    async def settled(self) -> None: ...


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
