"""Agents: send model requests, count them and price them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .agent import FastroAgent
from .schemas import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_MAX_TOKENS,
    DEFAULT_MODEL,
    DEFAULT_SYSTEM_PROMPT,
    DEFAULT_TEMPERATURE,
    AgentConfig,
    ChatResponse,
    StreamChunk,
)

if TYPE_CHECKING:
    from ..pipelines.agent_step import AgentStepWrapper

__all__ = [
    "DEFAULT_MAX_RETRIES",
    "DEFAULT_MAX_TOKENS",
    "DEFAULT_MODEL",
    "DEFAULT_SYSTEM_PROMPT",
    "DEFAULT_TEMPERATURE",
    "AgentConfig",
    "AgentStepWrapper",
    "ChatResponse",
    "FastroAgent",
    "StreamChunk",
]


def __getattr__(name: str) -> Any:
    # A step is a floor higher; it is only looked up when asked for.
    if name == "AgentStepWrapper":
        from ..pipelines.agent_step import AgentStepWrapper

        return AgentStepWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
