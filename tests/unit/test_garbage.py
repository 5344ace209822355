"""Garbage is looked for less often while many agents are at work, and as before afterwards."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from fastroai import FastroAgent
from fastroai.agent.garbage import ALLOCATIONS, MANY
from fastroai.testing import fixed_prices

PYTHONS_OWN = (700, 10, 10)


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*PYTHONS_OWN)
    yield
    gc.set_threshold(*before)


async def seen_while(number: int, *, fail: bool = False) -> set[tuple[int, ...]]:
    """The collector's thresholds that a model sees once so many agents ask it at once."""
    seen, all_ask, asking = set(), asyncio.Event(), 0

    async def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal asking
        asking += 1
        if asking == number:
            all_ask.set()
        await all_ask.wait()
        seen.add(gc.get_threshold())
        if fail:
            raise RuntimeError("no answer")
        return ModelResponse(parts=[TextPart("done")])

    agent: FastroAgent[str] = FastroAgent(
        model=FunctionModel(reply), cost_calculator=fixed_prices(), max_retries=0
    )
    await asyncio.gather(*(agent.run("Grind.") for _ in range(number)), return_exceptions=fail)
    return seen


async def test_it_is_looked_for_less_often_until_the_last_of_many_is_done() -> None:
    assert await seen_while(MANY) == {(ALLOCATIONS, *PYTHONS_OWN[1:])}
    assert gc.get_threshold() == PYTHONS_OWN


async def test_so_it_is_where_they_all_fail() -> None:
    await seen_while(MANY, fail=True)
    assert gc.get_threshold() == PYTHONS_OWN


async def test_few_agents_change_nothing() -> None:
    assert await seen_while(2) == {PYTHONS_OWN}


async def test_thresholds_that_a_program_has_set_are_left_alone() -> None:
    gc.set_threshold(900, 5, 5)
    assert await seen_while(MANY) == {(900, 5, 5)}
    assert gc.get_threshold() == (900, 5, 5)
