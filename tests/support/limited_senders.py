"""A process that sends requests under rate limits.

`python -m tests.support.limited_senders NAME AT_ONCE SECONDS MINUTE` writes `ready`, sends once a
line comes, so many at once, and no more after some seconds; then it writes how many were answered.
MINUTE is how long a minute of its limits takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.rate_limits import pools
from fastroai.testing import fixed_prices


def pipeline(name: str, at_once: int, seconds: float) -> Pipeline[None, dict[str, object], int]:
    """A step that asks for as long as that."""
    agent: FastroAgent[str] = FastroAgent(
        model="openai-chat:gpt-5-mini", cost_calculator=fixed_prices("gpt-5-mini")
    )

    @step(timeout=seconds + 10)
    async def ask(context: StepContext[None]) -> int:
        end, answered = time.monotonic() + seconds, 0

        async def one_after_the_other() -> None:
            nonlocal answered
            while time.monotonic() < end:
                await context.run(agent, name)
                answered += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
        return answered

    return Pipeline("limited", {"ask": ask}, executor="memory")


if __name__ == "__main__":
    name, at_once, seconds, pools.MINUTE = sys.argv[1], *map(float, sys.argv[2:])
    limited = pipeline(name, int(at_once), seconds)
    print("ready", flush=True)  # noqa: T201  # what the test waits for
    sys.stdin.readline()
    result = asyncio.run(limited.execute({}))
    print(json.dumps(result.output), flush=True)  # noqa: T201
