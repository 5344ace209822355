"""Turns of requests within one process: their order, who leaves, deadlines, and what is said."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.ledger.entries import NOT_SENT, LedgerEntry
from fastroai.metering import likely_tokens, request_turns
from fastroai.metering.deadlines import Deadline, standing_still
from fastroai.metering.likely_tokens import LikelyTokens
from fastroai.metering.request_turns import used_by
from fastroai.pipelines.map_state import watched_maps
from fastroai.pricing.token_counts import TokenCounts
from fastroai.provider_limits import ProviderLimit
from fastroai.rate_limits import LIMITERS, NOTHING, Amounts, RateLimiter
from fastroai.rate_limits.shared_pools import OwnPools
from fastroai.rate_limits.turns import Turn, Waiting
from fastroai.replay.requests import RequestOfModel
from fastroai.usage import EntryState

ONE = Amounts.of(0, 0)
ROUTE = ("acme",)


@pytest.fixture
async def limiter() -> AsyncIterator[RateLimiter]:
    made = RateLimiter(OwnPools(), lease=30)
    yield made
    await asyncio.to_thread(made.dispatcher.close_at_exit)


@pytest.fixture(autouse=True)
def forget_limiters() -> Any:
    yield
    LIMITERS.clear()


def limit(limiter: RateLimiter, **limits: Any) -> None:
    limiter.configure({"acme": ProviderLimit(**limits)}, {})


async def take(limiter: RateLimiter, run: str = "run") -> Turn:
    """In a task of its own: who has a turn does not wait for another."""
    return await asyncio.create_task(limiter.take(ROUTE, run, lambda: ONE, Waiting(0)))


def test_a_request_belongs_to_its_provider_its_model_and_what_its_host_says() -> None:
    limiter = RateLimiter(OwnPools(), lease=30)
    limits = {name: ProviderLimit(concurrency=1) for name in ("openai", "openai:m", "groq")}
    limiter.configure(limits, {"127.0.0.1:80": "groq"})
    host = "api.openai.com"
    assert limiter.route("openai-chat", "m", host) == ("openai", "openai:m", f"openai:m at {host}")
    assert limiter.route("openai", "other", None)[:-1] == ("openai",)
    assert limiter.route("openai", "m", "127.0.0.1:80")[:-1] == ("groq",)
    assert limiter.route("mistral", "m", None) == ()
    limiter.configure({"groq": limits["groq"]}, {})
    assert limiter.route("openai", "m", "api.openai.com") == ()


async def test_a_pace_is_kept_to(limiter: RateLimiter) -> None:
    limit(limiter, requests_per_minute=6000)
    began = time.monotonic()
    await asyncio.gather(*(take(limiter) for _ in range(190)))
    # 143 go at once, the share of 1.5 seconds.
    assert time.monotonic() - began >= (190 - 144) / 95


async def test_runs_come_in_turn_however_many_requests_each_has(limiter: RateLimiter) -> None:
    limit(limiter, concurrency=1)
    first = await take(limiter)
    order: list[str] = []

    async def ask(run: str) -> None:
        turn = await take(limiter, run)
        order.append(run)
        limiter.settle(turn, ONE)

    many = [asyncio.create_task(ask("many")) for _ in range(20)]
    await asyncio.sleep(0.05)
    few = [asyncio.create_task(ask("few")) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert order == []
    limiter.settle(first, ONE)
    await asyncio.gather(*many, *few)
    assert order[:7].count("few") == 3
    assert len(order) == 23


async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(limiter: RateLimiter) -> None:
    limit(limiter, concurrency=2)
    held = [await take(limiter), await take(limiter)]
    waiting = [asyncio.create_task(take(limiter)) for _ in range(5)]
    await asyncio.sleep(0.02)
    for number, task in enumerate(waiting):
        task.cancel()
        if number < 2:  # as it is given
            limiter.settle(held[number], ONE)
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(5):
        again = [await take(limiter), await take(limiter)]
    for turn in again:
        limiter.settle(turn, ONE)
    await asyncio.to_thread(limiter.dispatcher.close_at_exit)
    assert limiter.dispatcher._own["acme"].slots == 0


async def test_what_was_not_sent_is_given_back(limiter: RateLimiter) -> None:
    limit(limiter, requests_per_minute=40)
    for _ in range(20):
        limiter.settle(await take(limiter), NOTHING)
        await asyncio.sleep(0.01)  # what is given back waits for company


async def test_a_request_within_a_request_does_not_wait_for_itself(limiter: RateLimiter) -> None:
    limit(limiter, concurrency=1)
    async with asyncio.timeout(5):
        outer = await limiter.take(ROUTE, "run", lambda: ONE, Waiting(0))
        others = asyncio.create_task(take(limiter))
        await asyncio.sleep(0.02)
        inner = await limiter.take(ROUTE, "run", lambda: ONE, Waiting(0))
        limiter.settle(inner, ONE)
        limiter.settle(outer, ONE)
        await others


async def test_a_database_that_fails_is_said_once_and_limits_hold_in_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(OwnPools):
        def transact(self, work: Any) -> Any:
            raise OSError("gone")

    limiter = RateLimiter(Failing(), lease=30)
    limit(limiter, concurrency=1)
    for _ in range(3):
        limiter.settle(await take(limiter), ONE)
    await asyncio.to_thread(limiter.dispatcher.close_at_exit)
    assert [record.message.count("OSError('gone')") for record in caplog.records] == [1]


async def test_a_deadline_stands_still_while_requests_wait() -> None:
    async with Deadline(0.05) as deadline:
        with standing_still():
            await asyncio.sleep(0.1)
        with standing_still(), standing_still():
            await asyncio.to_thread(time.sleep, 0.05)
    assert not deadline.expired()

    async def go_on_too_long() -> None:
        async with Deadline(0.02):
            with standing_still():
                await asyncio.sleep(0.03)
            await asyncio.sleep(5)

    with pytest.raises(TimeoutError):
        await go_on_too_long()


def answering(seconds: float = 0.0) -> FunctionModel:
    """A model of a provider `function`."""

    async def answer(messages: object, info: object) -> ModelResponse:
        await asyncio.sleep(seconds)
        usage = RequestUsage(input_tokens=10, output_tokens=2)
        return ModelResponse(parts=[TextPart("ok")], usage=usage, model_name="gpt-5-mini")

    return FunctionModel(answer, model_name="gpt-5-mini")


async def waits(context: StepContext[None], requests: int) -> Waiting:
    """What is known of a step's requests, once so many of them wait and one is under way."""
    state = context._state
    async with asyncio.timeout(5):
        while True:
            waiting = state.waiting
            if state.entries and waiting is not None and waiting.requests == requests:
                return waiting
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("state", "fields", "used"),
    [
        (EntryState.CHARGED, {"provider": "openai"}, Amounts.of(100, 20)),
        (EntryState.CHARGED, {"provider": "anthropic"}, Amounts.of(40, 20)),
        (EntryState.UNSETTLED, {"tokens": TokenCounts()}, Amounts.of(500, 500)),
        (EntryState.REFUSED, {"error": "HTTP 429"}, Amounts.of(0, 0)),
        (EntryState.REFUSED, {"error": f"{NOT_SENT}cancelled"}, NOTHING),
    ],
)
def test_what_a_request_counts_for_is_what_its_entry_says(
    state: EntryState, fields: dict[str, Any], used: Amounts
) -> None:
    tokens = TokenCounts(input_tokens=100, output_tokens=20, cache_read_tokens=60)
    entry = LedgerEntry().settled(state, **({"tokens": tokens} | fields))
    assert used_by(entry, Amounts.of(500, 500)) == used


