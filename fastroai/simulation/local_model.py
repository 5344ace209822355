"""Base of models that answer in this process, at once or as a stream."""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    TextPart,
    ToolCallPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json

# About what tokenizers come to in English; exact counts would take each provider's own.
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4


class LocalModel(Model[None]):
    """A model that computes its answers; subclasses say how in `answer`.

    Token usage is an estimate from the lengths of texts: one token for every four characters begun,
    of prompts, instructions and tool schemas on the way in (and four for each message), of texts
    and tool arguments on the way out.

    Args:
        model_name: The name it answers under, and is priced as.
        delay: Seconds each answer takes.
    """

    _SYSTEM = "local"

    def __init__(self, model_name: str = "gpt-5-mini", *, delay: float = 0.0) -> None:
        super().__init__(
            profile=ModelProfile(supports_json_schema_output=True, supports_json_object_output=True)
        )
        self._model_name = model_name
        self._delay = delay
        self.calls = 0
        """Requests so far, failed ones included."""
        self.prompts: list[str] = []
        """The newest prompt of each request."""

    @property
    def model_name(self) -> str:
        """The name it answers under."""
        return self._model_name

    @property
    def system(self) -> str:
        """Stands where a provider's name would."""
        return self._SYSTEM

    @property
    def provider(self) -> None:
        """None: nothing is sent anywhere."""
        return

    @abstractmethod
    async def answer(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The answer to a request; its usage is filled in where it has none."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer at once."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        self.calls += 1
        self.prompts.append(newest_prompt(messages))
        if self._delay:
            await asyncio.sleep(self._delay)
        response = await self.answer(messages, settings, parameters)
        if not response.model_name:
            response.model_name = self._model_name
        if not response.usage.has_values() and not response.usage.unmeasured_requests:
            response.usage = estimate_usage(messages, parameters, response)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Answer word by word; usage is reported with the last one, as OpenAI does."""
        response = await self.request(messages, model_settings, model_request_parameters)
        yield _LocalStream(model_request_parameters=model_request_parameters, _whole=response)


@dataclass
class _LocalStream(StreamedResponse):
    _whole: ModelResponse
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for index, part in enumerate(self._whole.parts):
            for event in self._events_of(index, part):
                # As between two packets of a network: others run, and a reader may leave.
                await asyncio.sleep(0)
                yield event
        self.provider_response_id = self._whole.provider_response_id
        self._usage = self._whole.usage

    def _events_of(self, index: int, part: object) -> Iterator[ModelResponseStreamEvent]:
        manager = self._parts_manager
        if isinstance(part, TextPart):
            for piece in _pieces(part.content):
                yield from manager.handle_text_delta(vendor_part_id=index, content=piece)
        elif isinstance(part, ToolCallPart):
            call: dict[str, Any] = {"vendor_part_id": index, "tool_call_id": part.tool_call_id}
            name: str | None = part.tool_name
            for piece in _pieces(part.args_as_json_str()):
                event = manager.handle_tool_call_delta(tool_name=name, args=piece, **call)
                name = None
                if event is not None:
                    yield event

    async def close_stream(self) -> None:
        """Nothing is open."""

    @property
    def model_name(self) -> str:
        return self._whole.model_name or ""

    @property
    def provider_name(self) -> None:
        return None

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self._started


def estimate_tokens(text: str) -> int:
    """One token for every four characters begun."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def estimate_usage(
    messages: list[ModelMessage], parameters: ModelRequestParameters, response: ModelResponse
) -> RequestUsage:
    """Token counts of a request, from the lengths of what goes in and comes out; never zero."""
    tools = [*parameters.function_tools, *parameters.output_tools]
    schemas = "".join(
        f"{tool.name}{tool.description or ''}{to_json(tool.parameters_json_schema)!r}"
        for tool in tools
    )
    incoming = estimate_tokens(schemas)
    for message in messages:
        instructions = getattr(message, "instructions", None) or ""
        text = instructions + "".join(map(text_of_part, message.parts))
        incoming += _TOKENS_PER_MESSAGE + estimate_tokens(text)
    outgoing = sum(estimate_tokens(text_of_part(part)) for part in response.parts)
    # A request without any tokens would count as one whose usage is not known.
    return RequestUsage(input_tokens=max(1, incoming), output_tokens=max(1, outgoing))


def newest_prompt(messages: Iterable[ModelMessage]) -> str:
    """The text of the last user prompt; empty where there is none."""
    for message in reversed(list(messages)):
        for part in reversed(message.parts):
            if isinstance(part, UserPromptPart):
                return prompt_text(part)
    return ""


def prompt_text(prompt: UserPromptPart) -> str:
    """The text of a prompt: its strings, and attached documents that are text."""
    if isinstance(prompt.content, str):
        return prompt.content
    texts = (text_of_content(item) for item in prompt.content)
    return "\n\n".join(text for text in texts if text is not None)


def text_of_content(item: UserContent) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, BinaryContent) and item.media_type.startswith("text/"):
        return item.data.decode("utf-8", errors="replace")
    text = getattr(item, "content", None)
    return text if isinstance(text, str) else None


def text_of_part(part: object) -> str:
    if isinstance(part, UserPromptPart):
        return prompt_text(part)
    if isinstance(part, ToolCallPart):
        return part.tool_name + part.args_as_json_str()
    content = getattr(part, "content", "")
    return content if isinstance(content, str) else to_json(content, fallback=str).decode()


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S*\s+|\S+", text) or [""]


def structured_part(
    value: object, parameters: ModelRequestParameters, *, name: str = ""
) -> ModelResponsePart:
    """A structured output as this request wants it: a call of its output tool, or JSON as text.

    Args:
        value: The output, as JSON values.
        parameters: Of the request.
        name: Name of the output's type, which tells several output tools apart.
    """
    tools = parameters.output_tools
    if not tools:
        return TextPart(to_json(value).decode())
    named = [tool for tool in tools if name and tool.name.endswith(f"_{name}")]
    tool = (named or tools)[0]
    if not isinstance(value, Mapping):
        # pydantic-ai wraps a value that is not an object into one with a single field.
        fields = tool.parameters_json_schema.get("properties", {"response": None})
        value = {next(iter(fields)): value}
    return ToolCallPart(tool.name, to_json(value).decode())
