"""Books what models that answer no chat send: embeddings, images, realtime sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, Final
from uuid import uuid4

from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult
from pydantic_ai.embeddings.wrapper import WrapperEmbeddingModel
from pydantic_ai.images import ImageGenerationModel
from pydantic_ai.images.wrapper import WrapperImageGenerationModel
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import AbstractModel, Model, ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from ..ledger.entries import EntryState, LedgerEntry
from ..pricing.calculator import CostCalculator
from ..replay.encoding import adapter_of
from ..replay.journal import Journal, JournalRecord
from ..replay.requests import RequestOfModel, members_asked
from .http_attempts import current_send
from .members import holds
from .own_requests import OwnRequest
from .request_books import Foreseen, RequestBooks, Target
from .scope import DispatchScope, current_scope
from .sending_methods import Replace, replace_methods

SENDS_NOTHING: Final = frozenset({"SentenceTransformerEmbeddingModel"})
"""Models that run in this process: nobody bills for them."""

# Ambient, because between a class's method and that of its base stands pydantic-ai, or a user.
_sender: ContextVar[object | None] = ContextVar("fastroai_sender", default=None)


def meter_other_models() -> None:
    """Have each embedding, image and realtime session that a step asks for booked, whoever asks."""
    replace_methods(EmbeddingModel, {"embed": _metered}, but=(WrapperEmbeddingModel,))
    replace_methods(
        ImageGenerationModel, {"generate": _metered}, but=(WrapperImageGenerationModel,)
    )
    # What a decision model is asked by hand; as a chat it is metered as any other.
    replace_methods(Model, {"decide": _metered}, but=(WrapperModel, FallbackModel))
    # Realtime models are no chat models, and not imported until someone uses them.
    session: Replace = _metered_session
    sessions = {"connect": session, "connect_webrtc": session}
    replace_methods(AbstractModel, sessions, but=(Model,))


class SendingModel(Model):
    """A model that answers no chat, as the books ask one that does."""

    def __init__(self, sender: Any) -> None:
        super().__init__(settings=None)
        self._sender = sender
        self.simulated = getattr(sender, "simulated", False)
        if (provider := getattr(sender, "_provider", None)) is not None:
            self._provider = provider

    @property
    def sends_for(self) -> Any:
        """The model as which it sends."""
        return self._sender

    @property
    def client(self) -> Any:
        """What it sends with, where it says so."""
        return getattr(self._sender, "_client", None) or getattr(self._sender, "client", None)

    @property
    def model_name(self) -> str:
        return str(self._sender.model_name)

    @property
    def system(self) -> str:
        return str(self._sender.system)

    @property
    def base_url(self) -> str | None:
        url: str | None = self._sender.base_url
        return url

    async def request(self, *_: Any) -> ModelResponse:
        raise NotImplementedError(f"{self.model_id!r} answers no chat.")


def _metered(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    async def sent(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_scope()
        if scope is None or _is_sending(self) or type(self).__name__ in SENDS_NOTHING:
            return await method(self, *args, **kwargs)
        books = RequestBooks(CostCalculator(), scope=scope)
        ask = partial(method, self, *args, **kwargs)
        if _may_only_hand_on(method, self):
            return await _ask(self, ask, books)
        if method.__name__ == "embed" and scope.journal is not None:
            place = scope.journal.place("embed", SendingModel(self).model_id, args, kwargs)
            return await _embed(self, ask, books, scope.journal, place)
        return await _send(self, ask, books)

    return sent


async def _embed(
    model: Any, ask: Callable[[], Awaitable[Any]], books: RequestBooks, journal: Journal, place: str
) -> Any:
    """An embedding from a step's journal, or one that is sent and recorded there."""
    known = await journal.read(place, adapter_of(_Embedded))
    if known is not None:
        books.replayed(known.entries)
        _tell(known.result)
        return known.result
    result = await _send(model, ask, books)
    await books.settled()
    paid = tuple(entry for entry in books.entries if entry.is_spend)
    await journal.write(
        place,
        result=adapter_of(EmbeddingResult).dump_python(result, mode="json"),
        entries=adapter_of(tuple[LedgerEntry, ...]).dump_python(paid, mode="json"),
    )
    return result


@dataclass(frozen=True, slots=True)
class _Embedded(JournalRecord):
    result: EmbeddingResult
    entries: tuple[LedgerEntry, ...]


