"""HTTP attempts of a model call: clients are configured to make one; others are booked."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Protocol
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

from anyio import from_thread
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model

from ..errors import CostBudgetExceededError
from ..ledger.entries import NOT_SENT, EntryState, LedgerEntry
from ..providers import host_and_port
from ..redaction import remember
from ..replay.requests import Members, members_asked
from .connection_pools import keep_loops_apart
from .outcomes import settle_failure, settle_resent
from .raw_answers import NOT_SEEN, Body, RawAnswer
from .sdk_retries import attribute_at, boto_events
from .sending_methods import is_of_a_user

logger = logging.getLogger("fastroai.agent")

_HTTP_CLIENTS: Final = (
    ("_client",),  # OpenAI, Anthropic, Groq
    ("_api_client", "_async_httpx_client"),  # Google
    ("sdk_configuration", "async_client"),  # Mistral
    ("_client_wrapper", "httpx_client", "httpx_client"),  # Cohere
    ("_async_client",),  # Hugging Face, from its first request on
    (),  # the client is the HTTP client
)
"""Where SDKs keep their HTTP client, as attributes of their own one."""

# Ambient, because between a call of a model and the hooks of its HTTP client stands the SDK.
_sending: ContextVar[Send | None] = ContextVar("fastroai_send", default=None)


_seen_to_send: WeakValueDictionary[int, Model] = WeakValueDictionary()
"""By id, as they may have no hash: models of users' classes by which something was seen to leave.
Of the process, as models are.
"""
_HANDED_ON: Final = f"{NOT_SENT}another model, which it asked, gave the answer."
_ANSWERED_BY_ITSELF: Final = f"{NOT_SENT}the model answered without sending anything."


class BooksOfAttempts(Protocol):
    """Where the attempts of one call of a model are booked."""

    async def intend(self) -> LedgerEntry:
        """Book a further attempt."""
        ...

    def book(self, entry: LedgerEntry) -> None:
        """Record what is now known of an attempt."""
        ...

    def settled(self, entry: LedgerEntry, response: ModelResponse, raw: RawAnswer) -> LedgerEntry:
        """The entry of an attempt with what its complete answer says."""
        ...

    def hear(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer speaks of limits."""
        ...


