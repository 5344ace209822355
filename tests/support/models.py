"""An agent on a scripted model at fixed prices: what it is asked is counted, what it costs is
known.
"""

from __future__ import annotations

from typing import Any

from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent
from fastroai.testing import ScriptedModel, fixed_prices

INPUT_TOKENS = 100
OUTPUT_TOKENS = 50
COST = 200
"""Microcents of one request: 100 input tokens at $1, 50 output tokens at $2 a million."""


def counted_agent(*answers: Any, **options: Any) -> tuple[FastroAgent[Any], ScriptedModel]:
    """An agent, and the model whose `prompts` are the requests that reached it; the last answer is
    given again.
    """
    usage = RequestUsage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    model = ScriptedModel(*(answers or ("answer",)), usage=usage, repeat=True)
    return FastroAgent(
        model=model, name="counted", cost_calculator=fixed_prices(), **options
    ), model
