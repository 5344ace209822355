"""Whatever sends within a run, the provider's invoice and the ledger agree on where its budget
stopped it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.toolsets import FunctionToolset

from fastroai import CostBudgetExceededError, PipelineResult, StepContext, step
from fastroai.budgets import Budget
from tests.acceptance.books import HUNG, NOT_PAID, PAID, Books
from tests.support.provider import Answer, Hang, Refuse
from tests.support.provider_process import ProviderProcess

COST = Decimal(180) / 1_000_000
"""USD of the provider's plain answer at fixed prices: 120 tokens in, 30 out."""
BUDGET = 2 * COST + Decimal("0.000001")
"""Two requests and a bit: the third is sent, the fourth is not."""


# What sends is below the executors: that a run goes on under its key is what they are about.
BOTH = ("memory", "prefect")
EACH = ("memory", pytest.param("prefect", marks=pytest.mark.long))


@pytest.fixture(params=EACH)
def books(
    request: pytest.FixtureRequest,
    provider: ProviderProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Books:
    if request.param == "prefect":
        request.getfixturevalue("prefect_api")
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    return Books(provider, "openai", request.param, url)


def refusals(result: PipelineResult[Any]) -> list[CostBudgetExceededError]:
    errors = [error.original_error for error in result.errors.values()]
    return [error for error in errors if isinstance(error, CostBudgetExceededError)]


async def run(books: Books, ask: Any, budget: Budget, **config: Any) -> None:
    """A step that is refused, under a budget of its run."""
    result = await books.run({"ask": ask}, budget=budget, on_error="continue", **config)
    assert len(refusals(result)) == 1


@pytest.mark.parametrize("books", BOTH, indirect=True)
async def test_a_tool_loop(books: Books) -> None:
    def more() -> str:
        return "more"

    books.provider.script("loop", Answer(tool="more"))
    agent = books.agent(toolsets=[FunctionToolset([more])])
    await run(books, agent.as_step("ask: loop"), Budget(usd=BUDGET))
    assert await books.agree() == [PAID] * 3


async def test_an_agent_within_a_tool(books: Books) -> None:
    inner = books.agent()

    async def consult() -> str:
        for number in range(9):
            await inner.run(f"ask: inner {number}")
        return "done"

    books.provider.script("inner", Answer())
    books.provider.script("outer", Answer(tool="consult"))
    outer = books.agent(toolsets=[FunctionToolset([consult])])
    await run(books, outer.as_step("ask: outer"), Budget(usd=BUDGET))
    assert await books.agree() == [PAID] * 3


async def test_streams_and_an_output_that_is_asked_for_again(books: Books) -> None:
    class City(BaseModel):
        name: str

    books.provider.script("tell", Answer("one two"))
    books.provider.script("city", Answer(tool="final_result", args={"nom": "Oslo"}))
    teller, finder = books.agent(), books.agent(output_type=City)

    @step
    async def ask(ctx: StepContext[Any]) -> None:
        async with aclosing(teller.run_stream("ask: tell")) as chunks:
            [_ async for _ in chunks]
        for number in range(9):
            try:
                await ctx.run(finder, f"ask: city {number}")
            except CostBudgetExceededError:
                raise
            except Exception:
                continue

    await run(books, ask, Budget(usd=BUDGET))
    assert await books.agree() == [PAID] * 3


async def test_a_fallback_after_a_refusal_of_the_provider(books: Books) -> None:
    books.provider.script("ask", Refuse(400), Answer())
    members = [OpenAIResponsesModel(name) for name in ("gpt-5-mini", "gpt-4.1-mini")]
    agent = books.ready(Agent(FallbackModel(*members)))

    @step
    async def ask(ctx: StepContext[Any]) -> None:
        for number in range(9):
            await ctx.run(agent, f"ask: {number}")

    await run(books, ask, Budget(usd=BUDGET))
    assert await books.agree() == [NOT_PAID, PAID, PAID, PAID]


async def test_requests_that_are_not_answered_in_time(books: Books) -> None:
    """Each may have cost its bound, which is as much as there is: nothing is sent after the
    first.
    """
    books.provider.script("wait", Hang())
    agent = books.agent(timeout=1, max_tokens=100)
    ask = agent.as_step("ask: wait")
    await run(books, ask, Budget(usd=Decimal("0.001")), retries=9)
    assert await books.agree() == [HUNG]


async def test_many_at_once_under_a_reserved_budget(books: Books) -> None:
    books.provider.script("ask", Answer())
    agent = books.agent(max_tokens=100)

    @step
    async def ask(ctx: StepContext[Any]) -> None:
        calls = (ctx.run(agent, f"ask: {number}") for number in range(40))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        raise next(one for one in answers if isinstance(one, BaseException))

    budget = Budget(usd=Decimal("0.004"), strength="reserved")
    await run(books, ask, budget)
    paid = len(await books.agree())
    assert Decimal("0.002") < paid * COST <= budget.usd


async def test_settled_overshoots_by_what_is_in_flight_only(books: Books) -> None:
    books.provider.script("ask", Answer())
    agent = books.agent()

    @step
    async def ask(ctx: StepContext[Any]) -> None:
        await asyncio.gather(*(ctx.run(agent, f"ask: {number}") for number in range(20)))
        await ctx.run(agent, "ask: once more")

    await run(books, ask, Budget(usd=BUDGET))
    assert await books.agree() == [PAID] * 20


@pytest.mark.parametrize("books", BOTH, indirect=True)
async def test_a_run_that_goes_on_under_its_key_pays_for_what_was_missing_only(
    books: Books,
) -> None:
    books.provider.script("ask", Answer())
    agent = books.agent()

    @step
    async def ask(ctx: StepContext[Any]) -> None:
        for number in range(9):
            await ctx.run(agent, f"ask: {number}")

    await run(books, ask, Budget(usd=BUDGET))
    assert len(await books.agree()) == 3
    await run(books, ask, Budget(usd=BUDGET + 2 * COST))
    # In memory nothing outlives an execution but its books: the spend before counts all the same.
    assert len(await books.agree()) == 5
