"""AgentStepWrapper: an agent call as a step."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .base import BaseStep
from .context import StepContext

if TYPE_CHECKING:
    from ..agent.agent import FastroAgent

OutputT = TypeVar("OutputT")
Prompt = str | Callable[[StepContext[Any]], str | Awaitable[str]]


class AgentStepWrapper(BaseStep[Any, OutputT]):
    """A step that sends one prompt to an agent; its output is the agent's output.

    Args:
        agent: The agent to call.
        prompt: The message, or a plain or coroutine function that makes it from the context.
    """

    def __init__(self, agent: FastroAgent[OutputT], prompt: Prompt) -> None:
        self._agent = agent
        self._prompt = prompt

    @property
    def agent(self) -> FastroAgent[OutputT]:
        """The agent this step calls."""
        return self._agent

    @property
    def prompt(self) -> Prompt:
        """The prompt, or what makes it."""
        return self._prompt

    async def execute(self, context: StepContext[Any]) -> OutputT:
        """Make the prompt, call the agent, return its output."""
        message = self._prompt(context) if callable(self._prompt) else self._prompt
        if inspect.isawaitable(message):
            message = await message
        response = await context.run(self._agent, message)
        return response.output
