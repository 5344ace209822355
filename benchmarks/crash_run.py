"""A run that tells of each request it sends: `crash_run.py STEPS RUN_KEY`, to be killed and run
again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from benchmarks.shapes import chain
from fastroai import BaseStep, FastroAgent, Pipeline
from fastroai.testing import ScriptedModel

SECONDS_PER_REQUEST = 0.02


class TellingModel(ScriptedModel):
    """Writes a line with the newest prompt for each request that is really sent."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> Any:
        prompt = messages[-1].parts[-1].content  # type: ignore[union-attr]
        os.write(TELLING, f"{prompt}\n".encode())
        return await super().request(messages, model_settings, model_request_parameters)


AGENT: FastroAgent[str] = FastroAgent(
    model=TellingModel(
        "Rye.",
        delay=SECONDS_PER_REQUEST,
        usage=RequestUsage(input_tokens=1_200, output_tokens=180),
        repeat=True,
    )
)


class Ask(BaseStep[None, str]):
    """Sends its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def execute(self, context: Any) -> str:
        response = await context.run(AGENT, str(self.number))
        return str(response.output)


def main(steps: int, run_key: str) -> None:
    shape = chain(steps)
    pipeline: Pipeline[None, Any, Any] = Pipeline(
        "crash",
        {step_id: Ask(number) for number, step_id in enumerate(shape.dependencies, start=1)},
        {step_id: upstream for step_id, upstream in shape.dependencies.items() if upstream},
        shape.output_step,
        executor="prefect",
    )
    asyncio.run(pipeline.execute({}, None, run_key=run_key))


if __name__ == "__main__":
    TELLING = os.dup(1)
    os.dup2(2, 1)  # whatever else prints must not land between the requests
    main(int(sys.argv[1]), sys.argv[2])
