"""Agents' batched requests in the journal: a submitted batch is waited for, not submitted again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, TypeVar

from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import CompletedStreamedResponse, Model, StreamedResponse
from pydantic_ai.models.batch import Batch, BatchRequest
from pydantic_ai.models.wrapper import WrapperModel

from ..replay.encoding import adapter_of
from ..replay.model import JournaledModel
from ..replay.requests import RequestOfModel
from .batch_submissions import take_up
from .booked_batches import BookedRequest, Place, SubmittedRequest, place_of_request
from .sending_methods import MARK

T = TypeVar("T")


def journal_batches() -> None:
    """Have `BatchModelRequests` find in a step's journal what was submitted before."""
    wrap = BatchModelRequests.get_wrapper_model
    if not hasattr(wrap, MARK):
        BatchModelRequests.get_wrapper_model = _journaled(wrap)  # type: ignore[method-assign]


def _journaled(wrap: Callable[..., Model | None]) -> Any:
    @wraps(wrap)
    def wrapped(self: BatchModelRequests, model: Model) -> Model | None:
        batched = wrap(self, model)
        inner: Model = model
        while isinstance(inner, WrapperModel) and not isinstance(inner, JournaledModel):
            inner = inner.wrapped
        if batched is None or not isinstance(inner, JournaledModel):
            return batched
        return JournaledBatches(batched, inner.journal, inner.books)

    setattr(wrapped, MARK, True)
    return wrapped


class JournaledBatches(JournaledModel):
    """Answers from the journal, or waits for the batch that the journal knows of.

    Args:
        wrapped: pydantic-ai's model that submits in batches, around the metered one.
    """

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        waiting = self.journal.waiting
        if (pending := _pending_id(request)) is None:
            place, sent_before = self.place_of(request), len(self.books.sent)
            known = await self.recall(place) or await self._taken_up(request, place)
        else:
            if pending not in waiting:
                return await request.answer_of(self.wrapped)
            (place, sent_before), known = waiting[pending], None
        if (response := known) is None:
            asked = Place(self.journal, place, is_agents=True)
            response = await _within(asked, request.answer_of(self.wrapped))
        if response.state == "suspended" and response.provider_response_id is not None:
            waiting[response.provider_response_id] = place, sent_before
        elif known is None:
            await self.keep(place, response, sent_before)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        response = await self.answer(request)
        yield CompletedStreamedResponse(
            response, model_request_parameters=request.parameters, replay_events=True
        )

    async def _taken_up(self, request: RequestOfModel, place: str) -> ModelResponse | None:
        """The pending answer to a request that an earlier attempt submitted."""
        record = await self.journal.read(place, adapter_of(SubmittedRequest))
        if record is None:
            return None
        asked = BatchRequest(
            custom_id="",
            messages=request.messages,
            model_settings=request.settings,
            model_request_parameters=request.parameters,
        )
        encoded = await _within(
            Place(self.journal, place, known=record, is_agents=True),
            self.wrapped.batch_encode(asked),
        )
        if not isinstance(encoded, BookedRequest):
            return None
        batch = await take_up(self.wrapped, encoded)
        return None if batch is None else _pending(batch, record.custom_id, self.wrapped)


async def _within(place: Place, answer: Awaitable[T]) -> T:
    token = place_of_request.set(place)
    try:
        return await answer
    finally:
        place_of_request.reset(token)


def _pending_id(request: RequestOfModel) -> str | None:
    for last in request.messages[-1:]:
        if isinstance(last, ModelResponse) and last.state == "suspended":
            return last.provider_response_id
    return None


def _pending(batch: Batch, custom_id: str, model: Model) -> ModelResponse:
    """The answer with which pydantic-ai waits for a request's result, as it makes it itself."""
    told = adapter_of(Batch).dump_python(batch, mode="json")
    return ModelResponse(
        parts=[],
        provider_name=batch.provider_name,
        provider_url=model.base_url,
        provider_response_id=f"batch:{batch.id}:{custom_id}",
        provider_details={"batch": {"custom_id": custom_id, "batch": told, "polls": 0}},
        state="suspended",
    )
