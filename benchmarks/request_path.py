"""How long the way of one request is: distinct functions of fastroai until it is sent.

python -m benchmarks.request_path [memory|prefect]: two steps, one request of the true OpenAI
client, whose transport answers here. A first run makes what is made once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx2
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import fastroai
from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.testing import fixed_prices

PACKAGE = str(Path(fastroai.__file__).parent)
ANSWER = {
    "id": "answer-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "answered"},
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


class Tracing:
    """Notes each function of fastroai that is called while it is on."""

    def __init__(self) -> None:
        self.codes: dict[CodeType, None] = {}
        self.on = False

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if self.on and event == "call" and code.co_filename.startswith(PACKAGE):
            self.codes[code] = None


async def trace(executor: str) -> Tracing:
    """What is called between `execute` and the request of the second step."""
    tracing = Tracing()

    def answer(request: httpx2.Request) -> httpx2.Response:
        tracing.on = False
        return httpx2.Response(200, json=ANSWER)

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    provider = OpenAIProvider(api_key="unused", http_client=client)
    model = OpenAIChatModel("gpt-5-mini", provider=provider)
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
