"""Requests of batches, by OpenAI's own client at the loopback provider: each is one entry, at half
the price.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_ai import Agent, ModelRequest
from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.direct import model_request_batch
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.batch import Batch, BatchRequest
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import FastroAgent
from fastroai.ledger.entries import Attribution, LedgerEntry
from fastroai.ledger.ledger import Ledger
from fastroai.ledger.recorder import RequestRecorder
from fastroai.ledger.store import shared_store
from fastroai.metering.booked_batches import AWAITED, Awaited, BookedRequest
from fastroai.metering.scope import DispatchScope
from fastroai.replay.journal import Journal
from tests.support.agreement import assert_agree
from tests.support.invoice import list_price
from tests.support.provider import KEY, Answer, Expire, Hang, LoopbackProvider, Refuse

adapter = TypeAdapter(Batch)
SOON = timedelta(milliseconds=10)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as running:
        hosts = {f"127.0.0.1:{running.port}": "openai"}
        monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps(hosts))
        yield running


def model_of(provider: LoopbackProvider) -> OpenAIResponsesModel:
    url = f"http://127.0.0.1:{provider.port}/v1"
    at = OpenAIProvider(base_url=url, api_key=KEY)
    return OpenAIResponsesModel("gpt-5-mini", provider=at)


def batching(requests: int = 3, **options: Any) -> BatchModelRequests:
    return BatchModelRequests(
        max_requests=requests,
        max_wait=SOON * 3,
        poll_interval=SOON,
        max_poll_interval=SOON,
        **options,
    )


def raw_agent(provider: LoopbackProvider, **options: Any) -> Agent[None, str]:
    return Agent(model_of(provider), capabilities=[batching(**options)])


def scope(ledger: RequestRecorder, journal: Journal | None = None) -> Any:
    return DispatchScope(ledger, Attribution(step_id="s"), journal)


async def ask(agent: Any, *which: int) -> list[Any]:
    answers = await asyncio.gather(
        *(agent.run(f"s: q{number}") for number in which or range(3)), return_exceptions=True
    )
    return [getattr(answer, "output", answer) for answer in answers]


def agree(provider: LoopbackProvider, ledger: RequestRecorder) -> list[str]:
    """Compares the invoice with the entries; what is said of each line's entry."""
    pairs = assert_agree(provider.invoice.lines, ledger.entries, list_price)
    return [f"{line.outcome} {entry.state.value}" for line, entry in pairs]


async def when(condition: Any) -> None:
    """Wait until something is so, and a little longer."""
    while not condition():  # noqa: ASYNC110  # what another thread does sets no event here
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


ANSWERED = "answered charged"


@pytest.mark.parametrize("kind", ["raw", "own"])
async def test_each_request_is_an_entry_at_half_the_price(
    provider: LoopbackProvider, kind: str
) -> None:
    agent: Any = raw_agent(provider)
    if kind == "own":
        agent = FastroAgent(agent=agent)
    ledger = RequestRecorder()
    with scope(ledger):
        await ask(agent)
    assert agree(provider, ledger) == [ANSWERED] * 3
    assert {entry.service_tier for entry in ledger.entries} == {"batch"}
    assert provider.batches.submitted == 1


async def test_an_answer_to_an_agent_names_the_entry_that_paid_for_it(
    provider: LoopbackProvider,
) -> None:
    agent: FastroAgent[str] = FastroAgent(agent=raw_agent(provider, requests=1))
    with scope(RequestRecorder()):
        response = await agent.run("s: q")
    assert [entry.cost_usd for entry in response.entries] == [
        list_price(line) for line in provider.invoice.lines
    ]


