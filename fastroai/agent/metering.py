"""Counts each model request that is really sent: intent before the send, outcome after it."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ..usage.ledger import Attribution, EntryState, LedgerEntry, RunLedger, replays
from ..usage.store import configured_store
from .journal import Journal, JournaledModel
from .layers import endpoint, innermost
from .service_tiers import asked_service_tier
from .settlement import Pricer, settle_answer, settle_stream
from .transience import retry_delay
from .wire import Send, client_retries, settings_for_one_attempt

_NOWHERE = Attribution()


@dataclass(frozen=True, slots=True)
class DispatchScope:
    """Where the requests of agent calls are booked."""

    ledger: RunLedger
    attribution: Attribution
    journal: Journal | None = None
    """Where answers are recorded for further attempts; None: nowhere."""


_scope: ContextVar[DispatchScope | None] = ContextVar("fastroai_dispatch_scope", default=None)


class dispatch_scope:  # noqa: N801  # used like a function: `with dispatch_scope(ledger):`
    """Book every request of the agent calls made inside the block, nested and failed ones too, to a ledger."""

    # Not a generator: every step of a pipeline opens one.
    __slots__ = ("_scope", "_token")

    def __init__(self, ledger: RunLedger, attribution: Attribution = _NOWHERE, journal: Journal | None = None) -> None:
        self._scope = DispatchScope(ledger, attribution, journal)

    def __enter__(self) -> DispatchScope:
        self._token = _scope.set(self._scope)
        return self._scope

    def __exit__(self, *exc_info: object) -> None:
        _scope.reset(self._token)


def current_scope() -> DispatchScope | None:
    """The innermost scope of the running task, or None outside of any."""
    return _scope.get()


async def scope_outside_of_runs() -> DispatchScope | None:
    """Where an agent that is called by itself is booked: in the ledger of `FASTROAI_LEDGER_URL`, if that is set.

    Raises:
        LedgerUnavailableError: It can't be used, and must be.
    """
    store = await configured_store()
    return None if store is None else DispatchScope(RunLedger(store), _NOWHERE)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What can be said of a request before it is sent.

    Attributes:
        service_tier: The tier it asks for.
        upper_bound: Finds out what it can cost at most, in USD; None: that can't be told.
    """

    service_tier: str | None = None
    upper_bound: Callable[[], Decimal | None] = lambda: None


