"""One request is one entry, whichever models stand between an agent and the one that sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.concurrency import ConcurrencyLimit
from pydantic_ai.direct import model_request, model_request_stream, model_request_sync
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolReturn
from pydantic_ai.models import Model
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RequestUsage

from fastroai import FastroAgent, Pipeline, StepContext, step
from fastroai.fingerprint.steps import fingerprint
from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.model import meter_all_models
from fastroai.metering.scope import DispatchScope
from fastroai.metering.sending_methods import as_written
from fastroai.replay.journal import Journal
from fastroai.testing import ScriptedModel, ToolCall

HI: list[ModelMessage] = [ModelRequest.user_text_prompt("Hi")]
Entries = list[tuple[str | None, str | None, str]]


def booked(ledger: RequestRecorder) -> Entries:
    return [(e.agent, e.model_asked, e.state.value) for e in ledger.entries]


class Twice(WrapperModel):
    """Asks twice, and takes the second answer."""

    async def request(self, *args: Any) -> ModelResponse:
        await super().request(*args)
        return await super().request(*args)


class Checked(WrapperModel):
    """Has another model check what the wrapped one says."""

    def __init__(self, wrapped: Model, checker: Model) -> None:
        super().__init__(wrapped)
        self.checker = checker
        self.asked = 0

    async def request(self, *args: Any) -> ModelResponse:
        self.asked += 1
        await self.checker.request(*args)
        return await super().request(*args)


class Router(Model):
    """Sends nothing itself, and wraps nothing."""

    def __init__(self, *routes: Model) -> None:
        super().__init__()
        self.routes = routes

    model_name = "router"
    system = "router"

    async def request(self, *args: Any) -> ModelResponse:
        answers = await asyncio.gather(*(route.request(*args) for route in self.routes))
        return answers[0]

    def request_stream(self, *args: Any) -> Any:
        return self.routes[0].request_stream(*args)


class Own(Model):
    """Sends by itself what nobody sees leave, and may ask the model that it holds first."""

    def __init__(self, guard: Model, *, asks: bool = True) -> None:
        super().__init__()
        self.guard = guard
        self.asks = asks

    model_name = "gpt-5-mini"
    system = "acme"

    async def request(self, *args: Any) -> ModelResponse:
        if self.asks:
            await self.guard.request(*args)
        usage = RequestUsage(input_tokens=1000, output_tokens=77)
        return ModelResponse(parts=[TextPart("own")], usage=usage, model_name=self.model_name)


WRAPPED: dict[str, Callable[[Model], Model]] = {
    "itself": lambda model: model,
    "wrapper": WrapperModel,
    "fallback": lambda model: FallbackModel(model, ScriptedModel("other")),
    "instrumented": InstrumentedModel,
    "limited": lambda model: ConcurrencyLimitedModel(model, ConcurrencyLimit(max_running=1)),
    "wrapper of a fallback": lambda model: WrapperModel(FallbackModel(model)),
    "router": Router,
}


PARENTS: dict[str, Callable[..., Any]] = {
    "built": lambda model, tools: FastroAgent(model=model, toolsets=tools, name="outer"),
    "ready": lambda model, tools: FastroAgent(agent=Agent(model, toolsets=tools), name="outer"),
    "pydantic-ai's": lambda model, tools: Agent(model, toolsets=tools, name="outer"),
    "wrapped": lambda model, tools: FastroAgent(
        model=WrapperModel(model), toolsets=tools, name="outer"
    ),
}


async def runs_with_a_sub_agent(
    delegate: Callable[..., Any], *answers: Any, parent: Callable[..., Any] = PARENTS["built"]
) -> Entries:
    """The entries of an agent whose tool runs another one on its model."""
    ledger = RequestRecorder()
    model = ScriptedModel(ToolCall("ask"), *answers, "outer")

    async def ask(ctx: RunContext[Any]) -> str:
        return str(await delegate(ctx))

    outer = parent(model, [FunctionToolset([ask])])
    with DispatchScope(ledger):
        await outer.run("Hi")
    assert len(model.prompts) == len(ledger.entries)
    return booked(ledger)


GPT = "scripted:gpt-5-mini"
OUTER = ("outer", GPT, "charged")
INNER = ("inner", GPT, "charged")


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
class TestASubAgentOnTheModelOfItsCaller:
    async def test_of_pydantic_ai(self, wrapped: Callable[[Model], Model]) -> None:
        async def delegate(ctx: RunContext[Any]) -> str:
            return (await Agent(wrapped(ctx.model), name="inner").run("Hm?")).output

        for parent in PARENTS.values():
            found = await runs_with_a_sub_agent(delegate, "inner", parent=parent)
            assert found == [OUTER, INNER, OUTER]

    async def test_of_ours(self, wrapped: Callable[[Model], Model]) -> None:
        async def delegate(ctx: RunContext[Any]) -> str:
            inner: FastroAgent[str] = FastroAgent(model=wrapped(ctx.model), name="inner")
            response = await inner.run("Hm?")
            assert len(response.entries) == 1
            return response.output

        assert await runs_with_a_sub_agent(delegate, "inner") == [OUTER, INNER, OUTER]

    async def test_by_an_override(self, wrapped: Callable[[Model], Model]) -> None:
        inner = Agent("test", name="inner")

        async def delegate(ctx: RunContext[Any]) -> str:
            with inner.override(model=wrapped(ctx.model)):
                return (await inner.run("Hm?")).output

        assert await runs_with_a_sub_agent(delegate, "inner") == [OUTER, INNER, OUTER]

    async def test_by_an_argument(self, wrapped: Callable[[Model], Model]) -> None:
        async def delegate(ctx: RunContext[Any]) -> str:
            return (await Agent(name="inner").run("Hm?", model=wrapped(ctx.model))).output

        assert await runs_with_a_sub_agent(delegate, "inner") == [OUTER, INNER, OUTER]

    async def test_streamed(self, wrapped: Callable[[Model], Model]) -> None:
        async def delegate(ctx: RunContext[Any]) -> str:
            async with Agent(wrapped(ctx.model), name="inner").run_stream("Hm?") as stream:
                return str(await stream.get_output())

        assert await runs_with_a_sub_agent(delegate, "inner") == [OUTER, INNER, OUTER]


async def entries_of(model: Model) -> Entries:
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        await FastroAgent(model=model, name="a").run("Hi")
    return booked(ledger)


class TestAModelOfTheUsers:
    async def test_that_sends_twice(self) -> None:
        usage = RequestUsage(input_tokens=10, output_tokens=1)
        model = ScriptedModel("one", "two", usage=usage)
        assert await entries_of(Twice(model)) == [("a", GPT, "charged")] * 2

    async def test_that_asks_a_second_model(self) -> None:
        checked = Checked(ScriptedModel("yes"), ScriptedModel("fine", model_name="gpt-4o"))
        assert await entries_of(checked) == [
            ("a", "scripted:gpt-4o", "charged"),
            ("a", GPT, "charged"),
        ]
        assert checked.asked == 1

    async def test_that_asks_a_model_which_nothing_of_it_names(self) -> None:
        other = ScriptedModel("fine", model_name="gpt-4o")

        class Asks(WrapperModel):
            async def request(self, *args: Any) -> ModelResponse:
                await other.request(*args)
                return await super().request(*args)

        assert await entries_of(Asks(ScriptedModel("yes"))) == [
            ("a", "scripted:gpt-4o", "charged"),
            ("a", GPT, "charged"),
        ]

    async def test_that_asks_a_model_of_a_class_it_defines_meanwhile(self) -> None:
        class Asks(WrapperModel):
            async def request(self, *args: Any) -> ModelResponse:
                class Later(ScriptedModel):
                    async def request(self, *args: Any) -> ModelResponse:
                        return await super().request(*args)

                await Later("fine").request(*args)
                return await super().request(*args)

        assert len(await entries_of(Asks(ScriptedModel("yes")))) == 2

    async def test_that_asks_several_at_once(self) -> None:
        routes = [ScriptedModel("yes"), ScriptedModel("no", model_name="gpt-4o")]
        found = await entries_of(Router(*routes))
        assert sorted(model for _, model, _ in found) == [
            "scripted:gpt-4o",
            "scripted:gpt-5-mini",
        ]

    async def test_that_inherits_from_one_that_sends(self) -> None:
        class Judged(ScriptedModel):
            judge: Model

            async def request(self, *args: Any) -> ModelResponse:
                await self.judge.request(*args)
                first = await super().request(*args)
                await super().request(*args)
                return first

        model = Judged("yes", "no")
        model.judge = ScriptedModel("fine", model_name="gpt-4o")
        assert sorted(await entries_of(model)) == [
            ("a", "scripted:gpt-4o", "charged"),
            ("a", GPT, "charged"),
            ("a", GPT, "charged"),
        ]

    async def test_that_inherits_and_fails_behind_an_answer(self) -> None:
        class Picky(ScriptedModel):
            async def request(self, *args: Any) -> ModelResponse:
                await super().request(*args)
                raise ValueError("not that one")

        ledger = RequestRecorder()
        with DispatchScope(ledger), pytest.raises(ValueError, match="not that"):
            await FastroAgent(model=Picky("yes"), name="a").run("Hi")
        assert booked(ledger) == [("a", GPT, "charged")]

    async def test_that_inherits_and_sends_in_its_own_way(self) -> None:
        class Own(ScriptedModel):
            async def request(self, *args: Any) -> ModelResponse:
                return await self.answer(*args)

        assert len(await entries_of(Own("yes"))) == 1
        assert len(await entries_of(WrapperModel(Own("yes")))) == 1

    async def test_that_runs_an_agent_of_its_own(self) -> None:
        guard = FastroAgent(model=FallbackModel(ScriptedModel("fine")), name="guard")

        class Guarded(WrapperModel):
            async def request(self, *args: Any) -> ModelResponse:
                assert len((await guard.run("Is it?")).entries) == 1
                return await super().request(*args)

        assert await entries_of(Guarded(ScriptedModel("yes"))) == [
            ("guard", GPT, "charged"),
            ("a", GPT, "charged"),
        ]

    async def test_that_inherits_and_asks_its_base_at_once(self) -> None:
        class Best(ScriptedModel):
            async def request(self, *args: Any) -> ModelResponse:
                ask = super().request
                answers = await asyncio.gather(*(ask(*args) for _ in range(3)))
                return answers[-1]

        class BestOfBest(Best):
            async def request(self, *args: Any) -> ModelResponse:
                ask = super().request
                return (await asyncio.gather(ask(*args), ask(*args)))[0]

        assert await entries_of(Best("1", "2", "3")) == [("a", GPT, "charged")] * 3
        assert await entries_of(BestOfBest(*"123456")) == [("a", GPT, "charged")] * 6

    async def test_that_inherits_and_gives_up_what_its_base_is_at(self) -> None:
        class First(ScriptedModel):
            async def request(self, *args: Any) -> ModelResponse:
                ask = super().request
                tasks = [asyncio.create_task(ask(*args)) for _ in range(2)]
                done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                return done.pop().result()

        async def never(*_: Any) -> str:
            await asyncio.Event().wait()
            return "never"

        assert sorted(await entries_of(First("yes", never))) == [
            ("a", GPT, "charged"),
            ("a", GPT, "unsettled"),
        ]

    async def test_that_sends_by_itself_beside_one_that_it_holds(self) -> None:
        own = Own(ScriptedModel("fine", model_name="gpt-4o", repeat=True))
        assert await entries_of(own) == [
            ("a", "scripted:gpt-4o", "charged"),
            ("a", "acme:gpt-5-mini", "charged"),
        ]
        assert len(await entries_of(Router(own))) == 2
        assert len(await entries_of(WrapperModel(Router(own)))) == 2

    async def test_that_holds_one_and_does_not_ask_it(self) -> None:
        own = Own(ScriptedModel("fine"), asks=False)
        assert await entries_of(own) == [("a", "acme:gpt-5-mini", "charged")]

    async def test_that_gives_an_answer_again_which_another_one_gave(self) -> None:
        class Cached(Router):
            kept: ModelResponse | None = None

            async def request(self, *args: Any) -> ModelResponse:
                self.kept = self.kept or await super().request(*args)
                return self.kept

        model = Cached(ScriptedModel("yes", usage=RequestUsage(input_tokens=10, output_tokens=1)))
        assert len(await entries_of(model)) == 1
        assert await entries_of(model) == []

    async def test_that_merges_the_answers_of_others(self) -> None:
        class Merged(Router):
            async def request(self, *args: Any) -> ModelResponse:
                answers = [await route.request(*args) for route in self.routes]
                usage = answers[0].usage + answers[1].usage
                return ModelResponse(parts=answers[0].parts, usage=usage, model_name="merged")

        usage = RequestUsage(input_tokens=10, output_tokens=1)
        routes = [ScriptedModel("yes", usage=usage), ScriptedModel("no", usage=usage)]
        assert await entries_of(Merged(*routes)) == [("a", GPT, "charged")] * 2

    async def test_that_makes_the_one_it_asks(self) -> None:
        class Lazy(Model):
            model_name = "lazy"
            system = "lazy"

            async def request(self, *args: Any) -> ModelResponse:
                return await ScriptedModel("yes").request(*args)

        spend = [e for e in await entries_of(Lazy()) if e[2] != "refused"]
        assert spend == [(None, GPT, "charged")]

    async def test_that_refuses_before_it_asks(self) -> None:
        class Refuses(WrapperModel):
            async def request(self, *args: Any) -> ModelResponse:
                raise ValueError("not that")

        ledger = RequestRecorder()
        with DispatchScope(ledger), pytest.raises(ValueError, match="not that"):
            await FastroAgent(model=Refuses(ScriptedModel("yes"))).run("Hi")
        assert not ledger.entries


async def test_equal_questions_of_sub_agents_are_replayed_one_by_one() -> None:
    """Each answer is recorded once, so that none is given again for another question."""
    model = ScriptedModel(ToolCall("ask"), "one", "two", "outer")
    journal, heard = Journal("step"), []

    async def ask(ctx: RunContext[Any]) -> ToolReturn:
        inner = Agent(WrapperModel(ctx.model), name="inner")
        heard.append([(await inner.run("Hm?")).output for _ in range(2)])
        return ToolReturn("asked")  # not recorded: the tool runs again

    outer = FastroAgent(model=model, toolsets=[FunctionToolset([ask])], name="outer")
    states: list[str] = []
    for _ in range(2):
        journal.begin_attempt()
        ledger = RequestRecorder()
        with DispatchScope(ledger, journal=journal):
            assert (await outer.run("Hi")).output == "outer"
        states += [entry.state.value for entry in ledger.entries]
    assert heard == [["one", "two"]] * 2
    assert states == ["charged"] * 4 + ["replayed"] * 4


class TestAModelThatAStepAsksWithoutAnAgent:
    async def test_is_booked_and_not_asked_again_when_the_step_is_retried(self) -> None:
        model = ScriptedModel("one", "two", "three")
        tried: list[list[str]] = []

        @step(retries=1, retry_delay=0.0)
        async def ask(ctx: StepContext[None]) -> str:
            first = await model_request(FallbackModel(model), HI)
            second = await model_request(model, HI)
            async with model_request_stream(model, HI) as stream:
                streamed = "".join([str(event) for event in [e async for e in stream]])
            tried.append([first.text or "", second.text or "", stream.get().text or ""])
            if len(tried) == 1:
                raise RuntimeError("behind the answers")
            return streamed

        pipeline = Pipeline("direct", {"ask": ask}, executor="memory")
        result = await pipeline.execute({}, None)
        assert tried == [["one", "two", "three"]] * 2
        states = [(e.attribution.step_id, e.state.value) for e in result.entries]
        assert states == [("ask", "charged")] * 3 + [("ask", "replayed")] * 3

    async def test_in_a_plain_function(self) -> None:
        @step
        def ask(ctx: StepContext[None]) -> str:
            return model_request_sync(ScriptedModel("one"), HI).text or ""

        result = await Pipeline("direct", {"ask": ask}, executor="memory").execute({}, None)
        assert result.output == "one"
        assert [entry.state.value for entry in result.entries] == ["charged"]

    async def test_is_left_alone_outside_of_steps(self) -> None:
        assert (await model_request(ScriptedModel("one"), HI)).text == "one"


def test_a_class_of_models_keeps_its_fingerprint_when_its_requests_are_metered() -> None:
    meter_all_models()

    class Own(ScriptedModel):
        async def request(self, *args: Any) -> ModelResponse:
            return await super().request(*args)

    @step
    async def ask(ctx: StepContext[None]) -> object:
        return Own

    metered, method = fingerprint(ask), Own.request
    Own.request = as_written(method)
    assert Own.request is not method
    assert fingerprint(ask) == metered


class Awkward(Router):
    """Holds what breaks when it is iterated, as an array without dimensions does."""

    class Array:
        def __iter__(self) -> Any:
            raise TypeError("iteration over a 0-d array")

    def __init__(self, *routes: Model) -> None:
        super().__init__(*routes)
        self.weights = self.Array()


async def test_what_a_model_holds_is_not_iterated_unless_it_is_a_plain_container() -> None:
    model = Awkward(ScriptedModel("Hi", repeat=True))
    ledger = RequestRecorder()
    with DispatchScope(ledger):
        await Agent(model).run("q")
    assert [entry.state.value for entry in ledger.entries] == ["charged"]
