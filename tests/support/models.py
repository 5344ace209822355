"""Offline models that count what is really asked of them, at fixed prices."""

from __future__ import annotations

from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator, FastroAgent

MODEL = "gpt-5-mini"
INPUT_TOKENS = 100
OUTPUT_TOKENS = 50
COST = 200
"""Microcents of one request: 100 input tokens at $1, 50 output tokens at $2 a million."""


class CountingModel(FunctionModel):
    """Answers with the given answers in turn, the last one again and again; an exception is raised.

    Attributes:
        calls: The prompts of the requests that reached it.
    """

    def __init__(self, *answers: Any) -> None:
        self.calls: list[str] = []
        self._answers = list(answers) or ["answer"]
        super().__init__(self._answer, model_name=MODEL)

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        answer = self._answers[min(len(self.calls), len(self._answers) - 1)]
        prompts = [p.content for m in messages for p in m.parts if isinstance(p, UserPromptPart)]
        self.calls.append(str(prompts[-1]))
        if isinstance(answer, BaseException):
            raise answer
        usage = RequestUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
        return ModelResponse(parts=[TextPart(str(answer))], usage=usage, model_name=MODEL)


def counted_agent(*answers: Any, **options: Any) -> tuple[FastroAgent[Any], CountingModel]:
    """An agent on a model that counts, with exact prices."""
    model = CountingModel(*answers)
    prices = CostCalculator(pricing_overrides={MODEL: {"input_per_mtok": 1.0, "output_per_mtok": 2.0}})
    return FastroAgent(model=model, name="counted", cost_calculator=prices, **options), model