class RequestMeter(AbstractCapability[Any]):
    """Counts the model requests of one agent run.

    Args:
        calculator: Prices requests; anything with `price` or, failing that, `calculate_cost`.
        scope: Where to book; None keeps the entries here only.
        agent: Name of the agent, for the entries.
        max_retries: Further sends of a request after a passing failure. None: as often as the provider's client would.
    """

    def __init__(
        self,
        calculator: Any,
        *,
        scope: DispatchScope | None = None,
        agent: str | None = None,
        max_retries: int | None = None,
    ) -> None:
        self._pricer = Pricer(calculator)
        self._ledger = scope.ledger if scope else RunLedger()
        self._attribution = scope.attribution if scope else _NOWHERE
        self.journal = scope.journal if scope else None
        self._agent = agent
        self._max_retries = max_retries
        self._sent: list[str] = []
        self._wrappers: dict[int, tuple[Model, Model]] = {}
        self.output_tools: set[str] = set()
        """Names of the tools whose calls only carry the run's output."""

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """What this run has sent so far, in order."""
        return self._ledger.of_ids(self._sent)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """The model as one that counts its requests."""
        return self.metered(model)

    def metered(self, model: Model) -> Model:
        """The model as one that counts its requests; members of a `FallbackModel` are counted one by one."""
        known = self._wrappers.get(id(model))
        if known is None:
            # The model is kept beside its wrapper, so that its id can't be given to another one meanwhile.
            metered = _metered(model, self)
            if self.journal is not None:
                metered = JournaledModel(metered, self.journal, self)
            known = self._wrappers[id(model)] = (model, metered)
        return known[1]

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the provider: what an outer wrapper answers by itself was not sent."""
        return _INNERMOST

    def foresee(
        self,
        model: Model,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> Foreseen:
        """What can be said of a request before it is sent.

        Raises:
            UnknownModelPriceError: `FASTROAI_UNPRICED` refuses it. Nothing is sent or booked.
        """
        if self._ledger.refuses_unpriced:
            self._pricer.require_price(model, settings)
        upper_bound = partial(self._pricer.upper_bound, model, messages, settings, parameters)
        return Foreseen(asked_service_tier(model, settings), upper_bound)

    async def intend(self, model: _MeteredModel, foreseen: Foreseen) -> LedgerEntry:
        """Book a request that is about to be sent.

        Raises:
            LedgerUnavailableError: It can't be booked, and must be before it is sent.
        """
        entry = LedgerEntry(
            attribution=self._attribution,
            agent=self._agent,
            model_asked=model.asked,
            provider=model.system,
            provider_host=model.host,
            service_tier=foreseen.service_tier,
            # Without a ledger that outlives the process nobody asks before the outcome is unknown.
            upper_bound_usd=foreseen.upper_bound() if self._ledger.is_durable else None,
            simulated=model.simulated,
        )
        self._sent.append(entry.id)
        await self._ledger.intend(entry)
        return entry

    def replayed(self, entries: Sequence[LedgerEntry]) -> None:
        """Book that an answer is used again which earlier requests paid for."""
        self._ledger.restate(entry for entry in entries if entry.attribution.is_same_run(self._attribution))
        for again in replays(entries, self._attribution):
            self._sent.append(again.id)
            self._ledger.record(again)

    async def settled(self) -> None:
        """Wait until the ledger has what was paid for: a record must not say so before."""
        if self.journal is not None and self.journal.is_durable:
            await self._ledger.flush()

    async def send(self, model: _MeteredModel, foreseen: Foreseen) -> Send:
        """Book a request that is about to be sent, and follow what leaves for it."""
        entry = await self.intend(model, foreseen)
        return Send(
            entry, model.sender, lambda: self.intend(model, foreseen), lambda entry: self._record(entry, foreseen)
        )

    def answered(self, entry: LedgerEntry, response: ModelResponse, model: Model) -> None:
        """Settle a request whose answer is complete."""
        self._ledger.record(settle_answer(entry, response, model, self._pricer))

    def failed(self, send: Send, foreseen: Foreseen, error: BaseException) -> None:
        """Settle a request that raised. Synchronous, like all settling: a task may be being cancelled."""
        self._record(send.failed(error), foreseen)

    def streamed(
        self,
        entry: LedgerEntry,
        foreseen: Foreseen,
        stream: StreamedResponse,
        model: Model,
        error: BaseException | None,
    ) -> None:
        """Settle a streamed request that came to its end, or was left."""
        self._record(settle_stream(entry, stream, model, self._pricer, error), foreseen)

    def _record(self, entry: LedgerEntry, foreseen: Foreseen) -> None:
        if entry.state is EntryState.UNSETTLED and entry.upper_bound_usd is None:
            entry = replace(entry, upper_bound_usd=foreseen.upper_bound())
        self._ledger.record(entry)

    def retries_of(self, model: _MeteredModel, settings: ModelSettings | None) -> int:
        """How many times a request may be sent again: its own setting, the agent's, else the client's."""
        for layer in (settings, model.settings):
            if layer and (own := layer.get("max_retries")) is not None:
                return own
        return model.client_retries if self._max_retries is None else self._max_retries


_INNERMOST = CapabilityOrdering(position="innermost")


class _MeteredModel(WrapperModel):
    """Sends requests through another model, books each send, and sends again what failed in passing."""

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
                    response = await self.wrapped.request(messages, settings, model_request_parameters)
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
                            self.wrapped.request_stream(messages, settings, model_request_parameters, run_context)
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
                response = await self.wrapped.compact_messages(request_context, instructions=instructions)
        except BaseException as error:
            self._meter.failed(send, foreseen, error)
            raise
        self._meter.answered(send.entry, response, self.wrapped)
        return response


class _MeteredParts(WrapperModel):
    """A model made of models: requests go to a copy whose members are metered, all else to the original.

    The original stays the wrapped one, so that entering this wrapper leaves its members' clients to their owner.
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
    return isinstance(model, _MeteredModel | _MeteredParts | JournaledModel)


def _metered(model: Model, meter: RequestMeter) -> Model:
    if _has_fallback(model):
        return _MeteredParts(model, _copy_with_metered_members(model, meter))
    return _MeteredModel(model, meter)


def _has_fallback(model: Model) -> bool:
    return isinstance(innermost(model), FallbackModel)


def _copy_with_metered_members(model: Model, meter: RequestMeter) -> Model:
    copied = copy.copy(model)
    if isinstance(copied, FallbackModel):
        copied.models = [_metered(member, meter) for member in copied.models]
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
    # Many steps refused at once should not come back at once; none comes back sooner than it was asked to.
    await asyncio.sleep(delay * random.uniform(1, 1.25))
