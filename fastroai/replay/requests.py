"""A model's request as one value, for models that wrap another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, Self

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ..ledger.entries import LedgerEntry


@dataclass(frozen=True, slots=True)
class RequestOfModel:
    """What a model is asked, whether the answer is streamed or not."""

    messages: list[ModelMessage]
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    run_context: RunContext[Any] | None = None

    def answer_of(self, model: Model) -> Coroutine[Any, Any, ModelResponse]:
        """Ask a model for its whole answer."""
        return model.request(self.messages, self.settings, self.parameters)

    def stream_of(self, model: Model) -> AbstractAsyncContextManager[StreamedResponse]:
        """Ask a model for its answer as it comes."""
        return model.request_stream(self.messages, self.settings, self.parameters, self.run_context)


class Books(Protocol):
    """What a model that counts its requests asks of the books of its agent's run.

    Attributes:
        is_in_use: Whether that run has begun.
        sent: Ids of the entries of what the run has sent so far, in order.
        max_retries: Further sends of a request after a passing failure; None: nobody has said.
    """

    is_in_use: bool
    sent: list[str]
    max_retries: int | None

    @property
    def entries(self) -> Sequence[LedgerEntry]:
        """What the run has sent so far, in order."""
        ...

    def retry_like(self, other: Books) -> None:
        """Send as often as those of another run, whose model is used, unless that is said."""
        ...

    def replayed(self, entries: Sequence[LedgerEntry]) -> None:
        """Book that an answer is used again which earlier requests paid for."""
        ...

    async def settled(self) -> None:
        """Wait until the ledger has what was paid for: a record must not say so before."""
        ...


# Ambient, because between a model made of models and its members stands the user's code.
asked_for: ContextVar[Books | None] = ContextVar("fastroai_asked_for", default=None)
"""The books for which a model made of models asks its members; None outside of such a request."""


class Members:
    """What others answer for one request of a model that is made of them, or may be.

    Attributes:
        asked: Whether answers were asked for.
        streams: Whether some of them come as streams.
        answers: Those that came whole.
    """

    def __init__(self) -> None:
        self.asked = self.streams = False
        self.answers: list[ModelResponse] = []
        self._around = members_asked.get()

    def has_given(self, response: ModelResponse) -> bool:
        """Whether a whole answer is one of theirs, perhaps with other parts, or all their usage."""
        if self.streams or any(_is_same(response, each) for each in self.answers):
            return True
        given = [each.usage for each in self.answers]
        sums = sum(each.input_tokens for each in given), sum(each.output_tokens for each in given)
        return self.asked and sums == (response.usage.input_tokens, response.usage.output_tokens)

    def ask(self, *, stream: bool) -> None:
        """An answer is asked for, here and wherever this is a part of."""
        self.asked, self.streams = True, self.streams or stream
        if self._around is not None:
            self._around.ask(stream=stream)

    def answer(self, response: ModelResponse) -> None:
        """One came whole."""
        self.answers.append(response)
        if self._around is not None:
            self._around.answer(response)


def _is_same(one: ModelResponse, other: ModelResponse) -> bool:
    if one is other or one.usage is other.usage:
        return True
    counts = (one.usage.input_tokens, one.usage.output_tokens)
    if counts != (other.usage.input_tokens, other.usage.output_tokens):
        return False
    return one.model_name in (None, other.model_name)


# Ambient, as `asked_for` is.
members_asked: ContextVar[Members | None] = ContextVar("fastroai_members_asked", default=None)
"""Who is to know what is asked and answered here; None outside of such a request."""


class RequestWrapper(WrapperModel):
    """A model around another one, for the books of one run. Subclasses say what is done with a
    request.

    Where it is itself a member of a model made of models, its request belongs to other books than
    its own: it passes that on.
    """

    def __init__(self, wrapped: Model, books: Books) -> None:
        super().__init__(wrapped)
        self.books = books
        self._asked_for = asked_for.get()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        request = RequestOfModel(messages, model_settings, model_request_parameters)
        if asked_for.get() is not self._asked_for:
            return await request.answer_of(self._handed_on())
        if (members := members_asked.get()) is None:
            return await self.answer(request)
        members.ask(stream=False)
        response = await self.answer(request)
        members.answer(response)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        request = RequestOfModel(messages, model_settings, model_request_parameters, run_context)
        is_own = asked_for.get() is self._asked_for
        if is_own and (members := members_asked.get()) is not None:
            members.ask(stream=True)
        answer = self.stream(request) if is_own else request.stream_of(self._handed_on())
        async with answer as stream:
            yield stream

    async def __aenter__(self) -> Self:
        # A run's own view of a model: whose client it is opens and closes it.
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    def _handed_on(self) -> Model:
        if (books := asked_for.get()) is not None:
            books.retry_like(self.books)
        return self.wrapped

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        """The whole answer."""
        return await request.answer_of(self.wrapped)

    def stream(self, request: RequestOfModel) -> AbstractAsyncContextManager[StreamedResponse]:
        """The answer as it comes."""
        return request.stream_of(self.wrapped)
