"""A model's request as one value, for models that wrap another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
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

    async def answer_of(self, model: Model) -> ModelResponse:
        """Ask a model for its whole answer."""
        return await model.request(self.messages, self.settings, self.parameters)

    def stream_of(self, model: Model) -> AbstractAsyncContextManager[StreamedResponse]:
        """Ask a model for its answer as it comes."""
        return model.request_stream(self.messages, self.settings, self.parameters, self.run_context)


class Books(Protocol):
    """What a model that counts its requests asks of the books of its agent's run.

    Attributes:
        is_in_use: Whether that run has begun.
        max_retries: Further sends of a request after a passing failure; None: nobody has said.
    """

    is_in_use: bool
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
        return await self.answer(request)

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
