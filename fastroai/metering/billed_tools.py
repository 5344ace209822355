"""What providers bill beside tokens: calls of their own tools, containers, searches of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydantic_ai.messages import FilePart, ModelResponse

from ..pricing.endpoints import on_domain
from ..pricing.premiums import GEMINI, version_in
from ..providers import canonical_provider, host_and_port
from .raw_answers import Json, RawAnswer, count, items

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

_REASONS_NOT: Final = re.compile(r"gpt-4|gpt-5[\d.]*-chat")
"""OpenAI's models for which it takes more for `web_search_preview`."""

_TWO_OUTPUT_RATES: Final = re.compile(r"gpt-image-1\.5|chatgpt-image")

_ALWAYS_SEARCH: Final = re.compile(r"search-preview|search-api")
"""OpenAI's models for chat that search on each call, 10 to 25 USD a thousand; the answer does not
count them.
"""

_BILLED_BY_QUERY_FROM: Final = (3, 0)
"""Gemini's version from which on Google Search is billed by the query, not by the prompt
(ai.google.dev, grounding, pricing).
"""

_TOOLS_ARE_KNOWN: Final = frozenset({"anthropic", "azure", "google", "groq", "openai", "x-ai"})
"""Providers of whose own tools it is known what each is billed by."""

_COUNTED_BESIDE: Final = {
    "num_search_queries": "its searches",
    "num_sources_used": "the sources that it searched",
    "citation_tokens": "its citations",
    "prompt_audio_seconds": "seconds of audio",
    "search_units": "its searches",
    "images": "its images",
    "classifications": "its classifications",
}
"""Counts among the tokens that are billed at rates of their own: Perplexity, xAI's live search,
Mistral's audio, Cohere.
"""


def tool_calls(response: ModelResponse, raw: RawAnswer) -> dict[str, int]:
    """Calls of a provider's own tools that pydantic-ai does not count, by the price list's name."""
    provider = canonical_provider(response.provider_name or "")
    if provider == "google":
        return _calls_at_google(response, raw)
    if provider == "x-ai":
        details = response.usage.details
        return {
            name: details.get(f"server_side_tools_{tool}", 0) for tool, name in _XAI_TOOLS.items()
        }
    if provider not in _OPENAI_PROTOCOL:
        return {}
    return _calls_at_xai(raw) or _calls_at_openai(response, raw)


def _calls_at_google(response: ModelResponse, raw: RawAnswer) -> dict[str, int]:
    """Searches that a stream tells of in another chunk than the last, where pydantic-ai looks."""
    if not raw.is_stream or vars(response.usage).get("web_searches"):
        return {}
    groundings = [count(one, "groundingMetadata") for one in _candidates(raw)]
    queries = {str(query) for one in groundings for query in _listed(one, "webSearchQueries")}
    sources = [chunk for one in groundings for chunk in items(one, "groundingChunks")]
    version = version_in(GEMINI, response.model_name or "")
    if version and version < _BILLED_BY_QUERY_FROM:
        return {"web_searches": int(bool(queries) and any("web" in one for one in sources))}
    return {"web_searches": len(queries)}


def _candidates(raw: RawAnswer) -> Iterator[Json]:
    for document in raw.documents:
        yield from items(document, "candidates")


def _listed(document: object, name: str) -> list[object]:
    found = count(document, name)
    return [one for one in found if one] if isinstance(found, list) else []


def _calls_at_openai(response: ModelResponse, raw: RawAnswer) -> dict[str, int]:
    kinds = [(part.part_kind, getattr(part, "tool_name", None)) for part in response.parts]
    calls = {"storage_searches": kinds.count(("builtin-tool-call", "file_search"))}
    for document in _responses(raw):
        calls["storage_searches"] = _types(document, "output").count("file_search_call")
        searches = count(document, "tool_usage", "web_search", "num_requests")
        if type(searches) is int:  # OpenAI's SDK knows this one by now, so pydantic-ai misses it
            calls["web_searches"] = searches
    return calls


_XAI_CALLS: Final = {
    "web_search_calls": "web_searches",
    "x_search_calls": "social_searches",
    "file_search_calls": "storage_searches",
    "document_search_calls": "storage_searches",
    "code_interpreter_calls": "code_executions",
}
"""The same tools as its answers over HTTP count them (docs.x.ai, tool usage details)."""


