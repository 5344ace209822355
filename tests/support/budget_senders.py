"""A process that sends many requests at once.

`python -m tests.support.budget_senders COUNT LEASE` writes `ready` when it is, sends once a line
comes, and writes how many were answered and refused.
"""

from __future__ import annotations

import asyncio
import json
import sys

from fastroai import CostBudgetExceededError, FastroAgent
from fastroai.budgets import gate
from fastroai.testing import fixed_prices

MOST_TOKENS = 100


async def send(count: int) -> list[int]:
    """How many requests of so many at once were answered, and how many were refused."""
    agent: FastroAgent[str] = FastroAgent(
        model="openai:gpt-5-mini",
        max_tokens=MOST_TOKENS,
        cost_calculator=fixed_prices("gpt-5-mini"),
    )

    async def one(number: int) -> bool:
        try:
            await agent.run(f"question {number}")
        except CostBudgetExceededError:
            return False
        return True

    answered = await asyncio.gather(*map(one, range(count)))
    return [sum(answered), count - sum(answered)]


if __name__ == "__main__":
    gate.LEASE = float(sys.argv[2])
    print("ready", flush=True)  # noqa: T201  # what the test waits for
    sys.stdin.readline()
    print(json.dumps(asyncio.run(send(int(sys.argv[1])))), flush=True)  # noqa: T201
