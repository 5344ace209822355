"""Finds out what a model sends by itself that may also have others answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token

from pydantic_ai.messages import ModelResponse

from ..providers import host_in
from ..replay.requests import Members, members_asked
from .http_attempts import Send
from .outcomes import settle_resent


class OwnRequest(Members):
    """One request of a model that others may answer for it.

    While its `with` block lasts it knows whom the model asks, and is told of what leaves for it
    besides. What was not seen to leave shows in the answer: it is the model's own where it is none
    of those that the others gave.

    Args:
        model: Which one; a class of it may ask its base.
        host: Where its requests go, as far as it says so.
        intend: Books a request that the model sends by itself.
    """

    def __init__(
        self, model: object, host: str | None, intend: Callable[[], Awaitable[Send]]
    ) -> None:
        super().__init__()
        self.model = model
        self.host = host
        self._intend = intend
        self._send: Send | None = None

    def __enter__(self) -> OwnRequest:
        self._token: Token[Members | None] = members_asked.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        members_asked.reset(self._token)
        if error is not None and self._send is not None:
            self._send.fail(error)

    def goes_to(self, url: str) -> bool:
        """Whether that is where the model's requests go."""
        return self.host is not None and host_in(url) == self.host

    async def leave(self) -> None:
        """The model is about to send something that nobody else books."""
        send = await self._intend()
        if self._send is not None:
            self._send.book(settle_resent(self._send.entry, None))
        self._send = send

    async def answered(self, response: ModelResponse) -> None:
        """Book what the model sent by itself for an answer, if it did."""
        if self._send is None and self._is_own(response):
            self._send = await self._intend()
        if self._send is not None:
            self._send.answered(response)

    async def opened(self) -> Send | None:
        """What the model sent by itself for an answer that comes as a stream; None: nothing."""
        if self._send is None and not self.asked:
            self._send = await self._intend()
        return self._send

    def _is_own(self, response: ModelResponse) -> bool:
        # What the books have priced is an answer of before, from a cache.
        is_new = response.usage.has_values() and response.usage.cost is None
        return is_new and not self.has_given(response)
