"""The most tokens that a model request can have, known before it is sent."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NoReturn

from pydantic_ai.messages import CachePoint, ModelMessage, ModelResponse, TextContent
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_core import to_json

PER_REQUEST: Final = 1024
"""Tokens for what a provider adds by itself: instructions of its own, the template of a prompted
output.
"""
FOR_TOOLS: Final = 1024
"""Tokens for the instructions on tool use that a provider adds where there are tools."""
PER_PART: Final = 32
"""Tokens for the marks around each message, part and tool."""
JSON_FACTOR: Final = 2
"""Providers lay JSON out anew, with spaces and lines, or as a notation of their own."""

_HARMLESS = frozenset(
    """
    max_tokens temperature top_p top_k timeout request_timeout max_retries parallel_tool_calls
    tool_choice seed presence_penalty frequency_penalty logit_bias stop_sequences extra_headers
    thinking cache service_tier anthropic_cache anthropic_cache_instructions
    anthropic_cache_messages anthropic_cache_tool_definitions anthropic_effort anthropic_metadata
    anthropic_service_tier anthropic_speed anthropic_thinking bedrock_cache_instructions
    bedrock_cache_messages bedrock_cache_tool_definitions bedrock_request_metadata
    bedrock_service_tier google_cloud_service_tier google_labels google_logprobs
    google_safety_settings google_thinking_config google_top_logprobs groq_reasoning_effort
    groq_reasoning_format openai_cache_instructions openai_logprobs openai_prompt_cache_key
    openai_prompt_cache_options openai_prompt_cache_retention openai_reasoning_effort
    openai_reasoning_summary openai_service_tier openai_store openai_text_verbosity
    openai_top_logprobs openai_user
    """.split()  # noqa: SIM905  # as a list it would be a page long
)
"""Settings that add no tokens to those counted here. Any other may: a conversation kept by the
provider, a prediction, a body of one's own."""


def tokens_at_most(
    messages: Sequence[ModelMessage],
    settings: Mapping[str, Any],
    parameters: ModelRequestParameters,
) -> tuple[int, int] | None:
    """The most input and output tokens that a request for text can be billed for.

    A token stands for a byte of UTF-8 at least, so the bytes of all that is sent bound its tokens,
    with an allowance for what is not seen from here. Output is bounded by `max_tokens`, into which
    providers count reasoning.

    Args:
        messages: What is sent.
        settings: The model's own and the request's, merged.
        parameters: Tools, output schema and instructions, before or after the model prepared them.

    Returns:
        None: there is no `max_tokens`, or something is sent whose tokens can't be told from its
            size: images, audio, documents, built-in tools, what the provider keeps.
    """
    limit = settings.get("max_tokens")
    if not isinstance(limit, int) or limit < 0 or not _HARMLESS.issuperset(settings):
        return None
    if parameters.native_tools or parameters.allow_image_output:
        return None
    try:
        total = sum(map(_of_message, messages))
    except _UntoldSizeError:
        return None
    # Sent with the parameters or with a message, as the model has it.
    with_parameters = with_messages = 0
    for part in parameters.instruction_parts or ():
        with_parameters += PER_PART + _bytes(part.content)
    for message in messages:
        with_messages = max(with_messages, _bytes(getattr(message, "instructions", None) or ""))
    total += max(with_parameters, with_messages)
    return PER_REQUEST + _of_parameters(parameters) + total, limit


class _UntoldSizeError(ValueError):
    """Something is sent whose tokens can't be told from its size."""


def _of_message(message: ModelMessage) -> int:
    size = PER_PART
    if isinstance(message, ModelResponse) and "thinking" in map(_kind_of, message.parts):
        # What it thought may be kept by the provider, and is then billed again in full.
        size += message.usage.output_tokens or _unknown(message)
    for part in message.parts:
        size += PER_PART + _SIZES.get(part.part_kind, _unknown)(part)
        if details := getattr(part, "provider_details", None):
            size += _json_bytes(details) * JSON_FACTOR
    return size


_kind_of = attrgetter("part_kind")


