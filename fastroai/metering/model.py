"""A model that books its requests: intent before sending, outcome afterwards."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache, partial
from typing import Final, TypeVar

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, StreamedResponse, infer_model
from pydantic_ai.models.batch import BatchRequest, EncodedBatchRequest

from ..errors import CostBudgetExceededError
from ..ledger.entries import EntryState
from ..pricing.calculator import CostCalculator
from ..replay.model import JournaledModel
from ..replay.requests import RequestOfModel, RequestWrapper, asked_for
from ..retries import retry
from .batch_submissions import booked_request, is_submitting
from .batches import meter_batches
from .booked_batches import BookedRequest, place_of_request
from .http_attempts import Send
from .members import have_stood_for, may_only_hand_on
from .models import innermost
from .own_requests import OwnRequest
from .pricer import describe_error
from .request_books import Foreseen, RequestBooks, Target
from .retries import retry_delay
from .scope import current_scope
from .sdk_retries import settings_for_one_attempt

AnswerT = TypeVar("AnswerT")

_jobs: dict[tuple[str | None, str | None], Send] = {}
"""By host and answer's id, requests that a provider works on in the background. Of the process, as
code that asks without an agent has other books for each look.
"""
_MOST_JOBS: Final = 10_000
"""Answers may never be asked for: beyond so many, the oldest job's entry stays unsettled."""


class _Metered(RequestWrapper):
    """What models have in common that count their requests."""

    books: RequestBooks

    async def batch_encode(self, request: BatchRequest) -> EncodedBatchRequest:
        encoded = await self.wrapped.batch_encode(request)
        place = place_of_request.get()
        if isinstance(encoded, BookedRequest):
            place = encoded.booking.place
        # An agent that is called by itself opens no scope, where this is done for all others.
        meter_batches()
        return booked_request(encoded, request, self.books, self.wrapped, place)


class MeteredModel(_Metered):
    """Sends requests through another model, books each send, and sends again what failed in
    passing.
    """

    def __init__(
        self, wrapped: Model, books: RequestBooks, *, instead_of: str | None = None
    ) -> None:
        super().__init__(wrapped, books)
        self._target = Target(wrapped, instead_of=instead_of)

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        try:
            send, response = await self._sent(request, RequestOfModel.answer_of)
        except CostBudgetExceededError as error:
            return await self._cheaper(error).answer(request)
        if not self._is_under_way(send, response):
            send.answered(response)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack:
            try:
                send, stream = await self._sent(
                    request, lambda one, model: stack.enter_async_context(one.stream_of(model))
                )
            except CostBudgetExceededError as error:
                yield await stack.enter_async_context(self._cheaper(error).stream(request))
                return
            try:
                yield stream
            except BaseException as error:
                self.books.streamed(send, self._target, stream, error)
                raise
            if not self._is_under_way(send, stream.get()):
                self.books.streamed(send, self._target, stream, None)

    async def _sent(
        self,
        request: RequestOfModel,
        attempt: Callable[[RequestOfModel, Model], Awaitable[AnswerT]],
    ) -> tuple[Send, AnswerT]:
        """Send a request until it is answered or fails for good; each send is booked."""
        last = request.messages[-1] if request.messages else None
        job = _jobs.get((self._target.host, getattr(last, "provider_response_id", None)))
        if job is not None:
            return job, await self._looked_for(job, request, attempt)
        books, target = self.books, self._target
        if tools := request.parameters.output_tools:
            books.output_tools |= {tool.name for tool in tools}
        retries = books.retries_of(target, request.settings)
        one = RequestOfModel(
            request.messages,
            settings_for_one_attempt(target.sender, request.settings),
            request.parameters,
            request.run_context,
        )
        foreseen = books.foresee(target, one)

        async def send_once(number: int) -> tuple[Send, AnswerT]:
            send = await books.send(target, foreseen)
            try:
                with send:
                    return send, await attempt(one, self.wrapped)
            except BaseException as error:
                send.fail(error)
                if send.refusal is not None and isinstance(error, Exception):
                    raise send.refusal from error
                raise

        def delay_after(error: Exception, sends: int) -> float | None:
            delay = retry_delay(error, sends) if sends <= retries else None
            # Many steps refused at once should not come back at once; none comes back sooner than
            # it was asked to.
            return delay and delay * random.uniform(1, 1.25)

        return await retry(send_once, delay_after)

    async def _looked_for(
        self,
        job: Send,
        request: RequestOfModel,
        attempt: Callable[[RequestOfModel, Model], Awaitable[AnswerT]],
    ) -> AnswerT:
        """Look whether the answer to a request that is under way is there: that is no request, and
        settled as the one that it is about.
        """
        try:
            with job:
                return await attempt(request, self.wrapped)
        except BaseException as error:
            job.book(job.entry.settled(EntryState.UNSETTLED, error=describe_error(error)))
            raise

    def _is_under_way(self, send: Send, response: ModelResponse) -> bool:
        """Whether a provider has taken on a request, and is asked for its answer later."""
        job = self._target.host, response.provider_response_id
        is_job = (
            response.state == "suspended" and self.wrapped.continuation_delay(response) is not None
        )
        if is_job:
            send.is_job = True
            self.books.is_under_way(send.entry)
            _jobs[job] = send
            if len(_jobs) > _MOST_JOBS:
                _jobs.pop(next(iter(_jobs)), None)
        else:
            _jobs.pop(job, None)
        return is_job

    def _cheaper(self, refused: CostBudgetExceededError) -> MeteredModel:
        """What takes a request that a budget refused.

        Raises:
            CostBudgetExceededError: The same: the budget does not say so, there is no such model,
                or this is it.
        """
        cheaper = self.books.cheaper_model if refused.at_limit == "downgrade" else None
        if cheaper is None or self._target.instead_of is not None:
            raise refused
        model = infer_model(cheaper)
        if model.model_id == self._target.asked:
            raise refused
        return MeteredModel(model, self.books, instead_of=self._target.asked)

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        send = await self.books.send(self._target, Foreseen())
        try:
            with send:
                response = await self.wrapped.compact_messages(
                    request_context, instructions=instructions
                )
        except BaseException as error:
            send.fail(error)
            raise
        send.answered(response)
        return response


