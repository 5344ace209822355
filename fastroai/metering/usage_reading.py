"""What an answer's usage counts, read from the answer itself where pydantic-ai's sum misses it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from operator import attrgetter, le
from typing import Any, Final

from pydantic_ai.messages import ModelResponse, ModelResponsePart, TextPart, ToolCallPart
from pydantic_ai.usage import RequestUsage

from ..pricing.token_counts import TOKEN_COUNTERS, TokenCounts
from ..providers import canonical_provider
from .billed_tools import tool_calls
from .raw_answers import Json, RawAnswer, count, items

_counts_of: Callable[[RequestUsage], tuple[Any, ...]] = attrgetter(*TOKEN_COUNTERS)
_MOST: Final = 10**12
"""Tokens of one request that are still believed; a database keeps no number without end."""
_NO_USAGE: Final = "token usage"
_TOTALS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


class UnknownUsageError(ValueError):
    """What an answer tells of its tokens can't be billed; the text says why."""


def read_usage(response: ModelResponse, raw: RawAnswer) -> RequestUsage:
    """What is billed for a response: its tokens, and the calls of a provider's own tools.

    Returns:
        The response's own usage, or a corrected copy.

    Raises:
        UnknownUsageError: It makes no sense, or leaves open what is billed.
    """
    usage = _as_told(response, raw)
    usage = _with({**_misplaced(usage), **_whole_floats(usage)}, usage, response)
    _refuse_nonsense(usage)
    if not usage.output_tokens and raw.documents and any(map(_has_words, response.parts)):
        raise UnknownUsageError("The provider reported no output tokens, and answered words.")
    calls = tool_calls(response, raw).items()
    # As attributes, which is how RequestUsage carries what it has no field for.
    unlike = {name: n for name, n in calls if n and getattr(usage, name, None) != n}
    return _with(unlike, usage, response)


def _as_told(response: ModelResponse, raw: RawAnswer) -> RequestUsage:
    told = raw.usages
    if not told:
        return response.usage
    if "prompt_tokens" in told[-1]:
        return _of_chat(response, raw)
    if "cache_creation_input_tokens" in told[0]:
        return _of_messages(response.usage, told)
    if "totalTokenCount" in told[-1]:
        _refuse_untold_kind(response.usage, told[-1]["totalTokenCount"])
    return response.usage


def _refuse_untold_kind(usage: RequestUsage, total: object) -> None:
    """Hold Gemini's usage against its total: what is in that only may be input of tools or
    thinking, which cost differently.
    """
    known = (usage.input_tokens, usage.output_tokens)
    if type(total) is not int or {*map(type, known)} != {int}:
        return
    if usage.input_tokens and total > sum(known):
        raise UnknownUsageError(
            f"The provider reported totalTokenCount={total}, {total - sum(known)} more than input "
            "and output; what they are is not said."
        )


def _with(
    corrections: Mapping[str, int], usage: RequestUsage, response: ModelResponse
) -> RequestUsage:
    """A usage with other counts; that of the response itself stays as it is."""
    if corrections and usage is response.usage:
        usage = copy(usage)
    for name, value in corrections.items():
        setattr(usage, name, value)
    return usage


def sane_counts(usage: RequestUsage) -> TokenCounts:
    """The counters that the ledger keeps; none of them where one is no number of tokens."""
    counts = _counts_of(usage)
    return TokenCounts(**_named(counts)) if _are_tokens(counts) else TokenCounts()


def _are_tokens(counts: Collection[Any]) -> bool:
    """Whether each is a number of tokens; told in a few calls, as each answer is asked it."""
    return {*map(type, counts)} == {int} and 0 <= min(counts) <= max(counts) <= _MOST


def _refuse_nonsense(usage: RequestUsage) -> None:
    if usage.unmeasured_requests:
        raise UnknownUsageError(f"The provider reported no {_NO_USAGE}.")
    _refuse_uncountable(_named(_counts_of(usage)))
    if usage.details:
        _refuse_uncountable(_tokens_in(usage.details))
    if not usage.input_tokens:
        what = "input tokens, of which each request has some" if usage.output_tokens else _NO_USAGE
        raise UnknownUsageError(f"The provider reported no {what}.")
    reasoning = usage.details.get("reasoning_tokens") or 0
    if reasoning > usage.output_tokens:
        raise UnknownUsageError(
            f"The provider reported reasoning_tokens={reasoning!r}, of only {usage.output_tokens} "
            "output tokens."
        )


