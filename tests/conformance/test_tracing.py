"""Spans of a run and of its steps; the same on every executor."""

from __future__ import annotations

from typing import Any

import pytest

from fastroai import NoOpTracer, Pipeline, PipelineConfig, StepContext, StepExecutionError, step
from tests.support.models import COST, INPUT_TOKENS, OUTPUT_TOKENS, counted_agent
from tests.support.steps import Give, RecordingTracer

STAYS = "a tracer stays where the run is"


async def test_a_run_and_each_step_have_a_span(executor: str) -> None:
    tracer = RecordingTracer()
    await Pipeline("demo", {"a": Give(), "b": Give()}, {"b": ["a"]}, executor=executor).execute(
        {}, None, tracer
    )
    assert tracer.spans == ["pipeline.demo", "step.a", "step.b"]
    assert tracer.ended == ["step.a", "step.b", "pipeline.demo"]
    assert tracer.failed == []


@pytest.mark.one_process(STAYS)
@pytest.mark.same_under_prefect
async def test_steps_get_the_very_tracer(executor: str) -> None:
    tracer, seen = RecordingTracer(), []

    @step
    async def look(ctx: StepContext[Any]) -> None:
        seen.append(ctx.tracer)

    await Pipeline("demo", {"a": look}, executor=executor).execute({}, None, tracer=tracer)
    assert seen == [tracer]


@pytest.mark.same_under_prefect
async def test_without_a_tracer_a_step_has_one_that_does_nothing(executor: str) -> None:
    @step
    async def look(ctx: StepContext[Any]) -> bool:
        return isinstance(ctx.tracer, NoOpTracer)

    assert (await Pipeline("demo", {"a": look}, executor=executor).execute({}, None)).output is True


@pytest.mark.one_process(STAYS)
async def test_an_agents_span_is_within_its_steps(executor: str) -> None:
    tracer, (agent, _) = RecordingTracer(), counted_agent()
    await Pipeline("demo", {"a": agent.as_step("one")}, executor=executor).execute({}, None, tracer)
    assert tracer.spans == ["pipeline.demo", "step.a", "fastroai.agent.run"]
    assert tracer.ended == ["fastroai.agent.run", "step.a", "pipeline.demo"]


@pytest.mark.same_under_prefect
async def test_each_attempt_has_a_span(executor: str) -> None:
    tracer = RecordingTracer()
    config = PipelineConfig(retries=1, retry_delay=0.0)
    pipeline = Pipeline(
        "demo", {"a": Give(RuntimeError("down"), 1)}, config=config, executor=executor
    )
    await pipeline.execute({}, None, tracer)
    assert tracer.spans == ["pipeline.demo", "step.a", "step.a"]
    assert tracer.failed == ["step.a"]


@pytest.mark.same_under_prefect
async def test_a_failure_shows_in_both_spans(executor: str) -> None:
    tracer = RecordingTracer()
    with pytest.raises(StepExecutionError):
        await Pipeline("demo", {"a": Give(ValueError("bad"))}, executor=executor).execute(
            {}, None, tracer
        )
    assert tracer.failed == ["step.a", "pipeline.demo"]


@pytest.mark.same_under_prefect
async def test_tracing_can_be_switched_off(executor: str) -> None:
    tracer, (agent, _) = RecordingTracer(), counted_agent()
    pipeline = Pipeline(
        "demo", {"a": agent.as_step("one")}, config=PipelineConfig(trace=False), executor=executor
    )
    assert (await pipeline.execute({}, None, tracer)).output == "answer"
    assert tracer.spans == []


@pytest.mark.same_under_prefect
async def test_a_tracer_derived_from_the_one_that_does_nothing_is_a_tracer(executor: str) -> None:
    class Derived(NoOpTracer):
        def __init__(self) -> None:
            self.names: list[str] = []

        def span(self, name: str, **attributes: Any) -> Any:
            self.names.append(name)
            return super().span(name, **attributes)

    tracer = Derived()
    await Pipeline("demo", {"a": Give()}, executor=executor).execute({}, None, tracer)
    assert tracer.names == ["pipeline.demo", "step.a"]


async def test_the_spans_of_a_run_and_its_steps_say_what_was_spent_and_not_what_was_replayed(
    executor: str,
) -> None:
    tracer, (agent, _) = RecordingTracer(), counted_agent()
    behind = Give(RuntimeError("once"), None)

    @step(retries=1, retry_delay=0.0)
    async def ask(ctx: StepContext[Any]) -> None:
        await ctx.run(agent, "one")
        await behind.execute(ctx)

    await Pipeline("demo", {"a": ask, "b": Give()}, {"b": ["a"]}, executor=executor).execute(
        {}, None, tracer
    )
    run, last_attempt = tracer.metrics["pipeline.demo"], tracer.metrics["step.a"]
    assert run == {
        "request_count": 1,
        "replayed_count": 1,
        "input_tokens": INPUT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "cost_microcents": COST,
    }
    assert (last_attempt["replayed_count"], last_attempt["cost_microcents"]) == (1, 0)
    if "fastroai.agent.run" in tracer.spans:  # else the agent was elsewhere, where no tracer is
        assert tracer.metrics["fastroai.agent.run"]["cost_microcents"] == 0
    assert "step.b" not in tracer.metrics
