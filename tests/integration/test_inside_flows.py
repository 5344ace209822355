"""Pipelines as flows: inside someone's own flow, retried, called directly, with deps made where the
flow runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from typing import Any

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from pydantic import BaseModel, Field

from fastroai import (
    BaseStep,
    Pipeline,
    PipelineResult,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.ledger.entries import EntryState
from fastroai.tracing import NoOpTracer
from tests.integration.models import PRICE, Ask, CountingModel
from tests.integration.read_back import read_run, table, usd
from tests.support.steps import Give, WaitsForever

pytestmark = pytest.mark.usefixtures("prefect_api")


class Question(BaseModel):
    """What is asked."""

    topic: str = Field(description="What to write about.", min_length=3)
    pages: int = Field(default=2, ge=1, le=9, description="How many pages.")
    due: date | None = None


class FailsOnce(BaseStep[Any, str]):
    """Pays for an answer; fails the first time."""

    def __init__(self, model: CountingModel, step_id: str) -> None:
        self._agent = model.agent()
        self._needs = step_id
        self._runs = [0]

    async def execute(self, context: StepContext[Any]) -> str:
        self._runs[0] += 1
        answer = await context.run(
            self._agent, f"last, after {context.get_dependency(self._needs)}"
        )
        if self._runs[0] == 1:
            raise ConnectionError("lost it")
        return answer.output


def fails_once(model: CountingModel, **options: Any) -> Pipeline[Any, Any, Any]:
    steps: dict[str, BaseStep[Any, Any]] = {
        "first": Ask(model.agent()),
        "last": FailsOnce(model, "first"),
    }
    return Pipeline("fails once", steps, {"last": ["first"]}, **options)


async def test_inside_a_flow_the_run_is_a_subflow_of_it():
    pipeline = Pipeline("inner", {"a": Give(1)})

    @flow(name="outer")
    async def outer() -> tuple[str, str | None]:
        from prefect.runtime import flow_run

        result = await pipeline.execute({}, None)
        return str(flow_run.id), result.run_id

    outer_id, inner_id = await outer()
    parent = await read_run(outer_id, tasks=1)
    child = await read_run(inner_id, tasks=1, artifacts=1)
    assert child.flow_name == "inner"
    assert child.flow_run.parent_task_run_id in {t.id for t in parent.all_task_runs}


async def test_the_deadline_of_the_flow_around_it_ends_the_run_on_the_server_too():
    waits = WaitsForever()
    pipeline = Pipeline(
        "cut off", {"paid": Ask(CountingModel().agent()), "waits": waits}, output_step="paid"
    )
    run_ids: list[str] = []

    class Notes(NoOpTracer):
        @asynccontextmanager
        async def span(self, name: str, **attributes: Any) -> AsyncIterator[str]:
            from prefect.runtime import flow_run

            run_ids.append(str(flow_run.id))
            async with super().span(name, **attributes) as span_id:
                yield span_id

    @flow(name="outer with a deadline", timeout_seconds=4)
    async def outer() -> None:
        await pipeline.execute({"topic": "t"}, None, Notes())

    with pytest.raises(TimeoutError):
        await outer()
    assert waits.cleaned_up
    stored = await read_run(run_ids[0], tasks=2, artifacts=2)
    assert stored.flow_run.state_name in ("Crashed", "Cancelled")
    assert usd(stored.rows()) == PRICE


async def test_two_pipelines_may_run_at_once_inside_a_flow():
    model = CountingModel()
    pipelines = [Pipeline(f"side {n}", {"a": Ask(model.agent())}) for n in range(2)]

    @flow(name="outer of two")
    async def outer() -> list[Any]:
        return await asyncio.gather(*(p.execute({"topic": "t"}, None) for p in pipelines))

    results = await outer()
    assert [len(r.entries) for r in results] == [1, 1]
    for result in results:
        run = await read_run(result.run_id, tasks=1, artifacts=2)
        assert usd(run.rows()) == PRICE


async def test_a_pipeline_called_within_a_step_is_booked_to_itself_and_the_step_can_be_retried():
    model = CountingModel()
    inner = Pipeline("within", {"asked": Ask(model.agent())})
    runs: list[PipelineResult[Any]] = []

    @step(retries=1, retry_delay=0.0)
    async def outer_step(context: StepContext[Any]) -> str:
        runs.append(await inner.execute({"topic": "t"}, None))
        await context.run(agent, f"outer attempt {context.attempt}")
        if len(runs) == 1:
            raise ConnectionError("once")
        return "done"

    agent = model.agent()
    result = await Pipeline("around", {"outer": outer_step}).execute({}, None)
    assert result.output == "done"
    assert [e.attribution.pipeline for e in result.entries] == ["around", "around"]
    assert result.usage.total_cost_usd == 2 * PRICE
    assert all(len(r.entries) == 1 for r in runs)


async def test_after_a_nested_pipeline_the_rest_of_the_step_belongs_to_the_outer_run():
    model = CountingModel()
    inner = Pipeline("nested", {"asked": Ask(model.agent())})
    agent = model.agent()

    @step
    async def outer_step(context: StepContext[Any]) -> str:
        await inner.execute({"topic": "t"}, None)
        return (await context.run(agent, "outer")).output

    result = await Pipeline(
        "nesting", {"outer": outer_step, "b": Give(1)}, output_step="outer"
    ).execute({}, None)
    assert [e.attribution.pipeline for e in result.entries] == ["nesting"]
    run = await read_run(result.run_id, tasks=2, artifacts=2)
    assert usd(run.rows()) == PRICE


async def test_a_prefect_task_of_ones_own_gives_its_own_value_each_time():
    @task(name="own task", cache_policy=INPUTS)
    async def own(value: int) -> date:
        return date(2026, 1, value)

    @step
    async def calling(context: StepContext[Any]) -> list[str]:
        return [(await own(3)).isoformat() for _ in range(2)]

    for _ in range(2):
        result = await Pipeline("with own task", {"calling": calling}).execute({}, None)
        assert result.output == ["2026-01-03"] * 2


@pytest.mark.parametrize(
    "inputs",
    [
        {"topic": "t", "when": date(2026, 1, 1)},
        pytest.param({"topic": "t"}, marks=pytest.mark.long),
    ],
    ids=["with a date", "plain"],
)
async def test_a_retried_flow_run_goes_on_where_it_failed_and_pays_nothing_twice(
    inputs: dict[str, Any],
):
    model = CountingModel()
    result = await fails_once(model).to_flow(retries=1)(inputs)
    assert model.prompts == ["first|t", "last, after answer:first|t"]
    run = await read_run(result.run_id, tasks=2)
    assert run.flow_run.run_count == 2
    by_name = [(t.name, t.state_name) for t in run.all_task_runs]
    assert ("first", "Cached") in by_name
    assert [e.state for e in result.entries] == [EntryState.REPLAYED] * 2
    assert result.usage.total_replayed_cost_usd == 2 * PRICE


async def test_the_cost_tables_of_a_retried_flow_run_add_up_to_what_was_sent():
    model = CountingModel()
    result = await fails_once(model).to_flow(retries=1)({"topic": "t"})
    run = await read_run(result.run_id, tasks=2)
    assert model.calls == 2
    rows = [row for a in run.cost_tables() if a.task_run_id is not None for row in table(a)]
    total_rows = [row for a in run.cost_tables() if a.task_run_id is None for row in table(a)]
    assert usd(rows) == usd(total_rows) == 2 * PRICE


@pytest.mark.long
async def test_inputs_of_rich_types_still_make_a_retried_flow_run_go_on_where_it_failed():
    model = CountingModel()
    pipeline = fails_once(model, input_type=Question)
    await pipeline.to_flow(retries=1)({"topic": "bees", "due": "2026-05-01"})
    assert model.calls == 2


@pytest.mark.long
async def test_a_retried_flow_around_a_pipeline_does_not_pay_finished_steps_again():
    model = CountingModel()
    pipeline = fails_once(model)

    @flow(name="around a failing pipeline", retries=1)
    async def outer() -> str:
        return (await pipeline.execute({"topic": "t"}, None)).output

    await outer()
    assert model.prompts.count("first|t") == 1


@pytest.mark.long
async def test_two_runs_of_one_pipeline_in_a_flow_are_two_runs():
    model = CountingModel()
    pipeline = Pipeline("twice", {"a": Ask(model.agent())})

    @flow(name="asks twice")
    async def outer() -> list[Any]:
        return [await pipeline.execute({"topic": "t"}, None) for _ in range(2)]

    results = await outer()
    assert len({r.run_id for r in results}) == 2
    assert model.calls == 2


@pytest.mark.filterwarnings("ignore:Logger .prefect.task_runs.")
async def test_a_pipeline_can_be_run_by_a_task_without_a_flow():
    pipeline = Pipeline("in a task", {"a": Give(1)})

    @task(name="alone")
    async def alone() -> int:
        return (await pipeline.execute({}, None)).output

    assert await alone() == 1


async def test_the_result_of_a_flow_can_be_persisted():
    model = CountingModel()
    state = await Pipeline("persisted", {"a": Ask(model.agent())}).to_flow(persist_result=True)(
        {"topic": "t"}, return_state=True
    )
    result = await state.aresult()
    assert result.output == "answer:a|t"
    assert result.usage.total_cost_usd == PRICE


@pytest.mark.long
async def test_a_retried_flow_around_a_finished_pipeline_does_not_pay_it_again():
    model = CountingModel()
    pipeline = Pipeline("finished", {"a": Ask(model.agent())})
    failures = [ConnectionError("after the pipeline")]

    @flow(name="around a finished pipeline", retries=1)
    async def outer() -> str:
        result = await pipeline.execute({"topic": "t"}, None)
        if failures:
            raise failures.pop()
        return result.output

    assert await outer() == "answer:a|t"
    assert model.calls == 1


class Connection:
    def __init__(self) -> None:
        self.open = False
        self.opened = 0


CONNECTION = Connection()


@contextmanager
def sync_connection() -> Iterator[Connection]:
    CONNECTION.open, CONNECTION.opened = True, CONNECTION.opened + 1
    try:
        yield CONNECTION
    finally:
        CONNECTION.open = False


@asynccontextmanager
async def async_connection() -> AsyncIterator[Connection]:
    with sync_connection() as connection:
        yield connection


def plain() -> Connection:
    CONNECTION.open = True
    return CONNECTION


async def coroutine() -> Connection:
    return plain()


@step
async def use_connection(context: StepContext[Connection]) -> bool:
    return context.deps is CONNECTION and context.deps.open


@step
async def break_connection(context: StepContext[Connection]) -> None:
    raise ConnectionError(f"open: {context.deps.open}")


@pytest.fixture
def connection() -> Connection:
    CONNECTION.__init__()
    return CONNECTION


@pytest.mark.parametrize(
    "factory",
    [plain, pytest.param(coroutine, marks=pytest.mark.long), sync_connection, async_connection],
    ids=lambda f: f.__name__,
)
async def test_deps_are_made_where_the_flow_runs(connection: Connection, factory: Any):
    result = await Pipeline("with deps", {"use": use_connection}).to_flow(deps_factory=factory)()
    assert result.output is True


@pytest.mark.parametrize(
    ("factory", "body"),
    [
        (sync_connection, use_connection),
        (async_connection, break_connection),
        pytest.param(sync_connection, break_connection, marks=pytest.mark.long),
        pytest.param(async_connection, use_connection, marks=pytest.mark.long),
    ],
    ids=lambda f: getattr(f, "__name__", "body"),
)
async def test_deps_that_can_be_closed_are_closed(
    connection: Connection, factory: Any, body: BaseStep[Any, Any]
):
    made = Pipeline("closing", {"use": body}).to_flow(deps_factory=factory)
    if body is break_connection:
        with pytest.raises(StepExecutionError, match="open: True"):
            await made()
    else:
        await made()
    assert (connection.opened, connection.open) == (1, False)


async def test_deps_of_a_flow_called_here_are_the_same_object(connection: Connection):
    connection.open = True
    result = await Pipeline("deps", {"use": use_connection}).to_flow(deps=connection)()
    assert result.output is True


def test_deps_and_a_factory_of_them_are_one_too_many():
    with pytest.raises(ValueError, match="deps_factory"):
        Pipeline("both", {"use": use_connection}).to_flow(deps=1, deps_factory=plain)


@step
async def pages_of(context: StepContext[Any]) -> str:
    return f"{context.get_input('topic')}: {context.get_input('pages')}"


@pytest.fixture
def questions() -> Pipeline[Any, Any, Any]:
    return Pipeline("questions", {"pages": pages_of}, input_type=Question)


def test_the_input_model_is_the_flows_parameter_form(questions: Pipeline[Any, Any, Any]):
    schema = questions.to_flow().parameters.model_dump()
    assert schema["required"] == ["inputs"]
    [model] = schema["definitions"].values()
    assert model["properties"]["topic"]["description"] == "What to write about."
    assert model["properties"]["topic"]["minLength"] == 3
    assert (model["properties"]["pages"]["minimum"], model["properties"]["pages"]["maximum"]) == (
        1,
        9,
    )
    assert model["properties"]["pages"]["default"] == 2
    assert model["required"] == ["topic"]


@pytest.mark.parametrize(
    "inputs", [{"topic": "bees"}, Question(topic="bees")], ids=["dict", "model"]
)
async def test_a_flow_is_called_with_a_dict_or_a_model(
    questions: Pipeline[Any, Any, Any], inputs: Any
):
    made = questions.to_flow()
    by_position, by_name = await made(inputs), await made(inputs=inputs)
    assert isinstance(by_position, PipelineResult)
    assert by_position.output == by_name.output == "bees: 2"


@pytest.mark.parametrize(
    "inputs", [{"topic": "no"}, {}, {"topic": "bees", "pages": 10}, "bees"], ids=repr
)
async def test_an_input_that_does_not_fit_is_refused_before_a_step(inputs: Any):
    model = CountingModel()
    made = Pipeline("strict", {"a": Ask(model.agent())}, input_type=Question).to_flow()
    with pytest.raises(Exception, match=r"topic|pages|Question|inputs"):
        await made(inputs)
    assert model.calls == 0


async def test_a_flow_that_needs_an_input_says_so_when_it_gets_none(
    questions: Pipeline[Any, Any, Any],
):
    with pytest.raises(Exception, match="inputs"):
        await questions.to_flow()()


async def test_a_flow_without_an_input_model_takes_any_dict_or_nothing():
    made = Pipeline("free", {"a": Give(3)}).to_flow()
    assert (await made()).output == (await made({"x": 1})).output == 3


def test_a_plain_function_gets_the_result_of_a_flow():
    made = Pipeline("from plain code", {"a": Give(3)}).to_flow()
    assert made().output == 3
    renamed = made.with_options(name="renamed")
    assert (renamed().output, renamed.name) == (3, "renamed")
    assert made(return_state=True).is_completed()

    @flow(name="plain outer flow")
    def outer() -> int:
        return made().output

    assert outer() == 3


async def test_flow_options_are_prefects():
    made = Pipeline("optioned", {"a": Give(3)}).to_flow(
        name="another name", version="7", retries=2, description="What it is for.", log_prints=True
    )
    assert (made.name, made.version, made.retries, made.description) == (
        "another name",
        "7",
        2,
        "What it is for.",
    )
    assert made.log_prints is True


async def test_a_failed_flow_called_directly_tells_what_was_spent():
    model = CountingModel()
    pipeline = Pipeline("spent", {"a": Ask(model.agent(), then=ValueError("bad"))})
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.to_flow()({"topic": "t"})
    assert caught.value.partial_result.usage.total_cost_usd == PRICE


async def test_retries_of_a_step_happen_within_its_task(prefect_api: str):
    model = CountingModel()
    pipeline = fails_once(model, step_configs={"last": StepConfig(retries=1, retry_delay=0.0)})
    result = await pipeline.execute({"topic": "t"}, None)
    run = await read_run(result.run_id, tasks=2)
    assert run.task_runs["last"].run_count == 2
    assert model.calls == 2, "the answer of the failed attempt is replayed, not sent again"