async def test_requests_of_several_runs_in_one_batch_are_booked_to_their_own(
    provider: LoopbackProvider,
) -> None:
    agent, ledgers = raw_agent(provider), [RequestRecorder() for _ in range(3)]

    async def run(number: int) -> None:
        with DispatchScope(ledgers[number], Attribution(step_id=f"run{number}")):
            await agent.run(f"run{number}: q")

    await asyncio.gather(*map(run, range(3)))
    assert provider.batches.submitted == 1
    for number, ledger in enumerate(ledgers):
        [entry] = ledger.entries
        assert (entry.attribution.step_id, entry.state.value) == (f"run{number}", "charged")


async def test_what_fails_within_a_batch_is_not_billed(provider: LoopbackProvider) -> None:
    provider.script("q1", Refuse(400))
    ledger = RequestRecorder()
    with scope(ledger):
        answers = await ask(raw_agent(provider))
    assert isinstance(answers[1], ModelAPIError)
    assert sorted(agree(provider, ledger)) == [ANSWERED, ANSWERED, "refused refused"]


async def test_what_expires_is_not_billed_and_submitted_again(provider: LoopbackProvider) -> None:
    provider.script("q1", Expire(), Answer("late"))
    ledger = RequestRecorder()
    with scope(ledger):
        answers = await ask(raw_agent(provider))
    assert answers[1] == "late"
    assert sorted(agree(provider, ledger)) == [*[ANSWERED] * 3, "expired refused"]
    [expired] = [entry for entry in ledger.entries if entry.state.value == "refused"]
    assert "expired" in str(expired.error)


async def test_a_batch_that_is_refused_costs_nothing(provider: LoopbackProvider) -> None:
    provider.script("q1", Refuse(400, code="batch_refused"))
    ledger = RequestRecorder()
    with scope(ledger):
        answers = await ask(raw_agent(provider))
    assert all(isinstance(answer, Exception) for answer in answers)
    assert [entry.state.value for entry in ledger.entries] == ["refused"] * 3
    assert provider.invoice.lines == []


async def test_a_batch_whose_submission_broke_off_may_be_billed(
    provider: LoopbackProvider,
) -> None:
    provider.script("q1", Refuse(500, code="batch_refused"))
    ledger = RequestRecorder()
    with scope(ledger):
        await ask(raw_agent(provider))
    assert [entry.state.value for entry in ledger.entries] == ["unsettled"] * 3


async def test_a_batch_that_is_withdrawn_says_so(provider: LoopbackProvider) -> None:
    provider.script("q", Hang())
    ledger = RequestRecorder()
    with scope(ledger):
        asking = asyncio.create_task(ask(raw_agent(provider)))
        await when(lambda: provider.batches.submitted)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    # Known to be withdrawn; or pydantic-ai has read by now that the model did not run it.
    told = set(agree(provider, ledger))
    assert told in ({"withdrawn unsettled"}, {"withdrawn refused"})
    [error] = {entry.error for entry in ledger.entries}
    assert ("was withdrawn" if told == {"withdrawn unsettled"} else "(canceled)") in str(error)


async def test_what_a_run_left_is_settled_by_the_one_that_reads_the_batch(
    provider: LoopbackProvider,
) -> None:
    provider.script("q", Answer(slowest=0.1))
    ledger, agent = RequestRecorder(), raw_agent(provider)
    with scope(ledger):
        left, *others = [asyncio.create_task(ask(agent, number)) for number in range(3)]
        await when(lambda: provider.batches.submitted)
        left.cancel()
        await asyncio.gather(left, *others, return_exceptions=True)
    assert agree(provider, ledger) == [ANSWERED] * 3