def _calls_at_xai(raw: RawAnswer) -> dict[str, int]:
    calls: dict[str, int] = {}
    for usage in raw.usages[-1:]:
        told = count(usage, "server_side_tool_usage_details")
        for name, tool in _XAI_CALLS.items():
            if type(number := count(told, name)) is int and number:
                calls[tool] = calls.get(tool, 0) + number
    return calls


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer of a model, as pydantic-ai reads it and as it came from a URL."""

    response: ModelResponse
    raw: RawAnswer
    url: str
    model: str
    provider: str

    @classmethod
    def of(cls, response: ModelResponse, raw: RawAnswer, url: str | None) -> _Answer:
        provider = canonical_provider(response.provider_name or "")
        return cls(response, raw, url or "", response.model_name or "", provider)

    @property
    def said(self) -> Iterator[object]:
        """What a chat says, as a whole or piece by piece."""
        for document in self.raw.documents:
            for choice in items(document, "choices")[:1]:
                yield choice.get("message") or choice.get("delta")


def unpriced_extra(response: ModelResponse, raw: RawAnswer, url: str | None) -> str | None:
    """What a response is billed for beside its tokens at a price that no list has; None: nothing.

    Args:
        response: As pydantic-ai reads it.
        raw: As it came.
        url: Where it came from.
    """
    if response.usage.details.get("advisor_iterations"):
        return "An advisor model took part, whose tokens are billed at its own rates."
    answer = _Answer.of(response, raw, url)
    # The others look into the answer as it came.
    for missing_of in _CHECKS if raw.documents else _CHECKS_OF_THE_RESPONSE:
        if missing := missing_of(answer):
            return f"No price is known for {missing}, which is billed beside tokens."
    return None


def counted_beside_tokens(answer: _Answer) -> str | None:
    """What the usage counts beside tokens."""
    details = answer.response.usage.details
    for detail, what in _COUNTED_BESIDE.items():
        if counted := details.get(detail):
            return f"{what} ({detail}={counted})"
    return None


def tools_of_the_model(answer: _Answer) -> str | None:
    """Tools that a model uses on each call, so that no answer counts them, and those of providers
    of which it is not known what they take for them.
    """
    if answer.provider in _OPENAI_PROTOCOL and _ALWAYS_SEARCH.search(answer.model):
        return f"the search of {answer.model!r}"
    if answer.provider == "groq" and "compound" in answer.model:
        return f"the tools of {answer.model!r}"
    if answer.provider in _TOOLS_ARE_KNOWN:
        return None
    for part in answer.response.parts:
        if part.part_kind == "builtin-tool-call":
            return f"its tool {part.tool_name!r}"
    return None


def beside_bedrocks_models(answer: _Answer) -> str | None:
    """What Bedrock bills beside a model: its guardrails by what they look at, its routers by the
    request, Nova's own tools by the call (aws.amazon.com, Bedrock pricing).
    """
    if answer.raw.is_guarded:
        return "its guardrail"
    for document in answer.raw.documents:
        trace = count(document, "trace")
        for name in ("guardrail", "promptRouter"):
            if count(trace, name):
                return f"its {name}"
        for block in items(document, "output", "message", "content"):
            if count(block, "toolUse", "type") == "server_tool_use":
                return f"its tool {count(block, 'toolUse', 'name')!r}"
    return None


def media_not_told_apart(answer: _Answer) -> str | None:
    """Images and audio among the output of Gemini that its usage does not tell apart from text."""
    if answer.provider != "google":
        return None
    for part in answer.response.parts:
        if isinstance(part, FilePart) and (kind := _untold_kind(part, answer)):
            return f"the {kind} that it answered, whose tokens are not told apart"
    return None


def _untold_kind(part: FilePart, answer: _Answer) -> str | None:
    kind = part.content.media_type.partition("/")[0]
    if kind not in ("image", "audio", "video"):
        return None
    if kind == "audio" and "tts" in answer.model:
        return None  # all that it gives is audio, at the one rate listed
    told = answer.response.usage.details.get(f"{kind}_candidates_tokens")
    return None if told else kind


def images_not_told_apart(answer: _Answer) -> str | None:
    """The output of an image model that has a rate for images and another one for text, where its
    usage does not split it.
    """
    if not _TWO_OUTPUT_RATES.match(answer.model):
        return None
    for document in answer.raw.documents:
        if items(document, "data") and not count(document, "usage", "output_tokens_details"):
            return "the images that it made, whose tokens are not told apart"
    return None


def grounding_of_google(answer: _Answer) -> str | None:
    """Grounding other than with Google Search (ai.google.dev, pricing, tools)."""
    for candidate in _candidates(answer.raw):
        grounding = count(candidate, "groundingMetadata")
        if grounding and (missing := _missing_of_grounding(grounding, answer.url)):
            return missing
    return None


def _missing_of_grounding(grounding: object, url: str) -> str | None:
    sources: set[str] = set().union(*items(grounding, "groundingChunks"))
    if count(grounding, "googleMapsWidgetContextToken") or "maps" in sources:
        return "its grounding with Google Maps"
    if count(grounding, "imageSearchQueries"):
        return "its searches for images"
    if "retrievedContext" in sources and "aiplatform" in str(host_and_port(url)[0]):
        return "its grounding with data of your own"
    return None


def media_and_tools_of_a_chat(answer: _Answer) -> str | None:
    """What OpenAI's protocol for chats carries that is not text."""
    usage = answer.response.usage
    for said in answer.said:
        if count(said, "executed_tools"):
            return "the tools that Groq ran"
        if count(said, "audio", "data") and not usage.output_audio_tokens:
            return "the audio that it answered, whose tokens are not told apart"
        if count(said, "images") and not usage.details.get("image_tokens"):
            return "the images that it answered, whose tokens are not told apart"
    return None


