"""ScriptedModel: gives the answers that a test lists."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json, to_jsonable_python

from ..simulation.local_model import LocalModel, structured_part


@dataclass(frozen=True)
class ToolCall:
    """The model asks for a tool."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None

    def as_part(self) -> ToolCallPart:
        """The call as a part of a response."""
        part = ToolCallPart(self.name, to_json(dict(self.args)).decode())
        return part if self.id is None else replace(part, tool_call_id=self.id)


Reply = Any
"""A text; a pydantic model, dict or other value for a structured output; a `ToolCall`, or a list of
them made at once; an exception to raise; a ready `ModelResponse`; or a function of `(messages,
info)`, plain or coroutine, that gives one of these."""

Scripted = Callable[[list[ModelMessage], AgentInfo], Reply | Awaitable[Reply]]


class ScriptedModel(LocalModel):
    """A model that gives its replies in order, one for each request, with realistic token usage.

    >>> model = ScriptedModel("Hello!", TimeoutError("too slow"), {"city": "Oslo"})

    Args:
        *replies: What to answer, see `Reply`.
        model_name: The name it answers under and is priced as, at that model's provider.
        delay: Seconds each answer takes.
        usage: Token counts of each request; by default estimated from the texts, see `LocalModel`.
        repeat: Go on with the last reply when all were given. Otherwise one request more is an
            `AssertionError`.
    """

    _SYSTEM = "scripted"

    def __init__(
        self,
        *replies: Reply,
        model_name: str = "gpt-5-mini",
        delay: float = 0.0,
        usage: RequestUsage | None = None,
        repeat: bool = False,
    ) -> None:
        if not replies:
            raise ValueError(
                "ScriptedModel needs at least one reply, for example ScriptedModel('Hello!')."
            )
        super().__init__(model_name, delay=delay)
        self._replies = replies
        self._given = 0
        self._fixed_usage = usage
        self._repeats = repeat

    async def answer(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The next reply of the script."""
        reply = self._next_reply()
        if callable(reply) and not isinstance(reply, type):
            reply = reply(messages, _info(messages, settings, parameters))
        if inspect.isawaitable(reply):
            reply = await reply
        response = _response_of(reply, parameters)
        response.provider_response_id = response.provider_response_id or f"scripted-{self._given}"
        # Copied: what is noted on an answer's usage must not be on the next one's.
        response.usage = copy(response.usage if self._fixed_usage is None else self._fixed_usage)
        return response

    def _next_reply(self) -> Reply:
        if self._given >= len(self._replies) and not self._repeats:
            raise AssertionError(
                f"ScriptedModel was asked a {self._given + 1}th time, but has {len(self._replies)} "
                f"replies: {self.prompts[-1]!r}. Give it more, or repeat=True."
            )
        reply = self._replies[min(self._given, len(self._replies) - 1)]
        self._given += 1
        return reply


def _response_of(reply: Reply, parameters: ModelRequestParameters) -> ModelResponse:
    """A reply as a new response; an error, or its class, is raised."""
    if isinstance(reply, BaseException):
        raise reply
    if isinstance(reply, type) and issubclass(reply, BaseException):
        raise reply
    if isinstance(reply, ModelResponse):
        return copy(reply)
    return ModelResponse(parts=_parts(reply, parameters))


def _parts(reply: Reply, parameters: ModelRequestParameters) -> list[ModelResponsePart]:
    if isinstance(reply, str):
        return [TextPart(reply)]
    calls = reply if isinstance(reply, Sequence) and reply else [reply]
    if all(isinstance(call, ToolCall) for call in calls):
        return [call.as_part() for call in calls]
    return [structured_part(to_jsonable_python(reply), parameters, name=type(reply).__name__)]


def _info(
    messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
) -> AgentInfo:
    return AgentInfo(
        function_tools=parameters.function_tools,
        allow_text_output=parameters.allow_text_output,
        output_tools=parameters.output_tools,
        model_settings=settings,
        model_request_parameters=parameters,
        instructions=getattr(messages[-1], "instructions", None) if messages else None,
    )