class Send:
    """One call of a model. While its `with` block lasts, each attempt that leaves for it has an
    entry of its own.

    The first attempt has the entry it is given. A transport or an SDK that sends again by itself
    makes a further one: the entry before is settled by what the provider answered to it, a new one
    is booked before the attempt leaves, and the last is left in `entry` to be settled by the
    outcome of the call.

    Args:
        entry: Booked already, for the first attempt.
        model: The model that is called, out of its wrappers.
        books: Have a further attempt booked, and are told what is now known of one.
    """

    __slots__ = (
        "_begun",
        "_books",
        "_has_parts",
        "_left",
        "_members",
        "_members_token",
        "_over",
        "_sees_wire",
        "_status",
        "_token",
        "_watched",
        "entry",
        "host",
        "is_given",
        "is_job",
        "model",
        "raw",
        "reached",
        "refusal",
    )

    def __init__(self, entry: LedgerEntry, model: Model, books: BooksOfAttempts) -> None:
        self.entry = entry
        self.model = model
        self.host = host_and_port(self.model.base_url or "")[0]
        """Of the model's provider, if it is known."""
        self._books = books
        self._begun = self._sees_wire = self._left = self._over = False
        self._watched = False
        self.reached = False
        """Whether the client of the model was asked to send something, wherever to."""
        self.refusal: Exception | None = None
        """Why a further attempt might not leave."""
        self._status: int | None = None
        self.is_job = False
        """Whether the provider has taken it on, and is only asked for its answer from now on."""
        self.is_given = self._has_parts = False
        """Whether the entry is that of one of several requests it consists of; whether there are
        such.
        """
        self._members: Members | None = None
        self._members_token: Token[Members | None] | None = None
        self.raw = NOT_SEEN
        """The last answer that was received, as it came."""
        self._token: Token[Send | None] | None = None

    def __enter__(self) -> Send:
        self._watched = _watch_client(self.model)
        sender: Model = getattr(self.model, "sends_for", self.model)
        if is_of_a_user(type(sender)):
            self._members = Members()
            self._members_token = members_asked.set(self._members)
        self._token = _sending.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over = True
        if self._members_token is not None:
            members_asked.reset(self._members_token)
            self._members_token = None
        if self._token is not None:
            _sending.reset(self._token)

    def book(self, entry: LedgerEntry) -> None:
        """Record what is now known of an attempt."""
        self._books.book(entry)

    def hear(self, status: int, headers: Mapping[str, str]) -> None:
        """An answer speaks of limits."""
        self._books.hear(status, headers)

    async def part(self, answer: Awaitable[ModelResponse]) -> ModelResponse:
        """Wait for one of the answers that a model of a user's class makes its own of, which may
        ask for several at once. Each is a request of its own; the first one is this one.
        """
        if self.is_job:
            return await answer
        is_first = not (self.is_given or self._begun or self._left)
        self.is_given |= is_first
        entry = self.entry if is_first else await self._books.intend()
        part = Send(entry, self.model, self._books)
        try:
            with part:
                response = await answer
        except BaseException as error:
            part.fail(error)
            raise
        if response.state == "suspended":  # its answer is asked for later, as this one's
            self.entry, self.is_given = part.entry, False
            return response
        self._has_parts = True
        part.answered(response)
        return response

    def answered(self, response: ModelResponse) -> None:
        """Settle the last attempt by the answer of the call, or what it was made of."""
        if self.is_given:
            return
        if self._answered_by_itself():
            self.book(self.entry.settled(EntryState.REFUSED, error=_ANSWERED_BY_ITSELF))
        elif self._hands_on(response):
            self.book(self.entry.settled(EntryState.REFUSED, error=_HANDED_ON))
        elif self._has_parts:  # what the class sent besides, whose answer it keeps to itself
            self.book(settle_resent(self.entry, self._status))
        else:
            self.book(self._books.settled(self.entry, response, self.raw))

    def _hands_on(self, response: ModelResponse) -> bool:
        """Whether the answer is that of another model, which books its own."""
        if self._members is None or self._left or self._has_parts:
            return False
        return self._members.asked and self._members.has_given(response)

    def _answered_by_itself(self) -> bool:
        """Whether a model of a user's class gave an answer of its own, such as one that it has
        kept: where all that it sends is seen, nothing was.
        """
        model = self.model
        if not is_of_a_user(type(model)) or self.is_job or self._has_parts:
            return False
        if self.reached or self._left:
            _seen_to_send[id(model)] = model
            return False
        return self._watched or _seen_to_send.get(id(model)) is model

    def fail(self, error: BaseException) -> None:
        """Settle the last attempt by the error that the call raised and by what was seen of it.

        Synchronous, like all settling: a task may be being cancelled.
        """
        if self.is_given:  # settled; what failed is what the user's class makes of it
            return
        left: bool | None = self._left if self._sees_wire else None
        if self._watched and not self.reached:
            left = False  # it never came to the client: a mistake in what was to be sent
        self.book(settle_failure(self.entry, error, left=left, status=self._status))

    async def begin(self) -> None:
        """A client starts on a request.

        Where the attempts in it can't be seen, it counts as one.
        """
        if self.is_given or (self._begun and not self._sees_wire):
            await self._again()
        self._begun = True

    def see(self) -> None:
        """The transport tells of its attempts."""
        self._sees_wire = True

    async def leave(self) -> None:
        """An attempt is about to leave this machine."""
        self._sees_wire = True
        if self._over:
            raise RuntimeError(
                f"The call of {self.model.model_id!r} was left meanwhile: its client may not send "
                "it again, as nobody would book that."
            )
        if self._left or self.is_given:
            await self._again()
        self._left = True

    def answered_with(self, status: int) -> None:
        """The provider answered the attempt under way with an HTTP status."""
        self._status = status

    def answered_unseen(self, status: int) -> None:
        """As `answered_with`, told by the client; where the transport tells, it knows better."""
        if not self._sees_wire:
            self._status = status

    async def _again(self) -> None:
        # Before the next one is booked, which must not wait for what this one holds of a budget.
        if not self.is_given:
            self.book(settle_resent(self.entry, self._status))
        try:
            entry = await self._books.intend()
        except CostBudgetExceededError as error:
            self.refusal = error  # an SDK may make another error of it
            raise
        self.entry, self._status, self.is_given, self.raw = entry, None, False, NOT_SEEN


current_send: Final = _sending.get
"""Gives the call of a model under way, or None outside of any."""


