"""Requests that a step sends to a model itself, without an agent: each is an entry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRequest
from pydantic_ai.direct import model_request, model_request_batch, model_request_stream
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.batch import BatchRequest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.usage import RequestUsage

from fastroai.ledger.entries import Attribution
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.replay.journal import Journal
from fastroai.testing import ScriptedModel

HI = [ModelRequest.user_text_prompt("Hi")]


async def by_function(model: Model) -> None:
    await model_request(model, HI)


async def by_function_with_spans(model: Model) -> None:
    await model_request(model, HI, instrument=True)


async def as_stream(model: Model) -> None:
    async with model_request_stream(model, HI) as stream:
        async for _ in stream:
            pass


async def by_hand(model: Model) -> None:
    await model.request(HI, None, ModelRequestParameters())


async def by_hand_as_stream(model: Model) -> None:
    async with model.request_stream(HI, None, ModelRequestParameters()) as stream:
        async for _ in stream:
            pass


async def through_a_wrapper(model: Model) -> None:
    await InstrumentedModel(model).request(HI, None, ModelRequestParameters())


async def through_a_fallback(model: Model) -> None:
    await model_request(FallbackModel(model, model), HI)


WAYS = [
    by_function,
    by_function_with_spans,
    as_stream,
    by_hand,
    by_hand_as_stream,
    through_a_wrapper,
    through_a_fallback,
]

Way = Callable[[Model], Awaitable[None]]


def scripted() -> ScriptedModel:
    return ScriptedModel("Hello", repeat=True)


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_an_entry_of_the_step(way: Way) -> None:
    ledger = RequestRecorder()
    with DispatchScope(ledger, Attribution(step_id="s")):
        await way(scripted())
    [entry] = ledger.of_step("s")
    assert entry.state.value == "charged"
    assert entry.cost_usd


@pytest.mark.parametrize("way", WAYS)
async def test_a_further_attempt_replays_it(way: Way) -> None:
    ledger, journal, model = RequestRecorder(), Journal("s"), scripted()
    for _ in range(2):
        journal.begin_attempt()
        with DispatchScope(ledger, Attribution(step_id="s"), journal):
            await way(model)
    assert [entry.state.value for entry in ledger.entries] == ["charged", "replayed"]


async def test_outside_of_a_run_nothing_is_booked() -> None:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        pass
    await by_function(scripted())
    assert ledger.entries == ()


async def test_a_simulated_batch_is_booked_as_a_batch_and_not_twice() -> None:
    async def respond(messages: Any, info: Any) -> ModelResponse:
        return ModelResponse([TextPart("x")], usage=RequestUsage(input_tokens=9, output_tokens=1))

    ledger, model = RequestRecorder(), FunctionModel(respond, model_name="gpt-5-mini")
    asked, soon = [BatchRequest(custom_id="a", messages=HI)], timedelta(milliseconds=1)
    with DispatchScope(ledger, Attribution(step_id="s")):
        await model_request_batch(model, asked, poll_interval=soon, max_poll_interval=soon)
    [entry] = ledger.entries
    assert entry.state.value == "charged"


async def test_a_model_that_asks_another_one_is_booked_with_it() -> None:
    inner = scripted()

    async def respond(messages: Any, info: Any) -> ModelResponse:
        return await model_request(inner, HI)

    ledger = RequestRecorder()
    with DispatchScope(ledger, Attribution(step_id="s")):
        await Agent(FunctionModel(respond, model_name="outer")).run("Hi")
    assert sorted(str(entry.model_asked) for entry in ledger.entries) == sorted(
        ["function:outer", inner.model_id]
    )