def test_what_is_expected_is_learnt_from_what_the_same_agent_asked_before() -> None:
    asker = "agent of this test", "openai:m"
    request = RequestOfModel(
        [ModelRequest.user_text_prompt("x" * 1000)], None, ModelRequestParameters()
    )
    before = LikelyTokens.of(asker, request)
    assert before.amounts().output_tokens == likely_tokens.FIRST_OUTPUT
    before.learn(TokenCounts(input_tokens=250, output_tokens=40))
    assert before.amounts() == pytest.approx((1, 290, 250, 40))
    larger = replace(request, messages=[ModelRequest.user_text_prompt("x" * 5000)])
    assert 1000 < LikelyTokens.of(asker, larger).amounts().input_tokens < 1300
    limited = replace(request, settings=ModelSettings(max_tokens=10))
    assert LikelyTokens.of(asker, limited).amounts().output_tokens == 10


async def test_a_step_that_waits_is_counted_said_once_and_not_timed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", "function concurrency=1")
    # Shorter than the first answer takes.
    monkeypatch.setattr(request_turns, "WORTH_SAYING", 0.4)
    caplog.set_level(logging.INFO, "fastroai.usage")
    agent = FastroAgent(model=answering(0.65))
    seen: list[str] = []

    @step(timeout=2.4)
    async def ask(context: StepContext[None]) -> list[str]:
        asked = [asyncio.create_task(context.run(agent, str(n))) for n in range(4)]
        seen.append((await waits(context, 3)).limit)
        return [(await one).output for one in asked]

    result = await Pipeline("p", {"ask": ask}, executor="memory").execute({})
    assert result.output == ["ok"] * 4
    assert [entry.state for entry in result.entries] == [EntryState.CHARGED] * 4
    assert seen == ["function (1 requests at once)"]
    said = [record.getMessage() for record in caplog.records]
    # On a busy machine, the first may still wait for its turn when it is said.
    assert re.fullmatch(
        r"Step 'ask' of 'p' waits for a rate limit: [34] request\(s\) for function "
        r"\(1 requests at once\)\.",
        said[0],
    )
    assert len(said) == 2
    assert re.search(r"goes on after \d", said[1])


async def test_the_progress_of_a_mapped_step_says_how_many_items_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", "function concurrency=2")
    agent = FastroAgent(model=answering(0.5))

    @step(timeout=2.2)
    async def ask(context: StepContext[None]) -> str:
        return (await context.run(agent, str(context.item))).output

    said = "0 of 10 items done (2 running, 8 waiting for a rate limit)"
    each = Pipeline("p", {"ask": ask.map(over="xs")}, executor="memory")
    with watched_maps() as progress:
        running = asyncio.create_task(each.execute({"xs": list(range(10))}))
        async with asyncio.timeout(5):
            while not progress or progress[0].in_words() != said:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        result = await running
    # More than a busy machine takes for an item, and less than all take one after another.
    assert len(result.output) == 10
    assert progress[0].in_words() == "10 of 10 items done"


async def test_a_request_that_waits_is_in_no_books_and_sent_when_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_RATE_LIMITS", "function concurrency=1")
    agent = FastroAgent(model=answering(0.05))
    booked: list[int] = []

    @step
    async def ask(context: StepContext[None]) -> None:
        asked = [asyncio.create_task(context.run(agent, str(n))) for n in range(3)]
        await waits(context, 2)
        booked.append(len(context._state.entries))
        asked.pop().cancel()
        await asyncio.gather(*asked)

    result = await Pipeline("p", {"ask": ask}, executor="memory").execute({})
    assert booked == [1]
    first, second = result.entries
    assert (second.sent_at - first.sent_at).total_seconds() >= 0.05
