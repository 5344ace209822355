"""A flow of one step that tells when its code runs: `first_step.py fastroai|handwritten`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any


def told() -> None:
    os.write(TELLING, b"first step\n")


async def fastroai() -> None:
    from fastroai import FastroAgent, Pipeline, StepContext, step
    from fastroai.testing import ScriptedModel

    agent: FastroAgent[str] = FastroAgent(model=ScriptedModel("Rye."))

    @step
    async def ask(context: StepContext[Any]) -> str:
        told()
        return (await context.run(agent, "What does the mill grind?")).output

    pipeline: Any = Pipeline("first", {"ask": ask}, executor="prefect")
    await pipeline.execute({}, None)


async def handwritten() -> None:
    from prefect import flow, task
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("Rye.")])

    agent = Agent(FunctionModel(answer))

    @task(persist_result=True)
    async def ask() -> str:
        told()
        return (await agent.run("What does the mill grind?")).output

    @flow(name="first")
    async def first() -> str:
        return await ask()

    await first()


if __name__ == "__main__":
    TELLING = os.dup(1)
    os.dup2(2, 1)  # whatever else prints must not be taken for it
    asyncio.run({"fastroai": fastroai, "handwritten": handwritten}[sys.argv[1]]())
