"""A model that counts its requests: intent before the send, outcome after it."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ..replay.model import JournaledModel
from .http_attempts import client_retries, settings_for_one_attempt
from .models import endpoint, innermost
from .retries import retry_delay

if TYPE_CHECKING:
    from .meter import RequestMeter


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What can be said of a request before it is sent.

    Attributes:
        service_tier: The tier it asks for.
        upper_bound: Finds out what it can cost at most, in USD; None: that can't be told.
    """

    service_tier: str | None = None
    upper_bound: Callable[[], Decimal | None] = lambda: None


class MeteredModel(WrapperModel):
    """Sends requests through another model, books each send, and sends again what failed in
    passing.
    """

    def __init__(self, wrapped: Model, meter: RequestMeter) -> None:
        super().__init__(wrapped)
        self._meter = meter
        self.asked = wrapped.model_id
        self.host = _host(endpoint(wrapped))
        self.simulated = getattr(wrapped, "simulated", False) is True
        self.sender = innermost(wrapped)
        self.client_retries = client_retries(self.sender)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        meter = self._meter
        meter.output_tools.update(tool.name for tool in model_request_parameters.output_tools)
        retries = meter.retries_of(self, model_settings)
        settings = settings_for_one_attempt(self.sender, model_settings)
        foreseen = meter.foresee(self.wrapped, messages, settings, model_request_parameters)
        sends = 0
        while True:
            send = await meter.send(self, foreseen)
            sends += 1
            try:
                with send:
                    response = await self.wrapped.request(
                        messages, settings, model_request_parameters
                    )
            except BaseException as error:
                meter.failed(send, foreseen, error)
                delay = retry_delay(error, sends) if sends <= retries else None
                if delay is None:
                    raise
            else:
                meter.answered(send.entry, response, self.wrapped)
                return response
            await _pause(delay)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        meter = self._meter
        meter.output_tools.update(tool.name for tool in model_request_parameters.output_tools)
        retries = meter.retries_of(self, model_settings)
        settings = settings_for_one_attempt(self.sender, model_settings)
        foreseen = meter.foresee(self.wrapped, messages, settings, model_request_parameters)
        sends = 0
        async with AsyncExitStack() as stack:
            while True:
                send = await meter.send(self, foreseen)
                sends += 1
                try:
                    with send:
                        stream = await stack.enter_async_context(
                            self.wrapped.request_stream(
                                messages, settings, model_request_parameters, run_context
                            )
                        )
                    break
                except BaseException as error:
                    meter.failed(send, foreseen, error)
                    delay = retry_delay(error, sends) if sends <= retries else None
                    if delay is None:
                        raise
                await _pause(delay)
            try:
                yield stream
            except BaseException as error:
                meter.streamed(send.entry, foreseen, stream, self.wrapped, error)
                raise
            meter.streamed(send.entry, foreseen, stream, self.wrapped, None)

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        foreseen = Foreseen()
        send = await self._meter.send(self, foreseen)
        try:
            with send:
                response = await self.wrapped.compact_messages(
                    request_context, instructions=instructions
                )
        except BaseException as error:
            self._meter.failed(send, foreseen, error)
            raise
        self._meter.answered(send.entry, response, self.wrapped)
        return response


class MeteredParts(WrapperModel):
    """A model made of models: requests go to a copy whose members are metered, all else to the
    original.

    The original stays the wrapped one, so that entering this wrapper leaves its members' clients to
    their owner.
    """

    def __init__(self, wrapped: Model, metered_copy: Model) -> None:
        super().__init__(wrapped)
        self._metered_copy = metered_copy

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return await self._metered_copy.request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        async with self._metered_copy.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as stream:
            yield stream


def is_metered(model: object) -> bool:
    """Whether a model counts its requests."""
    return isinstance(model, MeteredModel | MeteredParts | JournaledModel)


def metered_model(model: Model, meter: RequestMeter) -> Model:
    if _has_fallback(model):
        return MeteredParts(model, _copy_with_metered_members(model, meter))
    return MeteredModel(model, meter)


def _has_fallback(model: Model) -> bool:
    return isinstance(innermost(model), FallbackModel)


def _copy_with_metered_members(model: Model, meter: RequestMeter) -> Model:
    copied = copy.copy(model)
    if isinstance(copied, FallbackModel):
        copied.models = [metered_model(member, meter) for member in copied.models]
    elif isinstance(copied, WrapperModel):
        copied.wrapped = _copy_with_metered_members(copied.wrapped, meter)
    return copied


def _host(url: str | None) -> str | None:
    """Host of a provider's URL, with its port where one is written; never credentials."""
    try:
        parts = urlsplit(url or "")
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{name}:{parts.port}" if parts.port else name
    except ValueError:
        return None


async def _pause(delay: float) -> None:
    # Many steps refused at once should not come back at once; none comes back sooner than it was
    # asked to.
    await asyncio.sleep(delay * random.uniform(1, 1.25))
