"""Whichever way a step sends, on whichever executor: each line of the provider's invoice has its
one entry, and both say the same.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRequest
from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.direct import model_request, model_request_batch, model_request_stream
from pydantic_ai.embeddings import Embedder
from pydantic_ai.images import ImageGenerator
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.batch import BatchRequest

from fastroai import FastroAgent, Pipeline, PipelineConfig, StepContext, step
from fastroai.usage import Ledger
from tests.conformance.third_party import AnyExecutor, OneByOne
from tests.support.agreement import assert_agree
from tests.support.invoice import list_price
from tests.support.provider import Answer, Expire, Refuse
from tests.support.provider_process import ProviderProcess

MODEL = "openai:gpt-5-mini"
SOON = timedelta(milliseconds=20)


@pytest.fixture(params=["memory", "prefect", "third-party"])
def executor(request: pytest.FixtureRequest) -> AnyExecutor:
    if request.param == "prefect":
        request.getfixturevalue("prefect_api")
    return OneByOne() if request.param == "third-party" else str(request.param)


def asked(prompt: str) -> list[ModelMessage]:
    return [ModelRequest.user_text_prompt(prompt)]


@step
async def batch(ctx: StepContext[Any]) -> int:
    """Three agents share a batch, of which one fails and one expires; two requests by hand."""
    soon: dict[str, Any] = {"poll_interval": SOON, "max_poll_interval": SOON}
    batching = BatchModelRequests(max_requests=3, max_wait=SOON * 5, **soon)
    agent = Agent(MODEL, capabilities=[batching])
    prompts = ("batch: a", "batch: refused", "batch: expired")
    await asyncio.gather(*(agent.run(prompt) for prompt in prompts), return_exceptions=True)
    by_hand = [BatchRequest(custom_id=n, messages=asked(f"batch: {n}")) for n in "xy"]
    return len(await model_request_batch(MODEL, by_hand, **soon))


@step
def threads(ctx: StepContext[Any]) -> int:
    """A thread, a pool, and a loop's own pool."""

    def ask(number: int) -> str:
        return Agent(MODEL).run_sync(f"threads: {number}").output

    async def by_the_loop() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, ask, 3)

    thread = threading.Thread(target=ask, args=(1,))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, 2).result()
    return len(asyncio.run(by_the_loop()))


@step
async def direct(ctx: StepContext[Any]) -> str:
    answer = await model_request(MODEL, asked("direct: once"))
    async with model_request_stream(MODEL, asked("direct: as it comes")) as stream:
        async for _ in stream:
            pass
    return str(answer.provider_response_id)


@step
async def embed(ctx: StepContext[Any]) -> int:
    return len((await Embedder("openai:text-embedding-3-small").embed_query("embed: it"))[0])


@step
async def draw(ctx: StepContext[Any]) -> int:
    generator = ImageGenerator(OpenAIImageGenerationModel("gpt-image-1"))
    return len((await generator.generate("draw: a cat")).images)


@step
async def by_hand(ctx: StepContext[Any]) -> str:
    """A context that a step makes itself."""
    own: StepContext[None] = StepContext("by_hand", {}, None, {})
    return (await own.run(FastroAgent(model=MODEL), "by_hand: please")).output


async def test_each_line_of_the_invoice_has_its_one_entry(
    executor: AnyExecutor,
    provider: ProviderProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({provider.host: "openai"}))
    provider.script("refused", Refuse(400))
    provider.script("expired", Expire(), Answer("late"))
    provider.script("cat", Answer(input_tokens=11, output_tokens=1056))
    provider.script("it", Answer(input_tokens=100_003))
    steps: dict[str, Any] = {
        "batch": batch,
        "threads": threads,
        "direct": direct,
        "embed": embed,
        "draw": draw,
        "by_hand": by_hand,
    }
    config = PipelineConfig(retries=0)
    pipeline = Pipeline("ways", steps, None, "draw", config, executor=executor)
    result = await pipeline.execute({}, None, run_key="the-run")
    async with Ledger.open(url) as ledger:
        entries = await ledger.entries()
    pairs = assert_agree(provider.lines, entries, list_price)
    sent = Counter(line.prompt.partition(":")[0] for line, _ in pairs)
    assert sent == {"batch": 6, "threads": 3, "direct": 2, "embed": 1, "draw": 1, "by_hand": 1}
    assert {entry.attribution.run_id for entry in entries} == {result.run_id}
    assert {entry.id for entry in entries} == {entry.id for entry in result.entries}
