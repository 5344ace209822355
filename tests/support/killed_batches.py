"""Runs a pipeline of batched requests in processes that are killed while a batch is under way.

`python -m tests.support.killed_batches KEY RESULTS`: one execution of the run under a key, until
it ends or is killed; its last line is what the run paid.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent, ModelRequest
from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.direct import model_request_batch
from pydantic_ai.models import infer_model
from pydantic_ai.models.batch import BatchRequest

from fastroai import Pipeline, PipelineConfig, StepContext, step
from tests.support import forked
from tests.support.behaviours import Answer

if TYPE_CHECKING:
    from tests.support.provider_process import ProviderProcess

REPOSITORY = Path(__file__).parents[2]
MODEL = "openai:gpt-5-mini"
SOON = timedelta(milliseconds=20)
BATCH_SECONDS = 0.4
LEASE_SECONDS = 0.5
PATIENCE = 60
PROMPTS = ("agents: 0", "agents: 1", "agents: 2", "by_hand: 0", "by_hand: 1")
"""What a run asks, each once, in two batches at once."""


def pipeline(key: str, results: str) -> Pipeline[Any, Any, Any]:
    """A step whose agents share a batch, beside one that sends a batch by hand."""
    batching = BatchModelRequests(
        max_requests=3, max_wait=SOON * 5, poll_interval=SOON, max_poll_interval=SOON
    )
    agent = Agent(MODEL, capabilities=[batching])

    @step
    async def agents(ctx: StepContext[Any]) -> list[str]:
        asked = (agent.run(f"{prompt} {key}") for prompt in PROMPTS[:3])
        return [answer.output for answer in await asyncio.gather(*asked)]

    @step
    async def by_hand(ctx: StepContext[Any]) -> int:
        prompts = (f"{prompt} {key}" for prompt in PROMPTS[3:])
        requests = [
            BatchRequest(custom_id=f"r{n}", messages=[ModelRequest.user_text_prompt(prompt)])
            for n, prompt in enumerate(prompts)
        ]
        answers = await model_request_batch(
            infer_model(MODEL), requests, poll_interval=SOON, max_poll_interval=SOON
        )
        return len(answers)

    steps = {"agents": agents, "by_hand": by_hand}
    config = PipelineConfig(result_storage=results)
    return Pipeline("killed-batches", steps, None, "agents", config, executor="prefect")


def execute_killed(
    kills: int, chance: random.Random, results: Path, provider: ProviderProcess
) -> tuple[list[str], int]:
    """Execute runs until so many processes were killed, and each run to its end.

    Returns:
        The keys of the runs, and how many kills came while a batch was under way.
    """
    provider.script("agents:", Answer(slowest=BATCH_SECONDS))
    provider.script("by_hand:", Answer(slowest=BATCH_SECONDS))
    keys, hits = [], 0
    while kills:
        keys.append(key := f"run-{len(keys) + 1}")
        in_this_run = min(kills, chance.choice((1, 2)))
        kills -= in_this_run
        for _ in range(in_this_run):
            hits += _killed(key, chance, results, provider)
        assert _start(key, results).wait(PATIENCE) == 0
    return keys, hits


def _killed(key: str, chance: random.Random, results: Path, provider: ProviderProcess) -> bool:
    """Kill an execution soon after it has submitted, or was to wait for what is submitted."""
    process = _start(key, results)
    provider.lines_when(
        lambda lines: (
            process.poll() is not None or any(line.prompt.endswith(f" {key}") for line in lines)
        )
    )
    try:
        process.wait(chance.uniform(0, BATCH_SECONDS))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE)
        time.sleep(LEASE_SECONDS + 0.1)  # so that the next one need not wait for its lease
        return True
    return False


def _start(key: str, results: Path) -> Any:
    command = [sys.executable, "-m", "tests.support.killed_batches", key, str(results)]
    environment = os.environ | {
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "FASTROAI_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    return forked.Popen(command, cwd=REPOSITORY, env=environment)


if __name__ == "__main__":
    run_key, folder = sys.argv[1:]
    asyncio.run(pipeline(run_key, folder).execute({}, None, run_key=run_key))