def _bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    if not unicodedata.is_normalized("NFKC", text):
        # Some tokenizers write compatibility characters out first: one of three bytes may become
        # 33.
        size = max(size, len(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass")))
    return size


def _json_bytes(value: object) -> int:
    return len(to_json(value, fallback=str))


def _of_content(part: Any) -> int:
    return _bytes(part.content or "")


def _of_prompt(part: Any) -> int:
    if isinstance(part.content, str):
        return _bytes(part.content)
    return sum(map(_of_item, part.content))


def _of_item(item: object) -> int:
    if isinstance(item, str):
        return PER_PART + _bytes(item)
    if isinstance(item, TextContent):
        return PER_PART + _bytes(item.content)
    return 0 if isinstance(item, CachePoint) else _unknown(item)


def _of_call(part: Any) -> int:
    size = _bytes(part.args) if isinstance(part.args, str) else _json_bytes(part.args)
    return size * JSON_FACTOR + _of_tool_names(part)


def _of_tool_names(part: Any) -> int:
    return _bytes(part.tool_name + (part.tool_call_id or ""))


def _of_return(part: Any) -> int:
    if isinstance(part.content, str):
        factor = 1 if part.outcome == "success" else JSON_FACTOR
        return _bytes(part.content) * factor + _of_tool_names(part)
    if part.files:
        return _unknown(part)
    return _bytes(part.model_response_str()) * JSON_FACTOR + _of_tool_names(part)


def _of_retry(part: Any) -> int:
    return _bytes(part.model_response()) * JSON_FACTOR


def _of_thinking(part: Any) -> int:
    return _bytes(part.content) + len(part.signature or "")


def _of_names(part: Any) -> int:
    return sum(map(_bytes, part.tools_added)) + PER_PART * len(part.tools_added)


def _of_change(part: Any) -> int:
    return _bytes(part.content or "") * JSON_FACTOR + 8 * PER_PART


def _nothing(_part: Any) -> int:
    return 0


def _unknown(part: object) -> NoReturn:
    raise _UntoldSizeError(type(part))


_SIZES: dict[str, Callable[[Any], int]] = {
    "instruction-baseline": _nothing,
    "instruction-delta": _of_change,
    "model-settings-delta": _nothing,
    "retry-feedback": _of_retry,
    "retry-prompt": _of_retry,
    "system-prompt": _of_prompt,
    "text": _of_content,
    "thinking": _of_thinking,
    "tool-availability-delta": _of_names,
    "tool-call": _of_call,
    "tool-return": _of_return,
    "user-prompt": _of_prompt,
}
"""Tokens at most of a part, by its kind."""


def _of_parameters(parameters: ModelRequestParameters) -> int:
    tools = [*parameters.function_tools, *parameters.output_tools]
    size = FOR_TOOLS if tools else 0
    size += sum(map(_of_tool, tools))
    if (output := parameters.output_object) is not None:
        # As a format of the response, and in the instructions as well.
        named = _bytes((output.name or "") + (output.description or ""))
        size += 2 * (_of_schema(output.json_schema) + named)
    if isinstance(template := parameters.prompted_output_template, str):
        size += _bytes(template)
    return size


def _of_tool(tool: ToolDefinition) -> int:
    size = PER_PART + _bytes(tool.name) + _bytes(tool.description or "")
    size += _of_schema(tool.parameters_json_schema)
    returned = getattr(tool, "return_schema", None)
    return size + _of_schema(returned) if returned else size


# From run to run, because tools keep their schemas, and measuring one means to write its JSON; by
# identity, because a schema has no hash.
_schemas: dict[int, tuple[Mapping[str, Any], int]] = {}
_MOST_SCHEMAS = 1024


def _of_schema(schema: Mapping[str, Any]) -> int:
    """A schema's JSON, with its definitions written out where they are used: some models are sent
    it so.
    """
    known = _schemas.get(id(schema))
    if known is None or known[0] is not schema:
        if len(_schemas) >= _MOST_SCHEMAS:
            _schemas.clear()
        size = _json_bytes(schema) * JSON_FACTOR
        if definitions := schema.get("$defs"):
            size += _WrittenOut(definitions).within(schema)
        # The schema is kept with its size, so that its id can't be given to another one meanwhile.
        known = _schemas[id(schema)] = (schema, size)
    return known[1]


class _WrittenOut:
    """What the definitions used in a schema add to it where they are written out; one that uses
    itself stays a reference there.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._sizes: dict[str, int] = {}

    def within(self, node: object) -> int:
        if isinstance(node, Mapping):
            parts = [value for key, value in node.items() if key != "$defs"]
            name = str(node.get("$ref", "")).rpartition("/")[2]
            return sum(map(self.within, parts)) + self._of(name)
        if isinstance(node, str) or not isinstance(node, Iterable):
            return 0
        return sum(map(self.within, node))

    def _of(self, name: str) -> int:
        if name not in self._definitions:
            return 0
        if name not in self._sizes:
            self._sizes[name] = 0
            definition = self._definitions[name]
            self._sizes[name] = _json_bytes(definition) * JSON_FACTOR + self.within(definition)
        return self._sizes[name]
