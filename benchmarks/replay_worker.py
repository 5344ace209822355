"""Times a run whose steps are all finished; driven by JSON lines.

`handwritten` is the flow a careful engineer writes without fastroai: tasks with a cache policy of
their own, awaited in the flow's loop, true edges, and a table artifact per task, written by the
flow because the task's code does not run. `handwritten-bare` writes none. `fastroai` is the same
graph as a pipeline with a run key, `fastroai-bare` with its artifacts cut out.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic_ai.usage import RequestUsage

from benchmarks.answering import answer
from benchmarks.plain_agents import plain_agent
from benchmarks.prefect_worker import counts, time_run
from fastroai.testing import ScriptedModel

Graph = dict[str, list[str]]

USAGE = RequestUsage(input_tokens=1_200, output_tokens=180)
TEXT = (
    "The tenant pays for repairs up to 120 euros each, and not more than 600 euros in a year. " * 4
)


class Finding(BaseModel):
    """What a step makes of its model's answer."""

    step_id: str
    summary: str
    amounts: list[Decimal]
    certain: bool


def finding(step_id: str, answer: str) -> Finding:
    return Finding(
        step_id=step_id,
        summary=answer,
        amounts=[Decimal("120.00"), Decimal("600.00")],
        certain=True,
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """A run to be executed, and the model that counts what it sends."""

    run: Callable[[], Awaitable[object]]
    model: ScriptedModel


def build_fastroai(name: str, dependencies: Graph, artifacts: bool) -> Subject:
    from fastroai import BaseStep, FastroAgent, Pipeline

    if not artifacts:
        # There is no switch for them: this subject exists to show what they add.
        from fastroai.executors._prefect.artifacts import ArtifactWriter

        ArtifactWriter.add = lambda *args, **kwargs: None  # type: ignore[method-assign]
        ArtifactWriter.beside = lambda writer, work: work.close()  # type: ignore[method-assign]

    model = ScriptedModel(TEXT, usage=USAGE, repeat=True)
    agent: FastroAgent[str] = FastroAgent(model=model)

    class Ask(BaseStep[Any, Finding]):
        async def execute(self, context: Any) -> Finding:
            response = await context.run(agent, f"Read section {context.step_id}.")
            return finding(context.step_id, response.output)

    pipeline: Any = Pipeline(
        name=name,
        steps={step_id: Ask() for step_id in dependencies},
        dependencies={step_id: upstream for step_id, upstream in dependencies.items() if upstream},
        output_step=next(reversed(dependencies)),
        executor="prefect",
    )
    return Subject(lambda: pipeline.execute({}, None, run_key=name), model)


def build_handwritten(name: str, dependencies: Graph, artifacts: bool) -> Subject:
    from prefect import flow, task
    from prefect.artifacts import acreate_table_artifact

    model = ScriptedModel(TEXT, usage=USAGE, repeat=True)
    agent = plain_agent(model)

    def key(context: Any, parameters: dict[str, Any]) -> str:
        return f"{name}-{parameters['step_id']}"

    def costs(step_id: str, state: Any) -> dict[str, Any]:
        return {
            "step": step_id,
            "state": state.name,
            "model": "gpt-5-mini",
            "requests": 0,
            "usd": "0.000000",
        }

    @task(persist_result=True, cache_key_fn=key)
    async def ask(step_id: str) -> Finding:
        return finding(step_id, (await agent.run(f"Read section {step_id}.")).output)

    @flow(name=name)
    async def handwritten() -> dict[str, Finding]:
        running: dict[str, asyncio.Task[Any]] = {}

        async def step(step_id: str) -> Any:
            states = [await running[upstream] for upstream in dependencies[step_id]]
            configured: Any = ask.with_options(name=step_id)
            state = await configured(step_id, wait_for=states, return_state=True)
            if artifacts:
                table = [costs(step_id, state)]
                await acreate_table_artifact(
                    key=f"{name}-{step_id}", table=table, description="Cost of a step"
                )
            return state

        for step_id in dependencies:
            running[step_id] = asyncio.create_task(step(step_id))
        states = {step_id: await task for step_id, task in running.items()}
        outputs = {step_id: await state.aresult() for step_id, state in states.items()}
        if artifacts:
            table = [costs(step_id, state) for step_id, state in states.items()]
            await acreate_table_artifact(
                key=f"{name}-run", table=table, description="Cost of the run"
            )
        return outputs

    return Subject(handwritten, model)


def handle(command: dict[str, Any], who: str, subjects: dict[str, Subject]) -> dict[str, Any]:
    if command["op"] == "counts":
        return asyncio.run(counts())
    if command["op"] == "build":
        build = build_fastroai if who.startswith("fastroai") else build_handwritten
        name = f"{command['name']}-{who}"
        subjects["built"] = build(name, command["dependencies"], not who.endswith("-bare"))
        return {}
    subject = subjects["built"]
    sent_before = subject.model.calls
    gc.collect()
    gc.freeze()
    try:
        seconds = asyncio.run(time_run(subject.run))
    finally:
        gc.unfreeze()
    return {"seconds": seconds, "requests": subject.model.calls - sent_before}


def main() -> None:
    who = sys.argv[1]
    subjects: dict[str, Subject] = {}
    answer(lambda command: handle(command, who, subjects), subject=who)


if __name__ == "__main__":
    main()