def _has_words(part: ModelResponsePart) -> bool:
    return isinstance(part, TextPart | ToolCallPart) and part.has_content()


def _tokens_in(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: n for name, n in details.items() if name.endswith("_tokens") and n is not None}


def _refuse_uncountable(tokens: Mapping[str, Any]) -> None:
    if not tokens or _are_tokens(tokens.values()):
        return
    name, value = next(item for item in tokens.items() if not _are_tokens(item[1:]))
    raise UnknownUsageError(
        f"The provider reported {name}={value!r}, which is no number of tokens."
    )


def _named(counts: Iterable[Any]) -> dict[str, Any]:
    return dict(zip(TOKEN_COUNTERS, counts, strict=True))


def _whole_floats(usage: RequestUsage) -> dict[str, int]:
    counts = _counts_of(usage)
    if float not in map(type, counts):
        return {}
    return {
        name: int(value)
        for name, value in _named(counts).items()
        if type(value) is float and value.is_integer()
    }


def _misplaced(usage: RequestUsage) -> dict[str, int]:
    """Counts under names that only some providers use.

    Moonshot tells `cached_tokens` beside `prompt_tokens` (platform.moonshot.ai, chat API),
    DeepSeek's protocol `prompt_cache_hit_tokens` (api-docs.deepseek.com, context caching), whoever
    serves the model.
    """
    details = usage.details
    if usage.cache_read_tokens or not details:
        return {}
    cached = details.get("cached_tokens") or details.get("prompt_cache_hit_tokens")
    return {"cache_read_tokens": cached} if cached else {}


def _of_chat(response: ModelResponse, raw: RawAnswer) -> RequestUsage:
    """The usage of a chat completion; each of its chunks may tell it, and the total more than the
    parts.
    """
    usage = response.usage
    counted = _counted_once(raw)
    if any(isinstance(counted.get(name), bool) for name in _TOTALS):
        raise UnknownUsageError(f"The provider reported no numbers of tokens: {dict(counted)!r}")
    if raw.is_stream and (len(raw.documents) > 1 or usage.unmeasured_requests):
        usage = _extracted(response, counted)
    return _with_the_total(response, usage, counted)


def _counted_once(raw: RawAnswer) -> Json:
    """The usage of a stream of which several chunks tell it.

    A chunk repeats what the one before it told, or has more: then the last one counts. A count may
    also be in one chunk only, 0 in all others: the input at the start, the output at the end.

    Raises:
        UnknownUsageError: Neither fits; the chunks may tell what each of them adds.
    """
    counted: Json = {}
    for document, usage in raw.usages_by_document:
        if not counted:
            counted = usage
            continue
        before, after = _totals(counted), _totals(usage)
        if _adds_the_same(document, counted, usage):
            raise UnknownUsageError(
                "The chunks of the stream tell the same usage while words come: it may be what "
                "each of them adds."
            )
        if all(map(le, before.values(), after.values())):
            # What only one of them tells, such as cached tokens, holds for all.
            counted = {**counted, **{name: n for name, n in usage.items() if n is not None}}
        elif _are_apart(before, after):
            counted = {**counted, **usage, **{name: before[name] + after[name] for name in _TOTALS}}
        else:
            raise UnknownUsageError(
                "The chunks of the stream tell different usage, of which none includes the others."
            )
    return counted


def _adds_the_same(chunk: Json, before: Json, usage: Json) -> bool:
    """Whether a chunk that is not the last one has words, and the usage of the one before it, which
    may be of these words: a usage of all until then would have grown. One that is more than a token
    for each character is of the whole answer, told with each chunk.
    """
    if usage != before or not usage.get("completion_tokens"):
        return False
    choices = [choice for choice in items(chunk, "choices") if not choice.get("finish_reason")]
    words = "".join(str(count(choice, "delta", "content") or "") for choice in choices)
    return bool(usage["completion_tokens"] <= len(words))