def _watch_client(model: Model) -> bool:
    """Have the client of a model tell the running `Send` what it sends.

    Other users of the client are not concerned.

    Returns:
        Whether nothing can leave by it unseen.
    """
    client = getattr(model, "client", None) if model.provider is not None else None
    if client is None:
        return False
    for path in _HTTP_CLIENTS:
        http_client: Any = attribute_at(client, path)
        if not isinstance(getattr(http_client, "event_hooks", None), dict):
            continue
        if _before_http_request not in http_client.event_hooks.get("request", ()):
            _have_told(http_client)
        if http_client in _loops:
            _warn_of_another_loop(http_client, model)
        uses_aiohttp = attribute_at(client, ("_api_client", "_use_aiohttp"))
        return not (callable(uses_aiohttp) and uses_aiohttp())
    if (events := boto_events(client)) is None:
        return False
    for event, handler in (
        ("before-send", _before_boto_send),
        ("response-received", _after_boto_send),
    ):
        events.register(event, handler, unique_id=f"fastroai-{event}")
    return True


_loops: WeakKeyDictionary[object, ReferenceType[AbstractEventLoop] | None] = WeakKeyDictionary()
"""In which loop each HTTP client was used last whose loops can't be kept apart; of the process, as
clients are the user's and outlive runs.
"""
_telling = Lock()
"""Held while a client is changed; of the process, as clients are."""


def _have_told(http_client: Any) -> None:
    with _telling:
        # Ours come last: a hook of the client's owner may still change where the request goes.
        for event, hook in (("request", _before_http_request), ("response", _after_http_response)):
            if hook not in http_client.event_hooks.setdefault(event, []):
                http_client.event_hooks[event].append(hook)
        if not keep_loops_apart(http_client):
            _loops[http_client] = None


def _warn_of_another_loop(http_client: object, model: Model) -> None:
    loop, last = get_running_loop(), _loops[http_client]
    _loops[http_client] = ref(loop)
    other = last() if last is not None else None
    if other is None or other is loop or other.is_closed():
        return
    logger.warning(
        "The HTTP client of %r is used from several event loops at once, which loses answers that "
        "were paid for, as its transport is none of httpx's. Give FastroAgent the model's name, so "
        "that it makes a client for each loop, or make an agent in each.",
        model.model_id,
    )


async def _before_http_request(request: Any) -> None:
    send = _sending.get()
    if send is None:
        return
    send.reached = True
    # else it may be where credentials are refreshed
    host = request.url.host
    is_providers = send.host in (None, host) or send.host == host_and_port(host)[0]
    if request.method != "POST" or not is_providers:
        return
    remember(request.headers)
    others = request.extensions.get("trace")
    # else the request goes out once more: redirected, or with new credentials
    if not isinstance(others, _Trace):
        request.extensions["trace"] = _Trace(send, others)
    await send.begin()


async def _after_http_response(response: Any) -> None:
    send = _sending.get()
    if send is None:
        return
    is_ours = isinstance(response.request.extensions.get("trace"), _Trace)
    if is_ours:
        send.answered_unseen(response.status_code)
        if response.status_code == 429 or any("ratelimit" in name for name in response.headers):
            send.hear(response.status_code, response.headers)
    # By GET comes the answer to a request that was taken on before.
    if response.status_code < 300 and (is_ours or response.request.method == "GET"):
        send.raw = RawAnswer(response)


@dataclass(slots=True, eq=False)
class _Trace:
    """Told by httpcore what becomes of a request, beneath any transport that sends it more than
    once.
    """

    _send: Send
    _others: Callable[[str, dict[str, Any]], Awaitable[None]] | None
    _is_request: bool = False

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self._send.see()
        if event.endswith(".send_request_headers.started"):
            # else it is a proxy that is asked to connect
            self._is_request = info["request"].method == b"POST"
            if self._is_request:
                await self._send.leave()
        elif event.endswith(".receive_response_headers.complete") and self._is_request:
            self._send.answered_with(_status(info["return_value"]))
        if self._others is not None:
            await self._others(event, info)


def _status(received: tuple[Any, ...]) -> int:
    # HTTP/1.1 gives (version, status, …), HTTP/2 (status, headers).
    return int(received[0] if isinstance(received[0], int) else received[1])


def _before_boto_send(request: Any = None, **event: Any) -> None:
    if (send := _sending.get()) is not None:
        send.reached = True
        from_thread.run(send.leave)
        # Only the request shows it where the answer is a stream, which is not seen.
        is_guarded = b'"guardrailConfig"' in (getattr(request, "body", None) or b"")
        send.raw = RawAnswer(Body(), is_guarded=is_guarded)


def _after_boto_send(response_dict: dict[str, Any] | None = None, **event: Any) -> None:
    if (send := _sending.get()) is not None and response_dict is not None:
        send.answered_with(response_dict["status_code"])
        if isinstance(body := response_dict.get("body"), bytes):
            send.raw = RawAnswer(Body(body), is_guarded=send.raw.is_guarded)
        if response_dict["status_code"] == 429:
            send.hear(429, response_dict["headers"])