class MeteredMembers(_Metered):
    """A model made of models: whichever of them sends books what it sends."""

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        with self._asking():
            return await request.answer_of(self.wrapped)

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack:
            # Only while it opens: what runs while it is read may be other agents.
            with self._asking():
                stream = await stack.enter_async_context(request.stream_of(self.wrapped))
            yield stream

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        with self._asking():
            return await self.wrapped.compact_messages(request_context, instructions=instructions)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        token = asked_for.set(self.books)
        try:
            yield
        finally:
            asked_for.reset(token)


class MeteredMaybeSender(MeteredMembers):
    """A model of a user's class that holds others: it may have those answer, or send by itself, or
    both.
    """

    def __init__(self, wrapped: Model, books: RequestBooks) -> None:
        super().__init__(wrapped, books)
        self._target = Target(wrapped)

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        with self._own_request() as own:
            response = await super().answer(request)
        await own.answered(response)
        return response

    @asynccontextmanager
    async def stream(self, request: RequestOfModel) -> AsyncGenerator[StreamedResponse]:
        async with AsyncExitStack() as stack:
            with self._own_request() as own:
                stream = await stack.enter_async_context(super().stream(request))
            error: BaseException | None = None
            send = await own.opened()
            try:
                yield stream
            except BaseException as raised:
                error = raised
                raise
            finally:
                if send is not None:
                    self.books.streamed(send, self._target, stream, error)

    def _own_request(self) -> OwnRequest:
        target = self._target
        return OwnRequest(target.sender, target.host, partial(self.books.send, target, Foreseen()))


COUNTING = (MeteredModel, MeteredMembers, JournaledModel)
"""Models that count their requests."""


@cache
def meter_all_models() -> None:
    """Have each model that sends count its requests for those who have it asked: the books of the
    run that asks a model made of it, else the step whose code asks it without any agent.
    """
    have_stood_for(_counting_for_who_asks)


def _counting_for_who_asks(sender: Model) -> Model | None:
    metering = MeteredMaybeSender if may_only_hand_on(innermost(sender)) else MeteredModel
    books = asked_for.get()
    if isinstance(books, RequestBooks):
        return metering(sender, books)
    scope = current_scope()
    if scope is None or is_submitting(innermost(sender)):
        return None
    books = RequestBooks(CostCalculator(), scope=scope)
    metered = metering(sender, books)
    return JournaledModel(metered, scope.journal, books) if scope.journal else metered
