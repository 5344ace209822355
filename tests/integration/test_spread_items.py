"""Items of a mapped step that other runs of the deployment work on; these run in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.states import Cancelling
from pydantic import BaseModel

from fastroai import (
    FastroAgent,
    MappedResults,
    Pipeline,
    PipelineConfig,
    PipelineValidationError,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.budgets import Budget
from fastroai.errors import MappedStepError, RemoteItemError, ResultStorageError
from fastroai.executors import PrefectExecutor, Spread
from fastroai.executors._prefect import spread_chunk, spread_map
from fastroai.executors._prefect.chunk_runs import CHUNK_LABEL, STEP_LABEL
from fastroai.leases.shared import configured_heartbeat
from fastroai.leases.table import LeaseTable
from fastroai.settings import load_settings
from fastroai.usage import EntryState, Ledger
from tests.support.deployed_runs import deployed, deployment_of, work, worked_on
from tests.support.models import counted_agent

pytestmark = pytest.mark.usefixtures("prefect_api")

FOUR = Spread(items=2, runs=2)


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    for module, name, seconds in (
        (spread_map, "POLL", 0.1),
        (spread_map, "LOOK", 0.3),
        (spread_chunk, "LOOK", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)
    return url


@dataclass(frozen=True)
class Page:
    """What pydantic reads back."""

    title: str
    number: int


class Book(BaseModel):
    """What is mapped over as a field of the input."""

    pages: list[Page]


class BadInkError(Exception):
    """Of nobody else."""


class Died(BaseException):
    """Nothing catches it."""


@dataclass
class Desk:
    """What the deps factory gives: which pages fail, and how."""

    bad: dict[int, BaseException] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    holds: bool = False


@step
async def read(context: StepContext[Desk]) -> list[Page]:
    return [Page(f"page {number}", number) for number in range(context.get_input("pages", 4))]


def asking(agent: FastroAgent[Any], **config: Any) -> Any:
    @step(retry_delay=0.0, **config)
    async def ask(context: StepContext[Desk]) -> str:
        answer = (await context.run(agent, f"about {context.item.title}")).output
        if context.deps.holds:
            await context.deps.gate.wait()
        if context.item.number in context.deps.bad:
            error = context.deps.bad[context.item.number]
            if isinstance(error, Died):  # once
                del context.deps.bad[context.item.number]
            raise error
        return f"{context.item.title}: {answer}"

    return ask


@dataclass
class Spreading:
    """A deployment of a pipeline whose items are spread."""

    flow: Any
    inputs: dict[str, Any]
    others: list[FlowRun]

    async def run(self) -> Any:
        """The result of one run, which is the one that waits."""
        return await work(self.flow, await self.start())

    async def start(self, **options: Any) -> UUID:
        """A run that nobody works on yet."""
        return await deployed(self.flow, self.inputs, **options)


@asynccontextmanager
async def spread(
    pipeline: Pipeline[Any, Any, Any], desk: Desk | None = None, **inputs: Any
) -> AsyncIterator[Spreading]:
    made = Desk() if desk is None else desk
    flow = pipeline.with_executor(PrefectExecutor(spread=FOUR)).to_flow(
        name=f"spread-{uuid4().hex[:8]}", deps_factory=lambda: made
    )
    async with worked_on(flow, await deployment_of(flow)) as others:
        yield Spreading(flow, inputs, others)


def mapped(ask: Any, **options: Any) -> Pipeline[Any, Any, Any]:
    answers = ask.map(over="read", key="title", **options)
    return Pipeline("pages", {"read": read, "answers": answers})


def prompts(*numbers: int) -> list[str]:
    return [f"about page {number}" for number in numbers]


async def state_of(run: UUID) -> str | None:
    async with get_client() as client:
        return (await client.read_flow_run(run)).state_name


async def until(happens: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happens():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_other_runs_work_on_the_items_and_the_books_are_the_runs(ledger: str) -> None:
    agent, model = counted_agent("yes")
    async with spread(mapped(asking(agent)), pages=5) as spreading, Ledger.open(ledger) as books:
        run = await spreading.start()
        result = await work(spreading.flow, run)
        booked = await books.entries(run_id=str(run))
    assert result.output == [f"page {number}: yes" for number in range(5)]
    assert len(spreading.others) == 3
    assert sorted(model.prompts) == prompts(*range(5))
    assert {entry.id: entry for entry in booked} == {entry.id: entry for entry in result.entries}
    assert {entry.state for entry in booked} == {EntryState.CHARGED}
    items = sorted(str(entry.attribution.item) for entry in booked)
    assert items == [f"page {number}" for number in range(5)]


async def test_items_that_fail_there_are_listed_here_and_asked_for_again_only(ledger: str) -> None:
    agent, model = counted_agent("yes")
    desk = Desk({1: LookupError("no page"), 2: BadInkError("wet")})
    pipeline = mapped(asking(agent, cache_policy="inputs"), max_failures=2)
    async with spread(pipeline, desk) as spreading:
        result = await spreading.run()
        assert isinstance(result.output, MappedResults)
        assert dict(result.output) == {"page 0": "page 0: yes", "page 3": "page 3: yes"}
        errors = result.output.errors
        assert (type(errors["page 1"]), str(errors["page 1"])) == (LookupError, "no page")
        assert isinstance(errors["page 2"], RemoteItemError)
        assert str(errors["page 2"]) == "BadInkError: wet"
        assert len(result.entries) == 4
        desk.bad.clear()
        again = await spreading.run()
    assert list(again.output.values()) == [f"page {number}: yes" for number in range(4)]
    assert sorted(model.prompts[4:]) == prompts(1, 2)
    assert [entry.state for entry in again.entries].count(EntryState.REPLAYED) == 2


@pytest.mark.long
async def test_one_failure_too_many_ends_the_run_and_what_is_done_is_kept() -> None:
    agent, model = counted_agent("yes")
    desk = Desk({0: ValueError("torn")})
    async with spread(mapped(asking(agent, cache_policy="inputs")), desk, pages=2) as spreading:
        with pytest.raises(StepExecutionError) as caught:
            await spreading.run()
        assert isinstance(caught.value, MappedStepError)
        assert str(caught.value) == "Step 'answers' failed: item 'page 0': torn"
        desk.bad.clear()
        asked = list(model.prompts)
        again = await spreading.run()
    assert again.output == ["page 0: yes", "page 1: yes"]
    assert set(model.prompts[len(asked) :]) <= set(prompts(0, 1))


async def test_a_run_that_dies_is_begun_again_for_what_is_left(ledger: str) -> None:
    agent, model = counted_agent("yes")
    desk = Desk({3: Died()})
    async with spread(mapped(asking(agent)), desk) as spreading, Ledger.open(ledger) as books:
        run = await spreading.start()
        result = await work(spreading.flow, run)
        booked = await books.entries(run_id=str(run))
    assert result.output == [f"page {number}: yes" for number in range(4)]
    # Its answer was recorded before the run died.
    assert sorted(model.prompts) == prompts(*range(4))
    assert {entry.id for entry in booked} == {entry.id for entry in result.entries}
    assert len({run.id for run in spreading.others}) == 2
    assert len(spreading.others) == 3


async def test_a_run_that_is_resumed_waits_for_the_runs_that_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "1")
    agent, model = counted_agent("yes")
    desk = Desk(holds=True)
    async with spread(mapped(asking(agent)), desk) as spreading:
        run = await spreading.start()
        waiting = asyncio.create_task(work(spreading.flow, run))
        await until(lambda: len(model.prompts) == 4)
        heartbeat = configured_heartbeat(load_settings())
        holdings = await asyncio.wrap_future(heartbeat.holdings("flow_run"))
        [token] = [held.claim.token for held in holdings if held.claim.name == str(run)]
        table = LeaseTable(heartbeat._table.database)
        await asyncio.to_thread(table.release, token)  # as if it had been without a heartbeat
        with pytest.raises(Abort):
            await waiting
        again = asyncio.create_task(work(spreading.flow, run))
        await asyncio.sleep(1)
        desk.gate.set()
        result = await again
    assert result.output == [f"page {number}: yes" for number in range(4)]
    assert len(model.prompts) == 4
    assert len(spreading.others) == 2


async def test_runs_end_when_the_run_that_waits_for_them_is_cancelled() -> None:
    agent, model = counted_agent("yes")
    async with spread(mapped(asking(agent)), Desk(holds=True), pages=2) as spreading:
        run = await spreading.start()
        waiting = asyncio.create_task(work(spreading.flow, run))
        await until(lambda: len(model.prompts) == 2)
        async with get_client() as client:
            await client.set_flow_run_state(run, Cancelling())
        await asyncio.wait({waiting})
        assert isinstance(waiting.exception(), MappedStepError)
        [other] = spreading.others
        assert await state_of(other.id) == "Cancelled"


async def test_elements_of_the_input_are_worked_on_elsewhere_too() -> None:
    agent, model = counted_agent("yes")
    pipeline = Pipeline(
        "book", {"answers": asking(agent).map(over="pages", key="title")}, input_type=Book
    )
    pages = [{"title": f"page {number}", "number": number} for number in range(3)]
    async with spread(pipeline, pages=pages) as spreading:
        result = await spreading.run()
    assert result.output == [f"page {number}: yes" for number in range(3)]
    assert len(spreading.others) == 2
    assert len(model.prompts) == 3


@pytest.mark.parametrize("bad", [pytest.param([], marks=pytest.mark.long), [1]])
async def test_a_spread_map_over_a_spread_map_is_worked_on_item_by_item(
    ledger: str, bad: list[int]
) -> None:
    first, asked_first = counted_agent("draft")
    second, asked_second = counted_agent("fine")

    @step
    async def check(context: StepContext[Desk]) -> str:
        answer = (await context.run(second, f"check {context.item}")).output
        return f"{context.item_key}: {answer}"

    steps = {
        "read": read,
        "drafts": asking(first).map(over="read", key="title", max_failures=1),
        "checks": check.map(over="drafts"),
    }
    desk = Desk({number: LookupError("no page") for number in bad})
    pipeline = Pipeline("twice", steps, output_step="checks")
    async with spread(pipeline, desk, pages=5) as spreading, Ledger.open(ledger) as books:
        run = await spreading.start()
        result = await work(spreading.flow, run)
        booked = await books.entries(run_id=str(run))
    good = [number for number in range(5) if number not in bad]
    assert list(result.output) == [f"page {number}: fine" for number in good]
    assert sorted(asked_first.prompts) == prompts(*range(5))
    assert sorted(asked_second.prompts) == [f"check page {number}: draft" for number in good]
    assert {entry.id: entry for entry in booked} == {entry.id: entry for entry in result.entries}
    assert Counter(entry.attribution.step_id for entry in booked) == {
        "drafts": 5,
        "checks": len(good),
    }


async def test_items_see_other_dependencies_and_not_all_that_is_mapped_over() -> None:
    @step
    async def title(context: StepContext[Any]) -> Page:
        return Page("the title", 9)

    @step
    async def join(context: StepContext[Any]) -> str:
        if context.item.number == 1:
            return str(len(context.get_dependency("read")))
        return f"{context.get_dependency('title').title}, {context.item.title}"

    pipeline = Pipeline(
        "joined",
        {"read": read, "title": title, "joined": join.map(over="read", max_failures=1)},
        {"joined": ["title"]},
        output_step="joined",
    )
    async with spread(pipeline, pages=2) as spreading:
        result = await spreading.run()
    assert list(result.output.values()) == ["the title, page 0"]
    [error] = result.output.errors.values()
    assert "not there where items are spread" in str(error)


async def test_what_cant_be_handed_over_is_an_error_that_says_what_to_declare() -> None:
    @step
    async def undeclared(context: StepContext[Any]) -> Any:
        return [Page("page 0", 0)]

    agent, model = counted_agent("yes")
    pipeline = Pipeline("p", {"read": undeclared, "answers": asking(agent).map(over="read")})
    async with spread(pipeline) as spreading:
        with pytest.raises(StepExecutionError, match="is a Page, which can't be handed"):
            await spreading.run()
    assert model.prompts == []
    assert spreading.others == []


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        pytest.param(f"{'0' * 32}-{'1' * 20}-{'2' * 32}", marks=pytest.mark.long),
    ],
)
async def test_a_label_of_somebody_elses_making_runs_nothing(name: str) -> None:
    agent, model = counted_agent("yes")
    async with spread(mapped(asking(agent))) as spreading:
        labels = {CHUNK_LABEL: name, STEP_LABEL: "answers"}
        run = await spreading.start(labels=labels)
        with pytest.raises(ResultStorageError, match="can't be read"):
            await work(spreading.flow, run)
    assert model.prompts == []


async def test_budgets_that_only_one_process_can_keep_are_refused() -> None:
    agent, model = counted_agent("yes")
    budget = Budget(usd=Decimal(1), strength="reserved")
    answers = asking(agent).map(over="read")
    config = PipelineConfig(budget=budget)
    pipeline = Pipeline("p", {"read": read, "answers": answers}, config=config)
    async with spread(pipeline) as spreading:
        with pytest.raises(PipelineValidationError, match="strength 'reserved'"):
            await spreading.run()
    assert model.prompts == []


async def test_a_run_of_no_deployment_works_on_its_items_itself() -> None:
    agent, model = counted_agent("yes")
    pipeline = mapped(asking(agent)).with_executor(PrefectExecutor(spread=FOUR))
    result = await pipeline.execute({"pages": 3}, deps=Desk())
    assert result.output == [f"page {number}: yes" for number in range(3)]
    assert len(model.prompts) == 3


@pytest.mark.parametrize("wrong", [{"items": 0}, {"runs": 1.5}, {"deployment": "d"}])
def test_values_that_cant_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Spread(**wrong)