def search_of_a_chat(answer: _Answer) -> str | None:
    """Searches of the web that show in an answer's citations only, as OpenRouter's plugin does, and
    Perplexity's request fee, of which the list has that of the largest search context.
    """
    if on_domain(answer.url, "perplexity.ai"):
        return _small_context(answer)
    for said in answer.said:
        if any("url_citation" in note for note in items(said, "annotations")):
            return "its search of the web"
    return None


def _small_context(answer: _Answer) -> str | None:
    if not answer.model.startswith("sonar") or "deep-research" in answer.model:
        return None
    for usage in answer.raw.usages:
        size = usage.get("search_context_size") or "low"
        if size != "high":
            return f"a request at search context {size!r}"
    return None


def container_of_anthropic(answer: _Answer) -> str | None:
    """Code runs in a container by the hour, free beside Anthropic's search and fetch tools
    (platform.claude.com, code execution tool, pricing).
    """
    if answer.provider != "anthropic":
        return None
    used = [count(usage, "server_tool_use") for usage in answer.raw.usages]
    if any(count(one, "web_search_requests") or count(one, "web_fetch_requests") for one in used):
        return None
    told = [count(document, *path) for document in answer.raw.documents for path in _CONTAINERS]
    if any(told) or any(count(one, "code_execution_requests") for one in used):
        return "the container of its code execution"
    return None


# A stream tells it where it begins or where it ends.
_CONTAINERS: Final = (("container",), ("message", "container"), ("delta", "container"))


def tools_of_openais_responses(answer: _Answer) -> str | None:
    """Containers, images and searches that a response of OpenAI's tells of."""
    for document in _responses(answer.raw):
        missing = _container(document) or _images(document) or _search(document, answer.model)
        if missing:
            return missing
    return None


def _container(document: Json) -> str | None:
    for item in items(document, "output"):
        kind = str(item.get("type"))
        where = str(count(item, "environment", "type"))
        if kind in _CONTAINER_CALLS and (kind != "shell_call" or where.startswith("container")):
            return _CONTAINER_CALLS[kind]
    return None


def _images(document: Json) -> str | None:
    image_gen = count(document, "tool_usage", "image_gen")
    if count(image_gen, "input_tokens") or count(image_gen, "output_tokens"):
        return "the images that it made"
    return None


def _search(document: Json, model: str) -> str | None:
    if not _REASONS_NOT.match(model):
        return None
    # 25 USD a thousand for models that do not reason, 10 for those that do: the list has 10.
    if "web_search_call" in _types(document, "output"):
        tools = " ".join(_types(document, "tools"))
        return "its web_search_preview" if "search_preview" in tools else None
    return None


def _types(document: Json, name: str) -> list[str]:
    return [str(item.get("type")) for item in items(document, name)]


def _responses(raw: RawAnswer) -> Iterator[Json]:
    """Documents of OpenAI's responses API, those within its events too."""
    for document in raw.documents:
        inner = document.get("response", document)
        if isinstance(count(inner, "output"), list):
            yield inner


_CHECKS_OF_THE_RESPONSE: Final = (
    counted_beside_tokens,
    tools_of_the_model,
    media_not_told_apart,
    beside_bedrocks_models,
)
_CHECKS: Final = (
    *_CHECKS_OF_THE_RESPONSE,
    grounding_of_google,
    images_not_told_apart,
    media_and_tools_of_a_chat,
    search_of_a_chat,
    container_of_anthropic,
    tools_of_openais_responses,
)
