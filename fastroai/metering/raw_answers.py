"""A provider's own words: what an HTTP answer says besides what pydantic-ai keeps of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from pydantic_core import from_json

Json = dict[str, Any]

_TELLS_USAGE = re.compile(
    rb'"(?:usage|usageMetadata|tool_usage|groundingMetadata)"\s*:\s*\{|"executed_tools"\s*:\s*\['
    rb'|"type"\s*:\s*"url_citation"'
)
"""In an event of a stream that is worth keeping; most have text only, or `"usage": null`."""


class RawAnswer:
    """One answer as it came over the wire.

    A stream is followed while the client reads it; of its events those that tell usage are kept.

    Args:
        response: httpx's, of which only the headers need to have been received.
        is_guarded: Whether a guardrail of Bedrock was asked to look at it.
    """

    __slots__ = (
        "_documents",
        "_events",
        "_response",
        "_rest",
        "_usages",
        "headers",
        "is_guarded",
        "is_stream",
    )

    def __init__(self, response: Any, *, is_guarded: bool = False) -> None:
        self.is_guarded = is_guarded
        self.headers: Mapping[str, str] = response.headers
        self.is_stream = "event-stream" in response.headers.get("content-type", "")
        self._response = response
        self._events: list[bytes] = []
        self._rest = b""
        self._documents: list[Json] | None = None
        self._usages: list[Json] | None = None
        if self.is_stream:
            # SDKs read a stream through this method, whichever form they ask for; it gives the
            # bytes after any compression was undone.
            response.aiter_bytes = self._followed(response.aiter_bytes)

    @property
    def documents(self) -> list[Json]:
        """The JSON objects that tell usage, in their order: the whole answer, or events of it."""
        if self._documents is None:
            self._documents = [
                document for body in self._bodies() if isinstance(document := _parsed(body), dict)
            ]
        return self._documents

    @property
    def usages_by_document(self) -> list[tuple[Json, Json]]:
        """The usage objects of the answer in their order, each after the document it is in."""
        found = ((document, _usage_in(document)) for document in self.documents)
        return [(document, usage) for document, usage in found if usage]

    @property
    def usages(self) -> list[Json]:
        """The usage objects of the answer, in their order."""
        if self._usages is None:
            self._usages = [usage for _, usage in self.usages_by_document]
        return self._usages

    def _bodies(self) -> list[bytes]:
        if self.is_stream:
            return [*self._events, *_events_that_tell([self._rest])]
        try:
            return [self._response.content]
        except Exception:  # it was never read: the client gave up
            return []

    def _followed(self, read: Any) -> Any:
        async def aiter_bytes(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
            pieces = read(*args, **kwargs)
            try:
                async for piece in pieces:
                    self._keep(piece)
                    yield piece
            finally:
                await pieces.aclose()

        return aiter_bytes

    def _keep(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if lines:
            self._events += _events_that_tell(lines)
            self._documents = self._usages = None


class Body:
    """An answer's content that no HTTP client has received."""

    def __init__(self, content: bytes = b"") -> None:
        self.headers: dict[str, str] = {}
        self.content = content


NOT_SEEN: Final = RawAnswer(Body())
"""Stands for the answer to a request whose client can't be watched: it tells nothing."""


def _events_that_tell(lines: list[bytes]) -> list[bytes]:
    return [line[5:] for line in lines if line.startswith(b"data:") and _TELLS_USAGE.search(line)]


def _parsed(body: bytes) -> object:
    try:
        return from_json(body)
    except ValueError:
        return None


def count(document: object, *path: str) -> object:
    """What stands at a path within nested objects; None where there is nothing."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def items(document: object, *path: str) -> list[Json]:
    """The objects in the list at a path within nested objects; none where there is no list."""
    found = count(document, *path)
    if not isinstance(found, list):
        return []
    return [item for item in found if isinstance(item, dict)]


_USAGE_AT: Final = (
    ("usage",),
    ("usageMetadata",),  # Gemini
    ("x_groq", "usage"),  # Groq's streams, unasked
)
"""Where an answer, or an event of one, tells its usage."""


def _usage_in(document: Json) -> Json | None:
    # OpenAI's responses and Anthropic's messages come within an event of their own kind.
    inner = document.get("response") or document.get("message") or document
    places = [count(inner, *path) for path in _USAGE_AT]
    places += [choice.get("usage") for choice in items(document, "choices")[:1]]  # Moonshot
    return next((place for place in places if isinstance(place, dict) and place), None)


def told_tier(raw: RawAnswer) -> str | None:
    """The service tier that Anthropic says an answer had, or its fast mode, which pydantic-ai does
    not keep.
    """
    for usage in raw.usages:
        if usage.get("speed") == "fast":
            return "fast-mode"
        if isinstance(tier := usage.get("service_tier"), str):
            return tier
    return None


def told_tier_of_bedrock(raw: RawAnswer) -> str | None:
    """The service tier that Bedrock says an answer had, which pydantic-ai does not keep."""
    for document in raw.documents:
        if count(document, "performanceConfig", "latency") == "optimized":
            return "latency-optimized"
        if isinstance(tier := count(document, "serviceTier", "type"), str):
            return tier
    return None


def inference_geo(raw: RawAnswer) -> str | None:
    """Where Anthropic says that it computed an answer; only the start of a stream tells it."""
    for usage in raw.usages:
        if isinstance(geo := usage.get("inference_geo"), str):
            return geo
    return None
