"""pydantic-ai's agents as they are measured beside FastroAgent: they send the same requests."""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models import Model

from fastroai.agent.schemas import DEFAULT_MAX_TOKENS, DEFAULT_SYSTEM_PROMPT, DEFAULT_TEMPERATURE


def plain_agent(model: Model | str) -> Agent[None, str]:
    """An agent with the system prompt and the settings that FastroAgent has by itself."""
    settings: Any = {"max_tokens": DEFAULT_MAX_TOKENS}
    if isinstance(model, Model):  # those named here reason, and take none
        settings["temperature"] = DEFAULT_TEMPERATURE
    return Agent(model, system_prompt=DEFAULT_SYSTEM_PROMPT, model_settings=settings)
