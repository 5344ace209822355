"""Agents: send model requests, count them and price them."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..pipelines.agent_step import AgentStepWrapper
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
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "..pipelines.agent_step": "AgentStepWrapper",
            ".agent": "FastroAgent",
            ".schemas": (
                "DEFAULT_MAX_RETRIES DEFAULT_MAX_TOKENS DEFAULT_MODEL DEFAULT_SYSTEM_PROMPT "
                "DEFAULT_TEMPERATURE AgentConfig ChatResponse StreamChunk"
            ),
        },
    )

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
