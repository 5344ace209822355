"""A model that books its requests: intent before sending, outcome afterwards."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from ..replay.model import JournaledModel
from ..replay.requests import RequestOfModel, RequestWrapper
from .http_attempts import Send, settings_for_one_attempt
from .models import innermost
from .request_books import Foreseen, RequestBooks, Target
from .retries import retry_delay

AnswerT = TypeVar("AnswerT")


class MeteredModel(RequestWrapper):
    """Sends requests through another model, books each send, and sends again what failed in
    passing.
    """

    def __init__(self, wrapped: Model, books: RequestBooks) -> None:
        super().__init__(wrapped)
        self._books = books
        self._target = Target(wrapped)

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        send, response = await self._insist(request, RequestOfModel.answer_of)
        self._books.answered(send, self._target, response)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack:
            send, stream = await self._insist(
                request, lambda one, model: stack.enter_async_context(one.stream_of(model))
            )
            try:
                yield stream
            except BaseException as error:
                self._books.streamed(send, self._target, stream, error)
                raise
            self._books.streamed(send, self._target, stream, None)

    async def _insist(
        self,
        request: RequestOfModel,
        attempt: Callable[[RequestOfModel, Model], Awaitable[AnswerT]],
    ) -> tuple[Send, AnswerT]:
        """Send a request until it is answered or fails for good; each send is booked."""
        books, target = self._books, self._target
        for tool in request.parameters.output_tools:
            books.output_tools.add(tool.name)
        retries = books.retries_of(target, request.settings)
        one = replace(request, settings=settings_for_one_attempt(target.sender, request.settings))
        foreseen = books.foresee(target, one)
        sends = 0
        while True:
            send = await books.send(target, foreseen)
            sends += 1
            try:
                with send:
                    return send, await attempt(one, self.wrapped)
            except BaseException as error:
                send.fail(error)
                delay = retry_delay(error, sends) if sends <= retries else None
                if delay is None:
                    raise
            # Many steps refused at once should not come back at once; none comes back sooner than
            # it was asked to.
            await asyncio.sleep(delay * random.uniform(1, 1.25))

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        send = await self._books.send(self._target, Foreseen())
        try:
            with send:
                response = await self.wrapped.compact_messages(
                    request_context, instructions=instructions
                )
        except BaseException as error:
            send.fail(error)
            raise
        self._books.answered(send, self._target, response)
        return response


class MeteredParts(RequestWrapper):
    """A model made of models: requests go to a copy whose members are metered, all else to the
    original.

    The original stays the wrapped one, so that entering this wrapper leaves its members' clients to
    their owner.
    """

    def __init__(self, wrapped: Model, metered_copy: Model) -> None:
        super().__init__(wrapped)
        self._metered_copy = metered_copy

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        return await request.answer_of(self._metered_copy)

    def stream(self, request: RequestOfModel) -> AbstractAsyncContextManager[StreamedResponse]:
        return request.stream_of(self._metered_copy)


COUNTING = (MeteredModel, MeteredParts, JournaledModel)
"""Models that count their requests."""


def metered_model(model: Model, books: RequestBooks) -> Model:
    """A model that counts its requests; members of a `FallbackModel` are counted one by one."""
    if isinstance(innermost(model), FallbackModel):
        return MeteredParts(model, _copy_with_metered_members(model, books))
    return MeteredModel(model, books)


def _copy_with_metered_members(model: Model, books: RequestBooks) -> Model:
    copied = copy.copy(model)
    if isinstance(copied, FallbackModel):
        copied.models = [metered_model(member, books) for member in copied.models]
    elif isinstance(copied, WrapperModel):
        copied.wrapped = _copy_with_metered_members(copied.wrapped, books)
    return copied
