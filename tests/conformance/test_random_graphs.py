"""Random graphs in memory: every step once, after its dependencies, never too many at once."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastroai import BaseStep, Pipeline, PipelineConfig, StepContext, StepExecutionError
from tests.support.clock import on_virtual_clock
from tests.support.examples import examples
from tests.support.graphs import Graph, graphs
from tests.support.steps import PATIENCE


class Log:
    """What the steps of one run did, and how many did it at once."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.running = self.peak = 0

    def step(self, turns: int, *, fails: bool = False) -> BaseStep[Any, Any]:
        return _Logged(self, turns, fails)

    def at(self, event: str, step_id: str) -> int:
        return self.events.index((event, step_id))


class _Logged(BaseStep[Any, list[str]]):
    def __init__(self, log: Log, turns: int, fails: bool) -> None:
        self._log, self._turns, self._fails = log, turns, fails

    async def execute(self, context: StepContext[Any]) -> list[str]:
        log = self._log
        log.events.append(("start", context.step_id))
        log.running += 1
        log.peak = max(log.peak, log.running)
        try:
            for _ in range(self._turns):
                await asyncio.sleep(0)
            if self._fails:
                raise ValueError(context.step_id)
            return [context.step_id]
        finally:
            log.running -= 1
            log.events.append(("end", context.step_id))


def run(
    graph: Graph, turns: list[int], config: PipelineConfig, failing: frozenset[str] = frozenset()
) -> Any:
    log = Log()
    steps = {
        step_id: log.step(turns[number % len(turns)], fails=step_id in failing)
        for number, step_id in enumerate(graph)
    }
    pipeline = Pipeline("random", steps, graph, next(iter(graph)), config, executor="memory")

    async def main() -> Any:
        async with asyncio.timeout(PATIENCE):
            result = await pipeline.execute({}, None)
        assert len(asyncio.all_tasks()) == 1
        return result

    # On a clock that jumps, a run that never ends is found out at once.
    return on_virtual_clock(main)[0], log


turn_lists = st.lists(st.integers(0, 5), min_size=1, max_size=12)
limits = st.none() | st.integers(1, 4)


@given(graph=graphs(), turns=turn_lists, limit=limits)
@examples(150)
def test_every_step_runs_once_after_its_dependencies(
    graph: Graph, turns: list[int], limit: int | None
) -> None:
    result, log = run(graph, turns, PipelineConfig(max_concurrency=limit))
    assert sorted(log.events) == sorted(
        (event, step_id) for step_id in graph for event in ("start", "end")
    )
    for step_id, needed in graph.items():
        assert all(log.at("end", dependency) < log.at("start", step_id) for dependency in needed)
    assert result.step_outputs == {step_id: [step_id] for step_id in graph}
    assert limit is None or log.peak <= limit


@given(data=st.data(), graph=graphs(), turns=turn_lists, limit=limits)
@examples(150)
def test_every_step_finishes_fails_or_is_skipped(
    data: st.DataObject, graph: Graph, turns: list[int], limit: int | None
) -> None:
    failing = data.draw(st.frozensets(st.sampled_from(sorted(graph))))
    result, log = run(
        graph, turns, PipelineConfig(on_error="continue", max_concurrency=limit), failing
    )
    finished, failed, skipped = set(result.step_outputs), set(result.errors), set(result.skipped)
    assert finished | failed | skipped == set(graph)
    assert len(finished) + len(failed) + len(result.skipped) == len(graph)
    assert failed == failing - skipped
    for step_id, needed in graph.items():
        assert (step_id in skipped) == any(d in failed | skipped for d in needed)
    assert {step_id for event, step_id in log.events if event == "start"} == finished | failed
    assert limit is None or log.peak <= limit


@given(data=st.data(), graph=graphs(), turns=turn_lists, limit=limits)
@examples(100)
def test_the_first_failure_ends_the_run(
    data: st.DataObject, graph: Graph, turns: list[int], limit: int | None
) -> None:
    failing = data.draw(st.frozensets(st.sampled_from(sorted(graph)), min_size=1))
    log = Log()
    steps = {s: log.step(turns[n % len(turns)], fails=s in failing) for n, s in enumerate(graph)}
    config = PipelineConfig(max_concurrency=limit)
    pipeline = Pipeline("random", steps, graph, next(iter(graph)), config, executor="memory")

    async def main() -> StepExecutionError:
        try:
            async with asyncio.timeout(PATIENCE):
                await pipeline.execute({}, None)
        except StepExecutionError as error:
            assert len(asyncio.all_tasks()) == 1
            return error
        raise AssertionError("a run with a failing step came to its end")

    error, _ = on_virtual_clock(main)
    assert error.step_id in failing
    assert str(error.original_error) == error.step_id
    assert log.running == 0
    assert error.partial_result is not None
    assert not set(error.partial_result.step_outputs) & failing
