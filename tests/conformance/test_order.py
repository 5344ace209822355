"""What runs, in which order, how much at once, and what it sees: the same on every executor."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel, Field

from fastroai import BaseStep, InputValidationError, Pipeline, PipelineConfig, StepContext, step
from fastroai.executors import Executor
from tests.support.shared import SharedList
from tests.support.steps import PATIENCE, Gauge, Give, Join, Meeting, Signal, after, announcing

DIAMOND = {"b": ["a"], "c": ["a"], "d": ["b", "c"]}


class TestOutputs:
    async def test_a_diamond_runs_in_order(self, any_executor: Executor | str) -> None:
        steps = {"d": Join("b", "c"), "c": Join("a"), "b": Join("a"), "a": Give("A")}
        result = await Pipeline("diamond", steps, DIAMOND, executor=any_executor).execute({}, None)
        assert result.output == "d(b(A),c(A))"
        assert result.step_outputs == {"a": "A", "b": "b(A)", "c": "c(A)", "d": "d(b(A),c(A))"}
        assert (result.stopped_early, result.errors, result.skipped) == (False, {}, ())

    @pytest.mark.same_under_prefect
    async def test_a_falsy_output_is_an_output(self, any_executor: Executor | str) -> None:
        falsy = {"none": None, "zero": 0, "empty": "", "false": False, "list": [], "dict": {}}

        @step
        async def look(ctx: StepContext[Any]) -> list[Any]:
            assert all(ctx.get_dependency_or_none(name) == falsy[name] for name in falsy)
            return [ctx.get_dependency(name) for name in falsy]

        steps = {**{name: Give(output) for name, output in falsy.items()}, "look": look}
        pipeline = Pipeline("falsy", steps, {"look": list(falsy)}, executor=any_executor)
        result = await pipeline.execute({}, None)
        assert result.step_outputs == falsy | {"look": list(falsy.values())}

    @pytest.mark.one_process("an output is sent back, and one with a lock can't be")
    async def test_an_output_of_a_type_of_ones_own_is_handed_on(
        self, any_executor: Executor | str
    ) -> None:
        """No return type is declared, and none that could be stored: as a program for 0.6 may have
        it.
        """

        class Document:
            def __init__(self, text: str) -> None:
                self.text, self.lock = text, threading.Lock()

        @step
        async def read(ctx):  # type: ignore[no-untyped-def]
            return Document("text")

        @step
        async def size(ctx: StepContext[Any]) -> int:
            return len(ctx.get_dependency("read").text)

        pipeline = Pipeline(
            "own type", {"read": read, "size": size}, {"size": ["read"]}, executor=any_executor
        )
        result = await pipeline.execute({}, None)
        assert result.output == 4
        assert isinstance(result.step_outputs["read"], Document)

    @pytest.mark.parametrize("declared", [True, False])
    async def test_a_pydantic_output_is_handed_on_as_what_it_is(
        self, any_executor: Executor | str, declared: bool
    ) -> None:
        @step
        async def typed(ctx: StepContext[Any]) -> Person:
            return Person(name="Ada", age=36)

        @step
        async def untyped(ctx):  # type: ignore[no-untyped-def]
            return Person(name="Ada", age=36)

        @step
        async def look(ctx: StepContext[Any]) -> bool:
            return isinstance(ctx.get_dependency("a"), Person)

        steps = {"a": typed if declared else untyped, "b": look}
        result = await Pipeline("model", steps, {"b": ["a"]}, executor=any_executor).execute(
            {}, None
        )
        assert result.step_outputs == {"a": Person(name="Ada", age=36), "b": True}

    @pytest.mark.same_under_prefect
    async def test_each_step_runs_once(self, any_executor: Executor | str) -> None:
        steps = {"a": Give(1), "b": Give(2), "c": Give(3), "d": Give(4)}
        await Pipeline("once", dict(steps), DIAMOND, executor=any_executor).execute({}, None)
        assert [s.runs for s in steps.values()] == [1, 1, 1, 1]

    @pytest.mark.same_under_prefect
    async def test_the_output_step_gives_the_output(self, any_executor: Executor | str) -> None:
        pipeline = Pipeline(
            "p", {"a": Give(1), "b": Give(2)}, {"b": ["a"]}, "a", executor=any_executor
        )
        assert (await pipeline.execute({}, None)).output == 1

    async def test_a_run_has_an_id_of_its_own(self, executor: str) -> None:
        pipeline = Pipeline("p", {"a": Give(1)}, executor=executor)
        first, second = await pipeline.execute({}, None), await pipeline.execute({}, None)
        assert first.run_id
        assert second.run_id
        assert first.run_id != second.run_id


class TestOrder:
    async def test_independent_steps_run_at_once(self, executor: str) -> None:
        meeting = Meeting(3)

        @step
        async def meet(ctx: StepContext[Any]) -> None:
            await meeting.join()

        steps = {"a": meet, "b": meet, "c": meet, "end": Give("met")}
        pipeline = Pipeline("meeting", steps, {"end": ["a", "b", "c"]}, executor=executor)
        assert (await pipeline.execute({}, None)).output == "met"

    async def test_a_step_starts_when_its_own_dependencies_are_done(self, executor: str) -> None:
        """`slow` ends only when the step behind `quick` has run: a barrier between levels would
        never get there.
        """
        reached = Signal()
        steps = {
            "quick": Give("q"),
            "slow": after([reached], "s"),
            "behind quick": announcing(reached, "bq"),
            "end": Join("behind quick", "slow"),
        }
        dependencies = {"behind quick": ["quick"], "end": ["behind quick", "slow"]}
        result = await Pipeline("ready", steps, dependencies, executor=executor).execute({}, None)
        assert result.output == "end(bq,s)"

    @pytest.mark.same_under_prefect
    async def test_no_step_starts_before_its_dependencies_are_done(
        self, any_executor: Executor | str
    ) -> None:
        log = SharedList()

        class Log(BaseStep[Any, None]):
            async def execute(self, context: StepContext[Any]) -> None:
                log.append(("start", context.step_id))
                await asyncio.sleep(0)
                log.append(("end", context.step_id))

        await Pipeline("log", {s: Log() for s in "abcd"}, DIAMOND, executor=any_executor).execute(
            {}, None
        )
        for dependent, needed in DIAMOND.items():
            for dependency in needed:
                assert log.index(("end", dependency)) < log.index(("start", dependent))

    @pytest.mark.same_under_prefect
    async def test_no_more_steps_run_at_once_than_allowed(self, executor: str) -> None:
        gauge, pair = Gauge(), Meeting(2)
        steps = {f"s{i}": gauge.step(pair.join) for i in range(6)}
        config = PipelineConfig(max_concurrency=2)
        pipeline = Pipeline("narrow", steps, config=config, output_step="s0", executor=executor)
        result = await pipeline.execute({}, None)
        assert len(result.step_outputs) == 6
        assert gauge.peak == 2

    @pytest.mark.same_under_prefect
    async def test_one_at_a_time_is_a_limit_too(self, executor: str) -> None:
        gauge = Gauge()
        steps = {f"s{i}": gauge.step(lambda: asyncio.sleep(0)) for i in range(4)}
        pipeline = Pipeline(
            "single",
            steps,
            config=PipelineConfig(max_concurrency=1),
            output_step="s0",
            executor=executor,
        )
        await pipeline.execute({}, None)
        assert gauge.peak == 1

    @pytest.mark.one_process("which of its threads runs a step is nothing to another process")
    async def test_a_plain_function_leaves_the_event_loop_free(self, executor: str) -> None:
        """It waits in its thread for a step that can only run on the loop."""
        released, loops_thread = threading.Event(), threading.get_ident()

        @step
        def wait(ctx: StepContext[Any]) -> tuple[bool, bool]:
            return released.wait(PATIENCE), threading.get_ident() != loops_thread

        @step
        async def release(ctx: StepContext[Any]) -> None:
            released.set()

        pipeline = Pipeline(
            "threads", {"wait": wait, "release": release}, output_step="wait", executor=executor
        )
        assert tuple((await pipeline.execute({}, None)).output) == (True, True)

    async def test_one_pipeline_runs_many_times_at_once(self, executor: str) -> None:
        meeting = Meeting(4)

        @step
        async def meet(ctx: StepContext[Any]) -> Any:
            await meeting.join()
            return ctx.get_input("n")

        pipeline = Pipeline("many", {"a": meet, "b": Join("a")}, {"b": ["a"]}, executor=executor)
        results = await asyncio.gather(*(pipeline.execute({"n": n}, None) for n in range(4)))
        assert [r.output for r in results] == [f"b({n})" for n in range(4)]
        assert len({r.run_id for r in results}) == 4


class TestVisibility:
    @pytest.mark.one_process("deps are made by a factory where the step is")
    async def test_deps_reach_the_steps_as_they_are(self, any_executor: Executor | str) -> None:
        class Client:
            """Neither picklable nor hashable nor JSON."""

            __hash__ = None  # type: ignore[assignment]

            def __init__(self) -> None:
                self.lock = threading.Lock()

        seen: list[Any] = []

        @step
        async def look(ctx: StepContext[Client]) -> None:
            seen.append(ctx.deps)

        @step
        def look_in_a_thread(ctx: StepContext[Client]) -> None:
            seen.append(ctx.deps)

        client = Client()
        pipeline = Pipeline(
            "deps", {"a": look, "b": look_in_a_thread}, {"b": ["a"]}, executor=any_executor
        )
        await pipeline.execute({}, client)
        assert [s is client for s in seen] == [True, True]

    async def test_only_declared_dependencies_are_visible(
        self, any_executor: Executor | str
    ) -> None:
        @step
        async def look(ctx: StepContext[Any]) -> list[Any]:
            with pytest.raises(ValueError, match="not a dependency"):
                ctx.get_dependency("a")
            return [ctx.get_dependency_or_none("a"), ctx.get_dependency("b")]

        steps = {"a": Give(1), "b": Give(2), "c": look}
        dependencies = {"b": ["a"], "c": ["b"]}
        pipeline = Pipeline("chain", steps, dependencies, executor=any_executor)
        assert list((await pipeline.execute({}, None)).output) == [None, 2]

    @pytest.mark.same_under_prefect
    async def test_inputs_are_read_by_key(self, any_executor: Executor | str) -> None:
        @step
        async def read(ctx: StepContext[Any]) -> list[Any]:
            return [ctx.get_input("a"), ctx.get_input("b", "default"), ctx.get_input("c")]

        result = await Pipeline("inputs", {"read": read}, executor=any_executor).execute(
            {"a": {"deep": [1]}}, None
        )
        assert result.output == [{"deep": [1]}, "default", None]

    @pytest.mark.parametrize("data", ["text", 7, None, ["a"]])
    @pytest.mark.same_under_prefect
    async def test_an_input_that_is_no_dict_becomes_data(
        self, any_executor: Executor | str, data: Any
    ) -> None:
        @step
        async def read(ctx: StepContext[Any]) -> Any:
            return ctx.get_input("data", "missing")

        assert (
            await Pipeline("data", {"read": read}, executor=any_executor).execute(data, None)
        ).output == data

    async def test_a_large_input_is_no_problem(self, executor: str) -> None:
        @step
        async def size(ctx: StepContext[Any]) -> int:
            return len(ctx.get_input("data"))

        assert (
            await Pipeline("large", {"s": size}, executor=executor).execute("x" * 2_000_000, None)
        ).output == 2_000_000


class Person(BaseModel):
    """What is in the model but not in the input has its default."""

    name: str
    age: int = Field(default=30, ge=0)


class TestInputType:
    @staticmethod
    def pipeline(executor: Executor | str, probe: BaseStep[Any, Any]) -> Pipeline[Any, Any, Any]:
        return Pipeline("typed", {"probe": probe}, input_type=Person, executor=executor)

    @pytest.mark.parametrize("given", [{"name": "Ada", "age": "36"}, Person(name="Ada", age=36)])
    @pytest.mark.same_under_prefect
    async def test_steps_read_the_models_fields(
        self, any_executor: Executor | str, given: Any
    ) -> None:
        @step
        async def read(ctx: StepContext[Any]) -> list[Any]:
            return [ctx.get_input("name"), ctx.get_input("age"), ctx.get_input("other")]

        assert (await self.pipeline(any_executor, read).execute(given, None)).output == [
            "Ada",
            36,
            None,
        ]

    @pytest.mark.same_under_prefect
    async def test_defaults_of_the_model_are_filled_in(self, any_executor: Executor | str) -> None:
        @step
        async def read(ctx: StepContext[Any]) -> Any:
            return ctx.get_input("age")

        assert (await self.pipeline(any_executor, read).execute({"name": "Ada"}, None)).output == 30

    @pytest.mark.parametrize(
        "given", [{"age": 1}, {"name": "Ada", "age": -1}, {"name": ["Ada"]}, "Ada", None]
    )
    @pytest.mark.same_under_prefect
    async def test_an_input_that_does_not_fit_is_refused_before_any_step(
        self, any_executor: Executor | str, given: Any
    ) -> None:
        probe = Give(1)
        with pytest.raises(InputValidationError) as caught:
            await self.pipeline(any_executor, probe).execute(given, None)
        assert probe.runs == 0
        assert "typed" in str(caught.value)
        assert "Person" in str(caught.value)

    @pytest.mark.same_under_prefect
    async def test_the_refusal_names_the_field(self, executor: str) -> None:
        with pytest.raises(InputValidationError, match="age"):
            await self.pipeline(executor, Give(1)).execute({"name": "Ada", "age": "old"}, None)

    def test_an_input_type_that_is_no_model_is_refused(self) -> None:
        from fastroai import PipelineValidationError

        with pytest.raises(PipelineValidationError, match="input_type"):
            Pipeline("typed", {"a": Give()}, input_type=dict)  # type: ignore[arg-type]
