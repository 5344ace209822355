"""Mapped steps: the item is the unit of work, retry, failure and cost; the same on every
executor.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from fastroai import (
    CostBudgetExceededError,
    FastroAgent,
    MappedOutputs,
    MappedResults,
    Pipeline,
    PipelineConfig,
    PipelineValidationError,
    StepConfig,
    StepContext,
    StepExecutionError,
    step,
)
from fastroai.errors import MappedStepError
from fastroai.pipelines.map_state import watched_maps
from fastroai.testing import ScriptedModel, fixed_prices
from fastroai.usage import EntryState
from tests.conformance.third_party import AnyExecutor
from tests.support.models import COST, counted_agent
from tests.support.shared import SharedList
from tests.support.steps import Gauge, Signal

NOW = {"retry_delay": 0.0}


@step
async def shout(context: StepContext[Any]) -> str:
    return str(context.item).upper()


@step
async def exclaim(context: StepContext[Any]) -> str:
    return f"{context.item}!"


@step
async def words(context: StepContext[Any]) -> list[str]:
    return ["one", "two", "three", "two"]


def asking(agent: FastroAgent[Any], **config: Any) -> Any:
    # Items that a worker of a task runner has ask no models.
    @step(**({"remote": False} | config))
    async def ask(context: StepContext[Any]) -> str:
        answer: str = (await context.run(agent, f"about {context.item}")).output
        return answer

    return ask


def mapped(inner: Any, executor: AnyExecutor, **options: Any) -> Pipeline[Any, Any, Any]:
    """A pipeline of one step, mapped over the field `xs` of the input."""
    return Pipeline("mapped", {"each": inner.map(over="xs", **options)}, executor=executor)


async def failure(pipeline: Pipeline[Any, Any, Any], inputs: Any) -> Any:
    with pytest.raises(StepExecutionError) as caught:
        await pipeline.execute(inputs)
    return caught.value


class TestItems:
    async def test_a_step_is_run_for_each_element_of_a_dependency(
        self, any_executor: AnyExecutor
    ) -> None:
        pipeline = Pipeline(
            "p", {"words": words, "loud": shout.map(over="words")}, executor=any_executor
        )
        result = await pipeline.execute({})
        assert isinstance(result.output, MappedOutputs)
        assert result.output == ["ONE", "TWO", "THREE", "TWO"]
        assert (result.output[-1], result.output[1:3]) == ("TWO", ["TWO", "THREE"])

    @pytest.mark.same_under_prefect
    async def test_it_may_map_over_a_field_of_the_input(self, any_executor: AnyExecutor) -> None:
        result = await mapped(shout, any_executor).execute({"xs": ("a", "b")})
        assert result.output == ["A", "B"]

    @pytest.mark.same_under_prefect
    async def test_equal_elements_are_worked_on_once(self, any_executor: AnyExecutor) -> None:
        agent, model = counted_agent("yes")
        result = await mapped(asking(agent), any_executor).execute({"xs": ["a", "b", "a", "a"]})
        assert result.output == ["yes"] * 4
        assert len(model.prompts) == 2

    @pytest.mark.same_under_prefect
    async def test_an_empty_list_gives_an_empty_list(self, any_executor: AnyExecutor) -> None:
        result = await mapped(shout, any_executor).execute({"xs": []})
        assert result.output == []
        assert len(result.output) == 0

    @pytest.mark.same_under_prefect
    async def test_an_item_sees_its_key_its_deps_and_other_dependencies(
        self, any_executor: AnyExecutor
    ) -> None:
        @step
        async def tells(context: StepContext[Any]) -> list[Any]:
            prefix = context.get_dependency("prefix")
            return [context.item_key, context.deps, prefix, context.get_input("more")]

        @step
        async def prefix(context: StepContext[Any]) -> str:
            return ">"

        each = tells.map(over="xs", key="id")
        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p", {"prefix": prefix, "each": each}, {"each": ["prefix"]}, executor=any_executor
        )
        result = await pipeline.execute({"xs": [{"id": 7}, {"id": "b"}], "more": 1}, "deps")
        assert result.output == [["7", "deps", ">", 1], ["b", "deps", ">", 1]]
        assert list(result.output.keys) == ["7", "b"]

    @pytest.mark.same_under_prefect
    async def test_downstream_reads_the_outputs_as_a_list(self, any_executor: AnyExecutor) -> None:
        @step
        async def join(context: StepContext[Any]) -> str:
            return " ".join(context.get_dependency("loud"))

        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p",
            {"words": words, "loud": shout.map(over="words"), "join": join},
            {"join": ["loud"]},
            executor=any_executor,
        )
        assert (await pipeline.execute({})).output == "ONE TWO THREE TWO"

    @pytest.mark.same_under_prefect
    async def test_an_agent_step_maps_like_any_other(self, executor: str) -> None:
        agent, model = counted_agent("fine")
        each = agent.as_step(lambda context: f"Summarise {context.item}").map(over="xs")
        configs = {"each": StepConfig(remote=False)}
        pipeline = Pipeline("p", {"each": each}, step_configs=configs, executor=executor)
        result = await pipeline.execute({"xs": ["a", "b"]})
        assert result.output == ["fine", "fine"]
        assert sorted(model.prompts) == ["Summarise a", "Summarise b"]

    async def test_large_outputs_are_read_from_disk_unchanged(self, executor: str) -> None:
        @step
        async def grow(context: StepContext[Any]) -> dict[str, str]:
            return {"text": str(context.item) * 100_000}

        result = await mapped(grow, executor).execute({"xs": ["é", "b"]})
        assert [len(output["text"]) for output in result.output] == [100_000, 100_000]
        assert result.output[0]["text"][:2] == "éé"


class TestStreams:
    @pytest.mark.one_process("an iterator is of its process")
    async def test_an_asynchronous_iterator_is_never_held_whole(
        self, executor: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        given = 0
        most_ahead = 0
        done: list[int] = []

        @step
        async def read(context: StepContext[Any]) -> AsyncIterator[int]:
            async def numbers() -> AsyncIterator[int]:
                nonlocal given
                for number in range(50):
                    given += 1
                    yield number

            return numbers()

        @step
        async def double(context: StepContext[Any]) -> int:
            nonlocal most_ahead
            most_ahead = max(most_ahead, given - len(done))
            await asyncio.sleep(0)
            done.append(context.item)
            return 2 * int(context.item)

        pipeline = Pipeline(
            "p", {"read": read, "each": double.map(over="read", max_concurrency=4)},
            executor=executor,
        )  # fmt: skip
        assert (await pipeline.execute({})).output == [2 * number for number in range(50)]
        assert most_ahead <= 6
        assert [r for r in caplog.records if r.name.startswith("fastroai")] == []

    @pytest.mark.same_under_prefect
    async def test_what_an_iterator_holds_is_let_go_where_a_failure_ends_the_map(
        self, executor: str
    ) -> None:
        is_open = True

        async def numbers() -> AsyncIterator[int]:
            nonlocal is_open
            try:
                for number in range(100):
                    yield number
            finally:
                is_open = False

        @step
        async def fails(context: StepContext[Any]) -> int:
            raise RuntimeError("no")

        error = await failure(mapped(fails, executor, max_concurrency=1), {"xs": numbers()})
        assert "no" in str(error)
        assert not is_open

    @pytest.mark.same_under_prefect
    async def test_a_plain_iterator_is_read_as_it_is_needed(self, executor: str) -> None:
        def letters() -> Iterator[str]:
            yield from "abc"

        result = await mapped(shout, executor).execute({"xs": letters()})
        assert result.output == ["A", "B", "C"]

    @pytest.mark.one_process("items go to a worker together, and come back together")
    async def test_a_map_over_a_map_begins_with_its_first_item(self, executor: str) -> None:
        second_has_begun = Signal()

        @step
        async def first(context: StepContext[Any]) -> str:
            if context.item == "b":  # ends only once another item has got through both steps
                await asyncio.wait_for(second_has_begun.wait(), 60)
            return f"<{context.item}>"

        @step
        async def second(context: StepContext[Any]) -> str:
            second_has_begun.set()
            return f"({context.item})"

        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p", {"one": first.map(over="xs"), "two": second.map(over="one")}, executor=executor
        )
        result = await pipeline.execute({"xs": ["b", "a", "b", "c"]})
        assert result.output == ["(<b>)", "(<a>)", "(<b>)", "(<c>)"]
        assert list(result.output.keys) == list(result.step_outputs["one"].keys)

    @pytest.mark.same_under_prefect
    async def test_maps_of_maps_work_one_by_one_too(self, any_executor: AnyExecutor) -> None:
        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p",
            {"one": shout.map(over="xs"), "two": exclaim.map(over="one")},
            config=PipelineConfig(max_concurrency=1),
            executor=any_executor,
        )
        assert (await pipeline.execute({"xs": ["a", "b"]})).output == ["A!", "B!"]


class TestRules:
    @pytest.mark.parametrize("given", ["text", 7, None, {"a": 1}, {1, 2}])
    @pytest.mark.same_under_prefect
    async def test_what_is_no_list_is_refused(self, any_executor: AnyExecutor, given: Any) -> None:
        error = await failure(mapped(shout, any_executor), {"xs": given})
        assert isinstance(error.original_error, TypeError)
        assert type(given).__qualname__ in str(error.original_error)

    @pytest.mark.same_under_prefect
    async def test_two_elements_of_one_key_are_refused(self, any_executor: AnyExecutor) -> None:
        pipeline = mapped(shout, any_executor, key=lambda text: text[0])
        error = await failure(pipeline, {"xs": ["apple", "avocado"]})
        assert isinstance(error.original_error, ValueError)
        assert "'a'" in str(error.original_error)

    @pytest.mark.parametrize("key", [lambda _: None, lambda _: "", lambda _: "a\nb", "name"])
    async def test_a_key_that_is_none_is_refused(self, key: Any) -> None:
        error = await failure(mapped(shout, "memory", key=key), {"xs": [{"id": 1}]})
        assert isinstance(error.original_error, ValueError)
        assert "element 0 of 'xs'" in str(error.original_error)

    @pytest.mark.same_under_prefect
    async def test_nothing_to_map_over_is_an_error(self, any_executor: AnyExecutor) -> None:
        error = await failure(mapped(shout, any_executor), {"ys": []})
        assert "'xs'" in str(error.original_error)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_concurrency": 0},
            {"max_failures": -1},
            {"max_failures": 1.5},
            {"max_failures": True},
            {"key": 3},
            {"task_runs": "all"},
        ],
    )
    def test_values_that_can_not_be_meant_are_refused(self, options: dict[str, Any]) -> None:
        [value] = options.values()
        with pytest.raises(ValueError, match=repr(value)):
            shout.map(over="xs", **options)

    def test_a_mapped_step_is_not_mapped_again(self) -> None:
        with pytest.raises(ValueError, match="mapped again"):
            shout.map(over="xs").map(over="ys")

    def test_a_field_that_the_input_lacks_is_refused_when_the_pipeline_is_made(self) -> None:
        from pydantic import BaseModel

        class Documents(BaseModel):
            documents: list[str]

        with pytest.raises(PipelineValidationError, match=r"'xs'.*Documents"):
            Pipeline("p", {"each": shout.map(over="xs")}, input_type=Documents)

    @pytest.mark.same_under_prefect
    async def test_a_step_that_is_not_mapped_has_no_item(self, executor: str) -> None:
        error = await failure(Pipeline("p", {"s": shout}, executor=executor), {})
        assert "not mapped" in str(error)


class TestFailures:
    async def test_the_first_failure_ends_the_run(self, any_executor: AnyExecutor) -> None:
        @step
        async def odd(context: StepContext[Any]) -> int:
            if context.item == 2:
                raise RuntimeError("even")
            return int(context.item)

        error = await failure(mapped(odd, any_executor), {"xs": [1, 2]})
        original = error if isinstance(error, MappedStepError) else error.original_error
        assert isinstance(original, MappedStepError)
        assert [str(e) for e in original.item_errors.values()] == ["even"]
        assert str(original.original_error) == "even"

    @pytest.mark.same_under_prefect
    async def test_as_many_as_may_fail_are_left_out_of_the_results(
        self, any_executor: AnyExecutor
    ) -> None:
        @step
        async def odd(context: StepContext[Any]) -> int:
            await asyncio.sleep(0.04 / context.item)  # the last one ends first
            if context.item % 2 == 0:
                raise RuntimeError(f"{context.item} is even")
            return int(context.item)

        pipeline = mapped(odd, any_executor, key=str, max_failures=2)
        result = await pipeline.execute({"xs": [1, 2, 3, 4]})
        assert isinstance(result.output, MappedResults)
        assert dict(result.output) == {"1": 1, "3": 3}
        failed = [(key, str(error)) for key, error in result.output.errors.items()]
        assert failed == [("2", "2 is even"), ("4", "4 is even")]

    @pytest.mark.parametrize(("share", "may"), [(0.5, True), (0.25, False)])
    @pytest.mark.same_under_prefect
    async def test_a_share_of_them_may_fail(
        self, any_executor: AnyExecutor, share: float, may: bool
    ) -> None:
        @step
        async def odd(context: StepContext[Any]) -> int:
            if context.item % 2 == 0:
                raise RuntimeError("even")
            return int(context.item)

        pipeline = mapped(odd, any_executor, max_failures=share)
        if may:
            assert len((await pipeline.execute({"xs": [1, 2, 3, 4]})).output) == 2
        else:
            assert "even" in str(await failure(pipeline, {"xs": [1, 2, 3, 4]}))

    async def test_an_item_is_tried_again_by_itself(self, executor: str) -> None:
        tries = SharedList()

        @step(retries=2, **NOW)
        async def flaky(context: StepContext[Any]) -> int:
            tries.append(context.item)
            if context.item == "b" and context.attempt < 3:
                raise RuntimeError("not yet")
            return context.attempt

        assert (await mapped(flaky, executor).execute({"xs": ["a", "b"]})).output == [1, 3]
        assert Counter(tries) == {"a": 1, "b": 3}

    async def test_what_an_item_was_answered_is_not_asked_again(self, executor: str) -> None:
        agent, model = counted_agent("yes")

        @step(retries=1, remote=False, **NOW)
        async def flaky(context: StepContext[Any]) -> str:
            answer: str = (await context.run(agent, f"about {context.item}")).output
            if context.attempt == 1:
                raise RuntimeError("behind the answer")
            return answer

        result = await mapped(flaky, executor).execute({"xs": ["a", "b"]})
        assert result.output == ["yes", "yes"]
        assert len(model.prompts) == 2
        assert [e.state for e in result.entries].count(EntryState.REPLAYED) == 2

    @pytest.mark.same_under_prefect
    async def test_its_timeout_is_the_items(self, executor: str) -> None:
        @step(timeout=0.05)
        async def slow(context: StepContext[Any]) -> str:
            await asyncio.sleep(60 if context.item == "b" else 0)
            return str(context.item)

        result = await mapped(slow, executor, key=str, max_failures=1).execute({"xs": ["a", "b"]})
        assert dict(result.output) == {"a": "a"}
        assert isinstance(result.output.errors["b"], TimeoutError)
        assert "'b'" in str(result.output.errors["b"])

    @pytest.mark.same_under_prefect
    async def test_a_failed_map_has_its_dependents_skipped(self, executor: str) -> None:
        @step
        async def fails(context: StepContext[Any]) -> str:
            raise RuntimeError("no")

        pipeline: Pipeline[Any, Any, Any] = Pipeline(
            "p",
            {"one": fails.map(over="xs"), "two": exclaim.map(over="one"), "other": words},
            output_step="two",
            config=PipelineConfig(on_error="continue"),
            executor=executor,
        )
        result = await pipeline.execute({"xs": ["a"]})
        assert (set(result.errors), result.skipped) == ({"one"}, ("two",))
        assert "other" in result.step_outputs


class TestBooks:
    async def test_each_request_is_booked_to_its_item(self, any_executor: AnyExecutor) -> None:
        agent, _ = counted_agent("yes")
        result = await mapped(asking(agent), any_executor, key=str).execute({"xs": ["a", "b"]})
        assert sorted(str(e.attribution.item) for e in result.entries) == ["a", "b"]
        assert {e.attribution.step_id for e in result.entries} == {"each"}
        assert result.usage is not None
        assert result.usage.total_cost_usd == Decimal(2 * COST) / 1_000_000

    @pytest.mark.same_under_prefect
    async def test_a_budget_of_the_step_is_each_items(self, executor: str) -> None:
        agent, model = counted_agent("yes")

        @step(cost_budget=COST, remote=False)
        async def asks(context: StepContext[Any]) -> int:
            for number in range(2 if context.item == "b" else 1):
                await context.run(agent, f"{context.item} {number}")
            return 1

        result = await mapped(asks, executor, key=str, max_failures=1).execute(
            {"xs": ["a", "b", "c"]}
        )
        assert dict(result.output) == {"a": 1, "c": 1}
        assert isinstance(result.output.errors["b"], CostBudgetExceededError)
        assert len(model.prompts) == 3

    @pytest.mark.same_under_prefect
    async def test_no_more_are_under_way_than_may_be(self, executor: str) -> None:
        gauge = Gauge()
        count = gauge.step(lambda: asyncio.sleep(0.01))
        await mapped(count, executor, max_concurrency=3).execute({"xs": list(range(20))})
        assert gauge.peak == 3

    async def test_a_stream_that_has_a_length_says_how_many_items_there_will_be(self) -> None:
        class Letters:
            def __len__(self) -> int:
                return 3

            async def __aiter__(self) -> AsyncIterator[str]:
                for letter in "abc":
                    yield letter

        @step
        async def look(context: StepContext[Any]) -> int | None:
            return maps[0].total

        with watched_maps() as maps:
            result = await mapped(look, "memory").execute({"xs": Letters()})
        assert result.output == [3, 3, 3]

    @pytest.mark.same_under_prefect
    async def test_who_watches_sees_how_far_a_map_is(self, executor: str) -> None:
        @step
        async def fails(context: StepContext[Any]) -> str:
            if context.item == 1:
                raise RuntimeError("no")
            return "yes"

        with watched_maps() as maps:
            await mapped(fails, executor, max_failures=1).execute({"xs": [0, 1, 2, 2]})
        [progress] = maps
        assert (progress.total, progress.done, progress.failed) == (3, 2, 1)
        assert progress.in_words() == "2 of 3 items done (1 failed)"


class TestReuse:
    async def test_only_what_is_new_is_asked(self, prefect_api: str, tmp_path: Any) -> None:
        model = ScriptedModel("yes", repeat=True)
        agent = FastroAgent(model=model, cost_calculator=fixed_prices())
        ask = asking(agent, cache_policy="inputs", result_storage=str(tmp_path))
        pipeline = mapped(ask, "prefect")
        await pipeline.execute({"xs": ["a", "b", "c"], "when": 1})
        assert len(model.prompts) == 3
        result = await pipeline.execute({"xs": ["a", "new", "c"], "when": 2})
        assert (len(model.prompts), result.output) == (4, ["yes"] * 3)
        assert [e.state for e in result.entries].count(EntryState.REPLAYED) == 2

    async def test_an_item_that_read_another_input_is_run_again(
        self, prefect_api: str, tmp_path: Any
    ) -> None:
        runs: list[Any] = []

        @step(cache_policy="inputs", result_storage=str(tmp_path))
        async def reads(context: StepContext[Any]) -> str:
            runs.append(context.item)
            tone = context.get_input("tone") if context.item == "a" else "none"
            return f"{context.item} {tone}"

        pipeline = mapped(reads, "prefect")
        await pipeline.execute({"xs": ["a", "b"], "tone": "kind"})
        result = await pipeline.execute({"xs": ["a", "b"], "tone": "rude"})
        assert result.output == ["a rude", "b none"]
        assert sorted(runs) == ["a", "a", "b"]

    async def test_a_failed_run_goes_on_with_what_failed(
        self, prefect_api: str, tmp_path: Any
    ) -> None:
        agent, model = counted_agent("yes")
        broken = {"b"}

        @step(result_storage=str(tmp_path))
        async def asks(context: StepContext[Any]) -> str:
            answer: str = (await context.run(agent, f"about {context.item}")).output
            if context.item in broken:
                raise RuntimeError("behind the answer")
            return answer

        pipeline = mapped(asks, "prefect", max_concurrency=1)
        with pytest.raises(StepExecutionError):
            await pipeline.execute({"xs": ["a", "b", "c"]}, run_key="k")
        broken.clear()
        result = await pipeline.execute({"xs": ["a", "b", "c"]}, run_key="k")
        assert result.output == ["yes"] * 3
        assert len(model.prompts) == 3