class TestSentByHand:
    async def test_by_pydantic_ai_s_function(self, provider: LoopbackProvider) -> None:
        ledger = RequestRecorder()
        with scope(ledger):
            await self._by_function(provider)
        assert agree(provider, ledger) == [ANSWERED] * 2

    async def test_a_further_attempt_of_a_step_submits_nothing_again(
        self, provider: LoopbackProvider
    ) -> None:
        ledger, journal = RequestRecorder(), Journal("s")
        for _ in range(2):
            journal.begin_attempt()
            with scope(ledger, journal):
                await self._by_function(provider)
        assert provider.batches.submitted == 1
        assert agree(provider, ledger) == [ANSWERED] * 2

    async def test_what_one_run_submits_another_process_may_collect(
        self, provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_LEDGER_URL", "sqlite:///ledger.db")
        model, store = model_of(provider), await shared_store("sqlite:///ledger.db")
        with scope(RequestRecorder(store)):
            requests = [await model.batch_encode(request) for request in self._requests()]
            batch = await model.batch_create(requests)
        monkeypatch.setattr(AWAITED, "_by_submission", {})  # as in another process
        handle = adapter.validate_python(adapter.dump_python(batch, mode="json"))
        handle = await model.batch_status(handle)
        assert len(await model.batch_results(handle)) == 2
        async with Ledger.open("sqlite:///ledger.db") as ledger:
            entries = await ledger.entries()
        assert_agree(provider.invoice.lines, entries, list_price)
        assert [entry.attribution.step_id for entry in entries] == ["s", "s"]

    async def test_what_was_encoded_before_is_booked_to_the_step_that_submits_it(
        self, provider: LoopbackProvider
    ) -> None:
        model, ledger, journal = model_of(provider), RequestRecorder(), Journal("s")
        first, second = self._requests()
        encoded = await model.batch_encode(first)
        for _ in range(2):  # a further attempt submits nothing again
            journal.begin_attempt()
            with scope(ledger, journal):
                batch = await model.batch_create([encoded, await model.batch_encode(second)])
                await model.batch_results(await model.batch_status(batch))
        assert provider.batches.submitted == 1
        assert agree(provider, ledger) == [ANSWERED] * 2
        assert {entry.attribution.step_id for entry in ledger.entries} == {"s"}

    async def test_what_nobody_books_is_booked_with_the_others_of_its_batch(
        self, provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FASTROAI_LEDGER_URL", "sqlite:///ledger.db")
        model, store = model_of(provider), await shared_store("sqlite:///ledger.db")
        first, second = self._requests()
        with scope(RequestRecorder(store)):
            encoded = await model.batch_encode(first)
        batch = await model.batch_create([encoded, await model.batch_encode(second)])
        await model.batch_results(await model.batch_status(batch))
        async with Ledger.open("sqlite:///ledger.db") as ledger:
            entries = await ledger.entries()
        assert_agree(provider.invoice.lines, entries, list_price)
        assert {entry.attribution.step_id for entry in entries} == {"s", None}

    async def test_what_nobody_books_is_left_alone(self, provider: LoopbackProvider) -> None:
        model = model_of(provider)
        with scope(RequestRecorder()) as own:
            pass
        batch = await model.batch_create([await model.batch_encode(r) for r in self._requests()])
        assert len(await model.batch_results(await model.batch_status(batch))) == 2
        assert own.ledger.entries == ()

    async def test_a_ledger_that_can_not_be_asked_loses_no_results(
        self,
        provider: LoopbackProvider,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        model, ledger = model_of(provider), RequestRecorder()
        with scope(ledger):
            requests = [await model.batch_encode(request) for request in self._requests()]
            batch = await model.batch_create(requests)
        monkeypatch.setattr(AWAITED, "_by_submission", {})
        monkeypatch.setenv("FASTROAI_LEDGER_URL", "sqlite:////dev/null/ledger.db")
        assert len(await model.batch_results(await model.batch_status(batch))) == 2
        assert {entry.state.value for entry in ledger.entries} == {"unsettled"}
        assert batch.id in caplog.text

    def _requests(self) -> list[BatchRequest]:
        return [
            BatchRequest(custom_id=f"r{n}", messages=[ModelRequest.user_text_prompt(f"s: q{n}")])
            for n in range(2)
        ]

    async def _by_function(self, provider: LoopbackProvider) -> None:
        await model_request_batch(
            model_of(provider), self._requests(), poll_interval=SOON, max_poll_interval=SOON
        )


class Kept:
    """A journal's store, in memory."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}

    async def read(self, key: str) -> bytes | None:
        return self.records.get(key)

    async def write(self, key: str, content: bytes) -> None:
        self.records[key] = content


class Killed(BaseException):
    """Stands for the end of a process, after which nothing more is done."""


class TestExecutedAgain:
    async def test_a_submitted_batch_is_waited_for(
        self,
        provider: LoopbackProvider,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        provider.script("q", Answer(slowest=0.15))
        ledger, kept = RequestRecorder(), Kept()
        with scope(ledger, Journal("s", kept)):
            asking = asyncio.create_task(ask(raw_agent(provider)))
            await when(lambda: len(kept.records) > 3)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        # Then nobody asks for it any more; another process knows nothing of who did.
        await when(lambda: "is left running" in caplog.text)
        monkeypatch.setattr(AWAITED, "_by_submission", {})
        await self._again(provider, kept, ledger)

    async def test_a_batch_that_was_submitted_unheard_is_found_at_the_provider(
        self, provider: LoopbackProvider
    ) -> None:
        model = model_of(provider)
        ledger, kept = RequestRecorder(), Kept()

        write = kept.write

        async def die(key: str, content: bytes) -> None:
            if b'"batch"' in content and provider.batches.submitted:
                raise Killed
            await write(key, content)

        kept.write = die  # type: ignore[method-assign]
        with scope(ledger, Journal("s", kept)):
            requests = [await model.batch_encode(request) for request in requests_of_agent()]
            with pytest.raises(Killed):
                await model.batch_create(requests)
        kept.write = write  # type: ignore[method-assign]
        assert provider.batches.submitted == 1
        again = RequestRecorder()
        with scope(again, Journal("s", kept)):
            requests = [await model.batch_encode(request) for request in requests_of_agent()]
            batch = await model.batch_create(requests)
            batch = await model.batch_status(batch)
            await model.batch_results(batch)
        assert provider.batches.submitted == 1
        assert agree(provider, again) == [ANSWERED] * 2

    async def _again(self, provider: LoopbackProvider, kept: Kept, before: RequestRecorder) -> None:
        ledger = RequestRecorder()
        with scope(ledger, Journal("s", kept)):
            assert await ask(raw_agent(provider)) == ["Hello from the loopback provider."] * 3
        assert provider.batches.submitted == 1
        assert agree(provider, ledger) == [ANSWERED] * 3
        assert {entry.id for entry in ledger.entries} == {entry.id for entry in before.entries}
        replayed = RequestRecorder()
        with scope(replayed, Journal("s", kept)):
            await ask(raw_agent(provider))
        assert [entry.state.value for entry in replayed.entries] == ["replayed"] * 3


def requests_of_agent() -> list[BatchRequest]:
    return [
        BatchRequest(custom_id=f"r{n}", messages=[ModelRequest.user_text_prompt(f"s: q{n}")])
        for n in range(2)
    ]


async def test_what_is_never_read_is_forgotten_in_time(provider: LoopbackProvider) -> None:
    model = model_of(provider)
    with scope(RequestRecorder()):
        [encoded, *_] = [await model.batch_encode(request) for request in requests_of_agent()]
    assert isinstance(encoded, BookedRequest)
    booking, entry = encoded.booking, LedgerEntry()
    awaited = Awaited(most=3)
    for number in range(5):
        for custom_id in ("a", "b"):
            awaited.add(str(number), custom_id, booking, entry)
    assert [len(awaited.of(str(number))) for number in range(5)] == [0, 0, 0, 0, 2]
    for number in range(9):
        awaited.add("large", str(number), booking, entry)
    assert len(awaited.of("large")) == 9  # what is being submitted stays
    assert awaited.pop("large") is not None
    assert awaited.pop("large") is None
