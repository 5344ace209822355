"""A model's request as one value, for models that wrap another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings


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


class RequestWrapper(WrapperModel):
    """A model around another one. Subclasses say what is done with a request."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return await self.answer(RequestOfModel(messages, model_settings, model_request_parameters))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        request = RequestOfModel(messages, model_settings, model_request_parameters, run_context)
        async with self.stream(request) as stream:
            yield stream

    async def answer(self, request: RequestOfModel) -> ModelResponse:
        """The whole answer."""
        return await request.answer_of(self.wrapped)

    def stream(self, request: RequestOfModel) -> AbstractAsyncContextManager[StreamedResponse]:
        """The answer as it comes."""
        return request.stream_of(self.wrapped)
