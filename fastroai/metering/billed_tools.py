"""What providers bill beside tokens: calls of their own tools, containers, searches of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic_ai.messages import FilePart, ModelResponse

from ..providers import canonical_provider, host_and_port
from .raw_answers import Json, RawAnswer, count

_XAI_TOOLS: Final = {
    "web_search": "web_searches",
    "x_search": "social_searches",
    "file_search": "storage_searches",
    "code_execution": "code_executions",
}
"""Tools that xAI runs and bills by the call, under the names of the price list."""

_OPENAI_PROTOCOL: Final = frozenset({"openai", "azure"})

_CONTAINER_CALLS: Final = {
    "code_interpreter_call": "the container of its code interpreter",
    "shell_call": "the container of its shell",
    "image_generation_call": "the images that it made",
}
"""Items of OpenAI's responses that are billed by time or by an image model's tokens
(developers.openai.com, pricing, built-in tools), under what is missing.
"""

_ALWAYS_SEARCH: Final = re.compile(r"search-preview|search-api")
"""OpenAI's models for chat that search on each call, 10 to 25 USD a thousand; the answer does not
count them.
"""

_COUNTED_BESIDE: Final = {
    "num_search_queries": "its searches",
    "num_sources_used": "the sources that it searched",
    "citation_tokens": "its citations",
    "prompt_audio_seconds": "seconds of audio",
    "search_units": "its searches",
}
"""Counts among the tokens that are billed at rates of their own: Perplexity, xAI's live search,
Mistral's audio, Cohere.
"""


def tool_calls(response: ModelResponse, raw: RawAnswer | None) -> dict[str, int]:
    """Calls of a provider's own tools that pydantic-ai does not count, by the price list's name."""
    provider = canonical_provider(response.provider_name or "")
    if provider == "x-ai":
        details = response.usage.details
        return {
            name: details.get(f"server_side_tools_{tool}", 0) for tool, name in _XAI_TOOLS.items()
        }
    if provider not in _OPENAI_PROTOCOL:
        return {}
    calls = {
        "storage_searches": sum(
            part.part_kind == "builtin-tool-call" and part.tool_name == "file_search"
            for part in response.parts
        )
    }
    for document in _responses(raw):
        searches = count(document, "tool_usage", "web_search", "num_requests")
        if type(searches) is int:  # OpenAI's SDK knows this one by now, so pydantic-ai misses it
            calls["web_searches"] = searches
    return calls


def unpriced_extra(response: ModelResponse, raw: RawAnswer | None, url: str | None) -> str | None:
    """What a response is billed for beside its tokens at a price that no list has; None: nothing.

    Args:
        response: As pydantic-ai reads it.
        raw: As it came.
        url: Where it came from.
    """
    usage = response.usage
    if usage.details.get("advisor_iterations"):
        return "An advisor model took part, whose tokens are billed at its own rates."
    missing = next(_missing(response, raw, url), None)
    return missing and f"No price is known for {missing}, which is billed beside tokens."


def _missing(response: ModelResponse, raw: RawAnswer | None, url: str | None) -> Iterator[str]:
    usage, name = response.usage, response.model_name or ""
    provider = canonical_provider(response.provider_name or "")
    for detail, what in _COUNTED_BESIDE.items():
        if usage.details.get(detail):
            yield f"{what} ({detail}={usage.details[detail]})"
    if _ALWAYS_SEARCH.search(name) and provider in _OPENAI_PROTOCOL:
        yield f"the search of {name!r}"
    if "compound" in name and provider == "groq":
        yield f"the tools of {name!r}"
    yield from _unsplit_media(response, provider)
    if raw is None:
        return
    for document in raw.documents:
        if "candidates" in document:
            yield from _of_google(document, url)
        elif isinstance(choices := document.get("choices"), list) and choices:
            yield from _of_chat(choices[0], response)
        elif document.get("container") and provider == "anthropic":
            yield from _of_anthropic(document)
    for document in _responses(raw):
        yield from _of_responses(document, name)


def _responses(raw: RawAnswer | None) -> Iterator[Json]:
    """Documents of OpenAI's responses API, those within its events too."""
    for document in raw.documents if raw is not None else ():
        inner = document.get("response") if "response" in document else document
        if isinstance(inner, dict) and isinstance(inner.get("output"), list):
            yield inner


def _of_responses(document: Json, model: str) -> Iterator[str]:
    for item in document["output"]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "shell_call" and not _in_a_container(item):
            continue
        if what := _CONTAINER_CALLS.get(kind or ""):
            yield what
    images = count(document, "tool_usage", "image_gen")
    if isinstance(images, dict) and any(images.get(n) for n in ("input_tokens", "output_tokens")):
        yield "the images that it made"
    tools = document.get("tools") or ()
    searched = any(
        isinstance(item, dict) and item.get("type") == "web_search_call"
        for item in document["output"]
    )
    kinds = [str(count(tool, "type")) for tool in tools]
    # 25 USD a thousand for models that do not reason, 10 for those that do: the list has 10.
    if searched and model.startswith("gpt-4") and any("search_preview" in kind for kind in kinds):
        yield "its web_search_preview"


def _in_a_container(item: Mapping[str, Any]) -> bool:
    return str(count(item, "environment", "type")).startswith("container")


def _of_anthropic(document: Json) -> Iterator[str]:
    """Code runs in a container by the hour, free beside Anthropic's search and fetch tools
    (platform.claude.com, code execution tool, pricing).
    """
    used = count(document, "usage", "server_tool_use")
    if not (
        isinstance(used, dict)
        and (used.get("web_search_requests") or used.get("web_fetch_requests"))
    ):
        yield "the container of its code execution"


def _of_google(document: Json, url: str | None) -> Iterator[str]:
    """Grounding other than with Google Search (ai.google.dev, pricing, tools)."""
    for candidate in document["candidates"] or ():
        grounding = count(candidate, "groundingMetadata")
        if not isinstance(grounding, dict):
            continue
        chunks = [chunk for chunk in grounding.get("groundingChunks") or () if chunk]
        if grounding.get("googleMapsWidgetContextToken") or any("maps" in c for c in chunks):
            yield "its grounding with Google Maps"
        if grounding.get("imageSearchQueries"):
            yield "its searches for images"
        on_vertex = "aiplatform" in (host_and_port(url or "")[0] or "")
        if on_vertex and any("retrievedContext" in chunk for chunk in chunks):
            yield "its grounding with data of your own"


def _of_chat(choice: object, response: ModelResponse) -> Iterator[str]:
    said = count(choice, "message") or count(choice, "delta")
    if count(said, "executed_tools"):
        yield "the tools that Groq ran"
    if count(said, "audio", "data") and not response.usage.output_audio_tokens:
        yield "the audio that it answered, whose tokens are not told apart"
    if count(said, "images"):
        details = response.usage.details
        if not details.get("image_tokens"):
            yield "the images that it answered, whose tokens are not told apart"


def _unsplit_media(response: ModelResponse, provider: str) -> Iterator[str]:
    """Images and audio among the output of Gemini that its usage does not tell apart from text."""
    if provider != "google":
        return
    details = response.usage.details
    for part in response.parts:
        if not isinstance(part, FilePart):
            continue
        kind = part.content.media_type.partition("/")[0]
        if kind in ("image", "audio", "video") and not details.get(f"{kind}_candidates_tokens"):
            if kind == "audio" and "tts" in (response.model_name or ""):
                continue  # all that it gives is audio, at the one rate listed
            yield f"the {kind} that it answered, whose tokens are not told apart"
