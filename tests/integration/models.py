"""Agents on a model that answers from a function, is priced like gpt-5-mini, and counts what it was
sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from fastroai import BaseStep, FastroAgent, StepContext

Answer = Callable[[str], Awaitable[str]]


class CountingModel:
    """Answers prompts with `answer:<prompt>`, 1,000 tokens in and 100 out; notes each prompt when
    it is sent.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self.prompts: list[str] = []
        self._answer = answer

    @property
    def calls(self) -> int:
        return len(self.prompts)

    def agent(self, **options: Any) -> FastroAgent[str]:
        return FastroAgent(model=FunctionModel(self._respond, model_name="gpt-5-mini"), **options)

    async def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompt = _last_prompt(messages)
        self.prompts.append(prompt)
        text = await self._answer(prompt) if self._answer else f"answer:{prompt}"
        return ModelResponse(
            parts=[TextPart(text)], usage=RequestUsage(input_tokens=1_000, output_tokens=100)
        )


def _last_prompt(messages: list[ModelMessage]) -> str:
    parts = [
        part for message in messages for part in message.parts if isinstance(part, UserPromptPart)
    ]
    return str(parts[-1].content)


class Ask(BaseStep[Any, str]):
    """Asks an agent about the run's topic and the answers of its dependencies."""

    def __init__(
        self, agent: FastroAgent[str], *step_ids: str, then: BaseException | None = None
    ) -> None:
        self.agent = agent
        self.step_ids = step_ids
        self.then = then

    async def execute(self, context: StepContext[Any]) -> str:
        parts = [
            context.step_id,
            str(context.get_input("topic")),
            *map(context.get_dependency, self.step_ids),
        ]
        response = await context.run(self.agent, "|".join(map(str, parts)))
        if self.then is not None:
            raise self.then
        return response.output


PRICE = Decimal("0.00045")
"""USD of one answer: 1,000 tokens in and 100 out of gpt-5-mini."""
