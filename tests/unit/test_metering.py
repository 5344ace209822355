"""Metering: each request sent is one entry, whatever becomes of it."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelTimeoutError,
    UserError,
)
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator, FastroAgent
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.meter import RequestMeter
from fastroai.metering.retries import retry_delay
from fastroai.metering.scope import DispatchScope, current_scope
from fastroai.testing import OfflineModel, ScriptedModel, ToolCall, fixed_prices

HTTP = {"model_name": "gpt-5-mini", "headers": {"retry-after-ms": "1"}}


def refusal(status: int) -> ModelHTTPError:
    return ModelHTTPError(status, **HTTP)


async def books_of(
    model: Model, *, raises: type[BaseException] | None = None, **options: Any
) -> list[LedgerEntry]:
    """The entries of one run of an agent on a model."""
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        run = FastroAgent(model=model, **options).run("Hi")
        if raises is None:
            await run
        else:
            with pytest.raises(raises):
                await run
    return list(ledger.entries)


def states(entries: list[LedgerEntry]) -> list[str]:
    return [entry.state.value for entry in entries]


class TestScope:
    def test_there_is_none_by_itself(self) -> None:
        assert current_scope() is None

    def test_the_innermost_counts(self) -> None:
        with DispatchScope(RequestRecorder(), Attribution(step_id="outer")) as outer:
            with DispatchScope(RequestRecorder(), Attribution(step_id="inner")):
                assert current_scope() is not outer
            assert current_scope() is outer

    async def test_entries_carry_its_attribution(self) -> None:
        ledger = RequestRecorder()
        attribution = Attribution(run_id="r1", step_id="write", attempt=2, dispatch=1)
        with DispatchScope(ledger, attribution):
            await FastroAgent(model=ScriptedModel("Hi")).run("Hi")
        assert ledger.of_step("write")[0].attribution == attribution
        assert ledger.spent_usd("write") > 0

    async def test_an_agent_called_from_a_tool_is_booked_to_the_same_dispatch(self) -> None:
        inner = FastroAgent(model=ScriptedModel("inner"), name="inner")

        async def ask() -> str:
            return (await inner.run("Hi")).output

        outer = FastroAgent(
            model=ScriptedModel(ToolCall("ask"), "outer"),
            toolsets=[FunctionToolset([ask])],
            name="outer",
        )
        ledger = RequestRecorder()
        with DispatchScope(ledger, Attribution(step_id="s", dispatch=1)):
            response = await outer.run("Hi")
        assert [entry.agent for entry in ledger.of_step("s")] == ["outer", "inner", "outer"]
        assert len(response.entries) == 2

    async def test_fifty_runs_at_once_keep_their_books_apart(self) -> None:
        agent = FastroAgent(model=ScriptedModel("Hi", repeat=True, delay=0.001))

        async def one(number: int) -> RequestRecorder:
            ledger = RequestRecorder()
            with DispatchScope(ledger, Attribution(step_id=str(number))):
                await agent.run("Hi")
            return ledger

        ledgers = await asyncio.gather(*(one(number) for number in range(50)))
        assert all(len(ledger.of_step(str(number))) == 1 for number, ledger in enumerate(ledgers))


class TestOutcomes:
    async def test_an_answer_is_charged(self) -> None:
        (entry,) = await books_of(ScriptedModel("Hi"))
        assert entry.state is EntryState.CHARGED
        assert entry.model_asked == "scripted:gpt-5-mini"
        assert (entry.model_answered, entry.response_id) == ("gpt-5-mini", "scripted-1")
        assert entry.cost_usd is not None
        assert entry.settled_at is not None
        assert entry.settled_at >= entry.sent_at
        assert "genai-prices" in (entry.price_source or "")

    async def test_the_intent_is_recorded_before_the_send(self) -> None:
        ledger = RequestRecorder()
        seen: list[str] = []

        def look(*_: object) -> str:
            seen.extend(entry.state.value for entry in ledger.entries)
            return "Hi"

        with DispatchScope(ledger):
            await FastroAgent(model=ScriptedModel(look)).run("Hi")
        assert seen == ["unsettled"]

    async def test_an_unknown_price_is_not_zero_and_is_said_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = ScriptedModel("Hi", repeat=True, model_name="nobody-sells-this")
        with caplog.at_level(logging.WARNING, logger="fastroai.agent"):
            entries = await books_of(model) + await books_of(model)
        assert states(entries) == ["unpriced", "unpriced"]
        assert [entry.cost_usd for entry in entries] == [None, None]
        assert entries[0].tokens.input_tokens > 0
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    async def test_an_answer_without_usage_is_not_free(self) -> None:
        reply = ModelResponse(parts=[TextPart("Hi")], usage=RequestUsage(unmeasured_requests=1))
        (entry,) = await books_of(ScriptedModel(reply))
        assert (entry.state, entry.cost_usd) == (EntryState.UNPRICED, None)

    async def test_usage_that_contradicts_itself_does_not_lose_the_answer(self) -> None:
        usage = RequestUsage(input_tokens=1, cache_read_tokens=5, output_tokens=1)
        (entry,) = await books_of(ScriptedModel("Hi", usage=usage))
        assert (entry.state, entry.cost_usd) == (EntryState.UNPRICED, None)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    async def test_a_refusal_is_not_sent_again(self, status: int) -> None:
        entries = await books_of(ScriptedModel(refusal(status)), raises=ModelHTTPError)
        assert states(entries) == ["refused"]
        assert str(status) in (entries[0].error or "")

    @pytest.mark.parametrize("status", [409, 429, 500, 502, 503])
    async def test_a_passing_failure_is_sent_again_and_each_send_is_an_entry(
        self, status: int
    ) -> None:
        entries = await books_of(ScriptedModel(refusal(status), refusal(status), "Hi"))
        assert states(entries) == ["refused", "refused", "charged"]
        assert len({entry.id for entry in entries}) == 3

    @pytest.mark.parametrize("status", [408, 504])
    async def test_who_gave_up_waiting_leaves_the_outcome_open(self, status: int) -> None:
        entries = await books_of(ScriptedModel(refusal(status), "Hi"))
        assert states(entries) == ["unsettled", "charged"]

    @pytest.mark.parametrize("retries", [0, 2])
    async def test_max_retries_is_the_number_of_further_sends(self, retries: int) -> None:
        model = ScriptedModel(refusal(500), repeat=True)
        entries = await books_of(model, raises=ModelHTTPError, max_retries=retries)
        assert len(entries) == model.calls == retries + 1

    async def test_a_connection_that_was_never_made_is_not_spend(self) -> None:
        error = ModelConnectionError("gpt-5-mini", "refused", phase="connect", retry_after=0)
        assert states(await books_of(ScriptedModel(error, "Hi"))) == ["refused", "charged"]

    async def test_a_connection_lost_while_reading_leaves_the_outcome_open(self) -> None:
        error = ModelConnectionError("gpt-5-mini", "reset", phase="read", retry_after=0)
        assert states(await books_of(ScriptedModel(error, "Hi"))) == ["unsettled", "charged"]

    async def test_a_request_that_timed_out_is_not_paid_twice(self) -> None:
        error = ModelTimeoutError("gpt-5-mini", "too slow", phase="read")
        assert states(await books_of(ScriptedModel(error), raises=ModelTimeoutError)) == [
            "unsettled"
        ]

    async def test_a_user_error_was_not_sent(self) -> None:
        assert states(
            await books_of(ScriptedModel(UserError("no such setting")), raises=UserError)
        ) == ["refused"]

    async def test_any_other_error_leaves_the_outcome_open(self) -> None:
        (entry,) = await books_of(ScriptedModel(RuntimeError("broken")), raises=RuntimeError)
        assert (entry.state, entry.error) == (EntryState.UNSETTLED, "RuntimeError: broken")

    async def test_a_cancelled_request_leaves_the_outcome_open(self) -> None:
        ledger, asked = RequestRecorder(), asyncio.Event()

        async def never(messages: Any, info: Any) -> str:
            asked.set()
            await asyncio.Event().wait()
            return "too late"

        with DispatchScope(ledger):
            running = asyncio.create_task(FastroAgent(model=ScriptedModel(never)).run("Hi"))
        await asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert states(list(ledger.entries)) == ["unsettled"]

    async def test_what_an_offline_model_answers_is_marked(self) -> None:
        (entry,) = await books_of(OfflineModel())
        assert entry.simulated
        assert entry.cost_usd is not None

    async def test_the_mark_shows_through_wrappers(self) -> None:
        (entry,) = await books_of(WrapperModel(OfflineModel()))
        assert entry.simulated


class TestFallback:
    @pytest.mark.parametrize("ready", [False, True])
    async def test_the_attempt_of_each_member_is_an_entry(self, ready: bool) -> None:
        model = FallbackModel(ScriptedModel(refusal(400), model_name="gpt-4o"), ScriptedModel("Hi"))
        agent: FastroAgent[str] = (
            FastroAgent(agent=Agent(model)) if ready else FastroAgent(model=model)
        )
        response = await agent.run("Hi")
        assert [(e.model_asked, e.state.value) for e in response.entries] == [
            ("scripted:gpt-4o", "refused"),
            ("scripted:gpt-5-mini", "charged"),
        ]
        assert response.model == "gpt-5-mini"

    async def test_members_behind_wrappers_are_found(self) -> None:
        model = WrapperModel(
            FallbackModel(ScriptedModel(refusal(404)), WrapperModel(ScriptedModel("Hi")))
        )
        assert states(await books_of(model)) == ["refused", "charged"]

    async def test_a_stream_falls_back_too(self) -> None:
        model = FallbackModel(ScriptedModel(refusal(404)), ScriptedModel("one two"))
        ledger = RequestRecorder()
        with DispatchScope(ledger):
            chunks = [chunk async for chunk in FastroAgent(model=model).run_stream("Hi")]
        assert "".join(chunk.content for chunk in chunks) == "one two"
        assert states(list(ledger.entries)) == ["refused", "charged"]

    async def test_when_all_fail_all_are_booked(self) -> None:
        model = FallbackModel(ScriptedModel(refusal(404)), ScriptedModel(refusal(401)))
        assert states(await books_of(model, raises=FallbackExceptionGroup)) == [
            "refused",
            "refused",
        ]

    async def test_the_users_own_model_stays_as_it_was(self) -> None:
        first, second = ScriptedModel(refusal(404)), ScriptedModel("Hi")
        model = FallbackModel(first, second)
        await books_of(model)
        assert model.models == [first, second]


class TestPricing:
    async def test_the_calculator_of_the_agent_prices(self) -> None:
        model = ScriptedModel("Hi", usage=RequestUsage(input_tokens=3, output_tokens=2))
        (entry,) = await books_of(
            model, cost_calculator=fixed_prices(input_per_mtok=1, output_per_mtok=2)
        )
        assert entry.cost_usd == Decimal("0.000007")
        assert "override" in (entry.price_source or "")

    async def test_a_calculator_that_only_estimates_will_do(self) -> None:
        class Flat:
            def calculate_cost(
                self, model: str, input_tokens: int, output_tokens: int, **_: int
            ) -> int:
                return 42

        (entry,) = await books_of(ScriptedModel("Hi"), cost_calculator=Flat())
        assert entry.cost_usd == Decimal("0.000042")

    async def test_the_price_of_a_request_is_told_when_it_was_sent_and_by_whom(self) -> None:
        asked: dict[str, Any] = {}

        class Curious(CostCalculator):
            def price(self, usage: Any, model: str, **about: Any) -> Any:
                asked.update(about, model=model)
                return super().price(usage, model, **about)

        (entry,) = await books_of(ScriptedModel("Hi"), cost_calculator=Curious())
        assert asked == {
            "model": "gpt-5-mini",
            "provider": "scripted",
            "provider_url": None,
            "at": entry.sent_at,
            "context": None,
        }

    async def test_pydantic_ais_cost_limit_holds_at_the_same_prices(self) -> None:
        model = ScriptedModel("Hi", usage=RequestUsage(input_tokens=5, output_tokens=0))
        agent = FastroAgent(model=model, cost_calculator=fixed_prices(input_per_mtok=1))
        response = await agent.run("Hi")
        assert response.messages[-1].usage.cost == response.cost_usd == Decimal("0.000005")


class TestRetryDelay:
    def test_it_doubles_up_to_a_limit(self) -> None:
        error = ModelHTTPError(500, "m")
        assert [retry_delay(error, sends) for sends in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]

    def test_the_provider_may_say_how_long(self) -> None:
        assert retry_delay(ModelHTTPError(429, "m", headers={"Retry-After": "7"}), 1) == 7.0

    def test_too_long_is_not_waited_for(self) -> None:
        assert retry_delay(ModelHTTPError(429, "m", headers={"Retry-After": "3600"}), 1) is None

    @pytest.mark.parametrize(
        ("hint", "status", "again"), [("true", 400, True), ("false", 500, False)]
    )
    def test_the_provider_may_say_whether(self, hint: str, status: int, again: bool) -> None:
        error = ModelHTTPError(status, "m", headers={"x-should-retry": hint})
        assert (retry_delay(error, 1) is not None) is again

    def test_a_spent_quota_does_not_pass(self) -> None:
        error = ModelHTTPError.for_category(
            ModelQuotaExceededError, status_code=429, model_name="m"
        )
        assert retry_delay(error, 1) is None

    def test_a_connection_that_timed_out_before_the_send_is_tried_again(self) -> None:
        assert retry_delay(ModelTimeoutError("m", "slow", phase="connect"), 1) == 0.5

    def test_other_errors_are_not(self) -> None:
        assert retry_delay(RuntimeError("broken"), 1) is None
        assert retry_delay(asyncio.CancelledError(), 1) is None


async def test_a_meter_can_be_attached_to_any_pydantic_ai_agent() -> None:
    meter = RequestMeter(CostCalculator(), agent="by hand")
    await Agent(ScriptedModel("Hi")).run("Hi", capabilities=[meter])
    (entry,) = meter.entries
    assert (entry.agent, entry.state) == ("by hand", EntryState.CHARGED)
    assert entry.sent_at <= datetime.now(UTC)