def _totals(usage: Json) -> dict[str, float]:
    return {name: usage.get(name) or 0 for name in _TOTALS}


def _are_apart(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether each count is in one of two chunks only; their totals may be in both."""
    return all(0 in (before[name], after[name]) for name in _TOTALS[:2])


def _extracted(response: ModelResponse, usage: Json) -> RequestUsage:
    """A usage object as pydantic-ai reads it."""
    details = _whole_numbers(usage) | _whole_numbers(usage.get("completion_tokens_details"))
    for name in _TOTALS:
        details.pop(name, None)
    return RequestUsage.extract(
        {"model": response.model_name, "usage": usage},
        provider=response.provider_name or "openai",
        provider_url=response.provider_url or "",
        provider_fallback="openai",
        api_flavor="chat",
        details=details,
    )


def _whole_numbers(told: object) -> dict[str, int]:
    if not isinstance(told, dict):
        return {}
    return {name: value for name, value in told.items() if type(value) is int}


def _with_the_total(response: ModelResponse, usage: RequestUsage, told: Json) -> RequestUsage:
    """Hold a usage against the total that the answer tells.

    Gemini's endpoint for OpenAI's protocol leaves thinking out of `completion_tokens` and has it in
    `total_tokens` only; it is billed as output (ai.google.dev, pricing: "including thinking
    tokens").
    """
    total = told.get("total_tokens")
    missing = _beyond_the_parts(usage, total)
    if missing <= 0:
        return usage
    if _is_google(response):
        return _with_thinking(usage, missing)
    if missing == told.get("reasoning_tokens") or told.get("citation_tokens"):
        return usage
    raise UnknownUsageError(
        f"The provider reported total_tokens={total}, {missing} more than input and output; what "
        "they are is not said."
    )


def _beyond_the_parts(usage: RequestUsage, total: object) -> int:
    """Tokens that are in a total only; 0 where that, or the input, is not known."""
    if type(total) is not int or type(usage.input_tokens) is not int:
        return 0
    missing = total - usage.input_tokens - (usage.output_tokens or 0)
    if missing < 0 < total:
        raise UnknownUsageError(
            f"The provider reported total_tokens={total}, less than input and output."
        )
    return missing if usage.input_tokens else 0


def _with_thinking(usage: RequestUsage, tokens: int) -> RequestUsage:
    usage = copy(usage)
    usage.output_tokens += tokens
    usage.output_reasoning_tokens += tokens
    return usage


def _is_google(response: ModelResponse) -> bool:
    provider = canonical_provider(response.provider_name or "")
    return provider == "google" or "gemini" in (response.model_name or "")


def _of_messages(usage: RequestUsage, told: list[Json]) -> RequestUsage:
    """The usage of one of Anthropic's messages.

    In a stream only the start tells for how long what was written to the cache is kept, and the end
    has the writes of all passes: as a request asks for its durations, so they are of one kind when
    the first ones were (platform.claude.com, prompt caching: 1-hour writes are 2 x input).

    Raises:
        UnknownUsageError: The first ones were of both kinds, so the further ones may be of either.
    """
    first, last = told[0], told[-1]
    written = last.get("cache_creation_input_tokens")
    if not isinstance(written, int) or written <= (first.get("cache_creation_input_tokens") or 0):
        return usage
    final_split = last.get("cache_creation")
    if isinstance(final_split, dict):
        for_hour = final_split.get("ephemeral_1h_input_tokens") or 0
    elif _is_all_for_an_hour(first, written):
        for_hour = usage.cache_write_tokens
    else:
        return usage
    usage = copy(usage)
    usage.cache_write_1h_tokens = for_hour
    return usage


def _is_all_for_an_hour(first: Json, written: int) -> bool:
    """Whether what was written to the cache is of the one kind that the start of a stream tells."""
    split = first.get("cache_creation")
    split = split if isinstance(split, dict) else {}
    for_hour = split.get("ephemeral_1h_input_tokens") or 0
    for_minutes = split.get("ephemeral_5m_input_tokens") or 0
    if bool(for_hour) == bool(for_minutes):
        raise UnknownUsageError(
            f"The provider reported {written} tokens written to the cache, and for only "
            f"{for_hour + for_minutes} of them for how long."
        )
    return bool(for_hour)
