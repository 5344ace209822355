"""The ledger's database: each request is in it before it is sent, and all that became of it; on
every executor.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.toolsets import FunctionToolset

from fastroai import (
    FastroAgent,
    InputValidationError,
    Pipeline,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.errors import LedgerUnavailableError
from fastroai.ledger.entries import total_usd
from fastroai.ledger.store import configured_store
from fastroai.settings import load_settings
from fastroai.testing import ToolCall, fixed_prices
from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.conformance.third_party import AnyExecutor
from tests.support.models import COST, counted_agent, shared_agent, shared_model
from tests.support.remote_runners import AllRemote
from tests.support.shared import SharedList
from tests.support.steps import Give

TAGS = {"team": "search", "customer": "Äcme"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "books" / "ledger.db"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", f"sqlite:///{path}")
    yield path
    if path.parent.is_file():
        # so that what is still to be written can be, at the end of the process
        path.parent.unlink()


def close_off(database: Path) -> None:
    """Make it a place where no file can be."""
    database.parent.touch()


async def all_is_written() -> None:
    store = await configured_store(load_settings())
    assert store is not None
    await store.flush()


async def several_are_booked(number: int) -> None:
    async with asyncio.timeout(60):
        while len(await booked()) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def booked(**selection: Any) -> list[LedgerEntry]:
    async with Ledger.open() as ledger:
        return await ledger.entries(**selection)


def asking(agent: FastroAgent[Any], *questions: str, **config: Any) -> Any:
    @step(**config)
    async def ask(ctx: StepContext[Any]) -> list[str]:
        return [(await ctx.run(agent, question)).output for question in questions]

    return ask


async def test_what_a_run_says_it_sent_is_what_the_database_says(
    any_executor: AnyExecutor, database: Path
) -> None:
    agent, _ = counted_agent()
    steps = {"a": asking(agent, "one", "two"), "b": asking(agent, "three")}
    pipeline = Pipeline("talk", steps, {"b": ["a"]}, executor=any_executor)
    result = await pipeline.execute({}, None, run_key="talk-1", tags=TAGS)
    entries = await booked(run_id=result.run_id)
    assert entries == list(result.entries)
    assert [entry.state for entry in entries] == [EntryState.CHARGED] * 3
    assert {entry.attribution.run_key for entry in entries} == {"talk-1"}
    assert all(entry.attribution.tags == TAGS for entry in entries)
    assert [e.attribution.step_id for e in entries] == ["a", "a", "b"]
    async with Ledger.open() as ledger:
        (by_customer,) = await ledger.totals(by="tag:customer", run_key="talk-1")
    assert result.usage is not None
    assert (by_customer.key, by_customer.cost_usd) == ("Äcme", result.usage.total_cost_usd)


async def test_a_request_is_in_the_database_before_it_is_sent(
    any_executor: AnyExecutor, database: Path
) -> None:
    seen = SharedList()

    def look(messages: Any, info: Any) -> ModelResponse:
        with closing(sqlite3.connect(database)) as other:
            intents = (
                "SELECT count(*) FROM fastroai_intents WHERE id NOT IN (SELECT entry_id FROM "
                "fastroai_outcomes)"
            )
            [count] = other.execute(intents).fetchone()
            seen.append(count)
        return ModelResponse(parts=[TextPart("seen")])

    agent = shared_agent(model=shared_model(look, repeat=True), cost_calculator=fixed_prices())
    await Pipeline("talk", {"a": asking(agent, "one", "two")}, executor=any_executor).execute(
        {}, None
    )
    assert len(seen) == 2
    assert min(seen) >= 1


async def test_a_nested_agent_s_requests_are_booked_to_the_step(
    any_executor: AnyExecutor, database: Path
) -> None:
    inner, _ = counted_agent("inner")

    async def consult() -> str:
        return str((await inner.run("inner?")).output)

    outer = shared_agent(
        model=shared_model(ToolCall("consult"), "outer"),
        toolsets=[FunctionToolset([consult])],
        cost_calculator=fixed_prices(),
        name="outer",
    )
    result = await Pipeline("talk", {"a": asking(outer, "outer?")}, executor=any_executor).execute(
        {}, None
    )
    entries = await booked(run_id=result.run_id)
    assert [entry.agent for entry in entries] == ["outer", "counted", "outer"]
    assert {entry.attribution.step_id for entry in entries} == {"a"}
    assert entries == list(result.entries)


async def test_replays_of_a_failed_attempt_are_in_the_database_and_no_spend(
    executor: str, database: Path
) -> None:
    agent, model = counted_agent()
    attempts = Give(RuntimeError("once"), "fine")

    @step(retries=1, retry_delay=0.0)
    async def ask(ctx: StepContext[Any]) -> Any:
        await ctx.run(agent, "one")
        return await attempts.execute(ctx)

    result = await Pipeline("talk", {"a": ask}, executor=executor).execute({}, None)
    entries = await booked(run_id=result.run_id)
    assert [entry.state for entry in entries] == [EntryState.CHARGED, EntryState.REPLAYED]
    assert entries[1].replay_of == entries[0].id
    assert len(model.prompts) == 1
    assert total_usd(entries) * 1_000_000 == COST


async def test_a_ledger_that_can_not_be_reached_fails_the_run_before_anything_is_sent(
    any_executor: AnyExecutor, database: Path
) -> None:
    close_off(database)
    agent, model = counted_agent()
    with pytest.raises(LedgerUnavailableError, match="FASTROAI_LEDGER_URL"):
        await Pipeline("talk", {"a": asking(agent, "one")}, executor=any_executor).execute({}, None)
    assert model.prompts == []


@pytest.mark.one_process("it waits for what its process has still to write")
async def test_a_ledger_lost_within_a_run_stops_the_next_request(
    any_executor: AnyExecutor, database: Path
) -> None:
    agent, model = counted_agent()

    @step
    async def lose(ctx: StepContext[Any]) -> Any:
        await ctx.run(agent, "one")
        await all_is_written()
        database.parent.rename(database.parent.with_name("away"))
        close_off(database)
        await ctx.run(agent, "two")

    with pytest.raises(StepExecutionError) as caught:
        await Pipeline("talk", {"a": lose}, executor=any_executor).execute({}, None)
    assert isinstance(caught.value.original_error, LedgerUnavailableError)
    assert model.prompts == ["one"]
    partial = caught.value.partial_result
    assert partial is not None
    assert [entry.state for entry in partial.entries] == [EntryState.CHARGED, EntryState.REFUSED]
    assert partial.entries[1].error.startswith("Not sent")


async def test_a_ledger_that_is_not_required_gets_its_entries_later(
    any_executor: AnyExecutor, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_REQUIRED", "false")
    close_off(database)
    agent, _ = counted_agent()
    result = await Pipeline("talk", {"a": asking(agent, "one")}, executor=any_executor).execute(
        {}, None
    )
    assert len(result.entries) == 1
    database.parent.unlink()
    monkeypatch.setenv("FASTROAI_LEDGER_REQUIRED", "true")
    again = await Pipeline("talk", {"a": asking(agent, "two")}, executor=any_executor).execute(
        {}, None
    )
    monkeypatch.setenv("FASTROAI_LEDGER_REQUIRED", "false")
    await all_is_written()
    if isinstance(any_executor, AllRemote):
        # What a worker could not book it tries again by itself: nobody here can hurry it.
        await several_are_booked(2)
    assert await booked() == [*result.entries, *again.entries]


@pytest.mark.parametrize(
    "options",
    [{"run_key": ""}, {"run_key": 7}, {"tags": {"team": 7}}, {"tags": ["team"]}],
    ids=lambda options: str(options),
)
async def test_options_that_are_no_texts_are_refused_before_the_run(
    any_executor: AnyExecutor, options: dict[str, Any]
) -> None:
    only = Give("a")
    with pytest.raises(InputValidationError, match=next(iter(options))):
        await Pipeline("talk", {"a": only}, executor=any_executor).execute({}, None, **options)
    assert only.runs == 0


async def test_an_agent_called_by_itself_is_booked_where_a_ledger_is_set(database: Path) -> None:
    agent, _ = counted_agent()
    response = await agent.run("one")
    assert await booked() == list(response.entries)


async def test_runs_in_memory_write_no_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    agent, _ = counted_agent()
    await Pipeline("talk", {"a": asking(agent, "one")}, executor="memory").execute({}, None)
    assert not os.listdir(tmp_path)
