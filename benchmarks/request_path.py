"""How long the way of one request is: distinct functions of fastroai until it is sent.

python -m benchmarks.request_path [memory|prefect]: two steps, one request, after a first run that
makes what is made once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo

import fastroai
from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.testing import ScriptedModel, fixed_prices

PACKAGE = str(Path(fastroai.__file__).parent)
NOT_COUNTED = (f"{PACKAGE}/testing", f"{PACKAGE}/simulation")


class Tracing:
    """Notes each function of fastroai that is called while it is on."""

    def __init__(self) -> None:
        self.codes: dict[CodeType, None] = {}
        self.on = False

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if not self.on or event != "call" or code in self.codes:
            return
        path = code.co_filename
        if path.startswith(PACKAGE) and not path.startswith(NOT_COUNTED):
            self.codes[code] = None


async def trace(executor: str) -> Tracing:
    """What is called between `execute` and the request of the second step."""
    tracing = Tracing()

    def answer(messages: list[ModelMessage], info: AgentInfo) -> str:
        tracing.on = False
        return "answered"

    model = ScriptedModel(answer, repeat=True)
    agent = FastroAgent(model=model, cost_calculator=fixed_prices())

    @step
    async def first(context: StepContext[Any]) -> str:
        return str(context.get_input("topic"))

    @step
    async def second(context: StepContext[Any]) -> str:
        return (await context.run(agent, str(context.get_dependency("first")))).output

    steps = {"first": first, "second": second}
    pipeline = Pipeline("traced", steps, {"second": ["first"]}, executor=executor)
    await pipeline.execute({"topic": "warm"})
    sys.setprofile(tracing)
    threading.setprofile(tracing)
    tracing.on = True
    await pipeline.execute({"topic": "traced"})
    sys.setprofile(None)
    threading.setprofile(None)
    return tracing


def main() -> None:
    for executor in sys.argv[1:] or ["memory", "prefect"]:
        tracing = asyncio.run(trace(executor))
        sys.stdout.write(f"{executor}: {len(tracing.codes)} functions until the request is sent\n")
        for code in tracing.codes:
            path = Path(code.co_filename).relative_to(PACKAGE)
            sys.stdout.write(f"  {path}: {code.co_qualname}\n")


if __name__ == "__main__":
    main()