async def _send(model: Any, ask: Callable[[], Awaitable[Any]], books: RequestBooks) -> Any:
    """Book a request, send it, and settle it by what comes back."""
    target = Target(SendingModel(model))
    asked = RequestOfModel([], None, ModelRequestParameters())
    send = await books.send(target, books.foresee(target, asked))
    token = _sender.set(model)
    try:
        with send:
            result = await ask()
    except BaseException as error:
        send.fail(error)
        raise
    finally:
        _sender.reset(token)
    send.answered(as_response(result))
    _tell(result)
    return result


async def _ask(model: Any, ask: Callable[[], Awaitable[Any]], books: RequestBooks) -> Any:
    """Have a model of a user's class that holds others answer, and book what it sends by itself."""
    target = Target(SendingModel(model))
    token = _sender.set(model)
    try:
        with OwnRequest(model, target.host, partial(books.send, target, Foreseen())) as own:
            result = await ask()
    finally:
        _sender.reset(token)
    await own.answered(as_response(result))
    return result


def _tell(result: Any) -> None:
    if (members := members_asked.get()) is not None:
        members.ask(stream=False)
        members.answer(as_response(result))


def _is_sending(model: object) -> bool:
    send = current_send()
    return _sender.get() is model or (send is not None and send.model is model)


def _may_only_hand_on(method: Callable[..., Any], model: Any) -> bool:
    """Whether a method is of a user's class that holds other models, which may answer for it."""
    if method.__module__.startswith("pydantic_ai."):
        return False  # it sends, whatever a user's class that inherits it holds
    kinds = (EmbeddingModel, ImageGenerationModel)
    return any(holds(kinds, value) for value in vars(model).values())


def as_response(result: Any) -> ModelResponse:
    """An embedding, an image or a decision as a chat's answer, whose usage the books read."""
    return ModelResponse(
        parts=[],
        usage=result.usage,
        model_name=result.model_name,
        provider_name=getattr(result, "provider_name", None),
        provider_url=getattr(result, "provider_url", None),
        provider_details=getattr(result, "provider_details", None),
        provider_response_id=result.provider_response_id,
    )


def _metered_session(method: Callable[..., Any]) -> Callable[..., Any]:
    if method.__module__ == "pydantic_ai.realtime.model":
        return method  # of the base, which connects to nothing

    @wraps(method)
    @asynccontextmanager
    async def connected(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        scope = current_scope()
        if scope is None or _is_sending(self):
            async with method(self, *args, **kwargs) as connection:
                yield connection
            return
        session = _Session(self, scope)
        async with AsyncExitStack() as stack:
            token = _sender.set(self)
            try:
                async with session.opening():
                    connection = await stack.enter_async_context(method(self, *args, **kwargs))
            finally:
                _sender.reset(token)
            session.follow(connection)
            try:
                yield connection
            finally:
                session.close()

    return connected


class _Session:
    """A realtime session: an entry before it is opened, and one for each usage that it reports."""

    def __init__(self, model: Any, scope: DispatchScope) -> None:
        self._books = RequestBooks(CostCalculator(), scope=scope)
        self._target = Target(SendingModel(model))
        self._reported = False

    @asynccontextmanager
    async def opening(self) -> AsyncGenerator[None]:
        self._send = await self._books.send(self._target, Foreseen())
        try:
            with self._send:
                yield
        except BaseException as error:
            self._send.fail(error)
            raise

    def follow(self, connection: Any) -> None:
        """Read along what the provider reports, also at the end of the session."""
        for name in ("frames", "_end_session"):
            if (read := getattr(connection, name, None)) is not None:
                setattr(connection, name, self._followed(read))

    def _followed(self, read: Callable[[], AsyncIterator[Any]]) -> Callable[[], AsyncIterator[Any]]:
        async def followed() -> AsyncGenerator[Any]:
            async for item in read():
                # Frames have several events, the end of a session is one.
                for event in filter(_is_usage, [item] if _is_usage(item) else item):
                    self._book(event)
                yield item

        return followed

    def _book(self, event: Any) -> None:
        if self._reported:
            self._send.entry = replace(self._send.entry, id=str(uuid4()))
        self._reported = True
        if event.response_scoped:
            response = ModelResponse(
                parts=[],
                usage=event.usage,
                provider_details=event.provider_details,
                provider_response_id=event.provider_response_id,
            )
            self._send.answered(response)
        else:
            self._leave("A transcription is billed at another model's rates.")

    def close(self) -> None:
        if not self._reported:
            self._leave("The session reported no usage.")

    def _leave(self, reason: str) -> None:
        self._send.book(self._send.entry.settled(EntryState.UNPRICED, error=reason))


def _is_usage(event: object) -> bool:
    return getattr(event, "event_kind", None) == "session_usage"
