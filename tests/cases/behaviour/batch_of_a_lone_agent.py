"""An agent that no pipeline runs, the first of its process, sends its request in a batch: it is booked as in a step."""

import asyncio

from fastroai import FastroAgent
from pydantic_ai import Agent

from batches import HALF, Batches, batching

provider = Batches()
agent = FastroAgent(agent=Agent(provider.model, capabilities=[batching()]))
response = asyncio.run(agent.run("q"))
booked = [f"{entry.state.value} {entry.cost_usd.normalize():f}" for entry in response.entries]
assert (provider.requests, booked) == (1, [f"charged {HALF}"]), f"expected: charged {HALF}; got: {booked}"
