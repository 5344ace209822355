"""What a provider invoices and what the ledger's database says agree, line by line, whatever
happens to a run.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from fastroai import BaseStep, StepContext, step
from fastroai.usage import EntryState
from tests.acceptance.books import DIED, HUNG, LEFT, NOT_PAID, PAID, Books
from tests.support.provider import KEY, Answer, Die, Hang, Refuse
from tests.support.provider_process import ProviderProcess


class City(BaseModel):
    name: str


RESPONSES, CHAT, PREFECT = ("memory", "openai"), ("memory", "openai-chat"), ("prefect", "openai")


def on(*ways: tuple[str, str]) -> pytest.MarkDecorator:
    """The ways on which a test is run each time; on the others it is run with those that take long.

    What differs between the two APIs is below the executors, and what differs between the executors
    is around whole steps: a test that is about neither needs one way.
    """
    params = [
        pytest.param(way, id="-".join(way), marks=() if way in ways else pytest.mark.long)
        for way in (RESPONSES, CHAT, PREFECT)
    ]
    return pytest.mark.parametrize("books", params, indirect=True)


@pytest.fixture
def books(
    request: pytest.FixtureRequest,
    provider: ProviderProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Books:
    return _books(request, provider, f"sqlite:///{tmp_path / 'ledger.db'}", monkeypatch)


@pytest.fixture(params=[PREFECT, pytest.param(RESPONSES, marks=pytest.mark.long)], ids="-".join)
def books_on_postgres(
    request: pytest.FixtureRequest,
    provider: ProviderProcess,
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: str,
) -> Books:
    return _books(request, provider, postgres_url, monkeypatch)


def _books(
    request: pytest.FixtureRequest,
    provider: ProviderProcess,
    ledger_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Books:
    executor, api = request.param
    if executor == "prefect":
        request.getfixturevalue("prefect_api")
    monkeypatch.setenv("FASTROAI_LEDGER_URL", ledger_url)
    return Books(provider, api, executor, ledger_url)


def streaming(
    agent: Any, message: str, *, leave_after: int | None = None
) -> BaseStep[Any, list[str]]:
    """A step that reads an answer as it comes, and may leave after some pieces."""

    @step
    async def stream(ctx: StepContext[Any]) -> list[str]:
        pieces: list[str] = []
        async with aclosing(agent.run_stream(message)) as chunks:
            async for chunk in chunks:
                pieces += [chunk.content] if chunk.content else []
                if len(pieces) == leave_after:
                    break
        return pieces

    return stream


@on(RESPONSES, CHAT, PREFECT)
async def test_a_plain_answer(books: Books) -> None:
    books.provider.script(
        "Hi", Answer("Hello!", input_tokens=1_000_003, output_tokens=7, cached_tokens=999_999)
    )
    result = await books.run({"ask": books.agent().as_step("ask: Hi")})
    assert result.output == "Hello!"
    assert await books.agree() == [PAID]


@on(RESPONSES, CHAT, PREFECT)
async def test_a_tool_loop(books: Books) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    sums = [Answer(tool="add", args={"a": n, "b": 1}, input_tokens=100 + n) for n in range(3)]
    books.provider.script("count", *sums, Answer("3", input_tokens=333))
    result = await books.run(
        {"count": books.agent(toolsets=[FunctionToolset([add])]).as_step("count: to three")}
    )
    assert result.output == "3"
    assert await books.agree() == [PAID] * 4


@on(RESPONSES, CHAT)
async def test_an_output_that_must_be_asked_for_twice(books: Books) -> None:
    wrong = Answer(tool="final_result", args={"nom": "Oslo"})
    books.provider.script(
        "city", wrong, Answer(tool="final_result", args={"name": "Oslo"}, output_tokens=31)
    )
    result = await books.run({"city": books.agent(output_type=City).as_step("city: which?")})
    assert result.output == City(name="Oslo")
    assert await books.agree() == [PAID] * 2


@on(RESPONSES, CHAT)
async def test_a_stream_to_its_end(books: Books) -> None:
    books.provider.script("tell", Refuse(429), Answer("one two three", cached_tokens=11))
    result = await books.run({"tell": streaming(books.agent(), "tell: all")})
    assert result.output == ["one", " two", " three"]
    assert await books.agree() == [NOT_PAID, PAID]


@on(RESPONSES, CHAT)
async def test_a_stream_that_is_left(books: Books) -> None:
    books.provider.script("tell", Answer("one two three", left_after=1))
    result = await books.run({"tell": streaming(books.agent(), "tell: all", leave_after=1)})
    assert result.output == ["one"]
    assert await books.agree() == [LEFT]


@on(RESPONSES, CHAT, PREFECT)
async def test_a_stream_that_breaks_off_and_is_asked_for_again(books: Books) -> None:
    books.provider.script("tell", Die(), Answer("one two three"))
    result = await books.run({"tell": streaming(books.agent(), "tell: all")}, retries=1)
    assert result.output == ["one", " two", " three"]
    assert await books.agree() == [DIED, PAID]


@on(RESPONSES)
async def test_a_request_that_is_not_answered_in_time(books: Books) -> None:
    books.provider.script("wait", Hang())
    result = await books.run({"wait": books.agent(timeout=1).as_step("wait: for it")})
    assert result.output is None
    assert await books.agree() == [HUNG]


@on(RESPONSES)
async def test_an_answer_that_comes_too_late(books: Books) -> None:
    books.provider.script("wait", Answer("too late", left_after=0), Answer("in time"))
    agent = books.agent(timeout=1)
    result = await books.run({"wait": agent.as_step("wait: for it")}, retries=1)
    assert result.output == "in time"
    assert await books.agree() == [LEFT, PAID]


@on(RESPONSES)
async def test_a_step_whose_time_is_up_is_tried_again(books: Books) -> None:
    books.provider.script("wait", Answer("first"), Hang(), Answer("second"))
    agent = books.agent()

    @step(timeout=2, retries=1, retry_delay=0.0)
    async def two(ctx: StepContext[Any]) -> list[str]:
        return [(await ctx.run(agent, f"wait: {number}")).output for number in range(2)]

    result = await books.run({"wait": two})
    assert result.output == ["first", "second"]
    # The call that had succeeded is taken from the journal.
    assert [e.state for e in await books.entries() if e.state is EntryState.REPLAYED] == [
        EntryState.REPLAYED
    ]
    assert await books.agree() == [PAID, HUNG, PAID]


@on(RESPONSES, PREFECT)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_run_that_is_cancelled(books: Books, streamed: bool) -> None:
    books.provider.script("ask", Answer("fine"))
    books.provider.script("wait", Hang())
    agent = books.agent()

    @step
    async def two(ctx: StepContext[Any]) -> None:
        await ctx.run(agent, "both: ask")
        if streamed:
            [_ async for _ in agent.run_stream("both: wait")]
        else:
            await ctx.run(agent, "both: wait")

    await books.run_until_it_hangs({"both": two})
    assert await books.agree() == [PAID, HUNG]


@on(RESPONSES, CHAT)
async def test_refusals_before_an_answer(books: Books) -> None:
    books.provider.script("busy", Refuse(429), Refuse(500), Answer("at last"))
    result = await books.run({"busy": books.agent().as_step("busy: now?")})
    assert result.output == "at last"
    assert await books.agree() == [NOT_PAID, NOT_PAID, PAID]


@on(RESPONSES)
async def test_refusals_to_the_end_of_each_attempt(books: Books) -> None:
    books.provider.script("busy", Refuse(503))
    result = await books.run({"busy": books.agent(max_retries=2).as_step("busy: now?")}, retries=1)
    assert result.output is None
    assert [e.attribution.attempt for e in result.entries] == [1, 1, 1, 2, 2, 2]
    assert await books.agree() == [NOT_PAID] * 6


@on(RESPONSES, CHAT)
async def test_what_the_sdk_of_a_ready_agent_would_send_again_by_itself(books: Books) -> None:
    kind: Any = OpenAIResponsesModel if books.api == "openai" else OpenAIChatModel
    client = OpenAIProvider(base_url=books.provider.base_url, api_key=KEY)
    assert client.client.max_retries == 2
    own = Agent(kind("gpt-5-mini", provider=client))
    books.provider.script("busy", Refuse(500), Refuse(429), Answer("at last"))
    result = await books.run({"busy": books.ready(own).as_step("busy: now?")})
    assert result.output == "at last"
    assert await books.agree() == [NOT_PAID, NOT_PAID, PAID]


@on(RESPONSES)
async def test_each_member_of_a_fallback_has_its_own_entry(books: Books, tmp_path: Path) -> None:
    kind: Any = OpenAIResponsesModel if books.api == "openai" else OpenAIChatModel
    with ProviderProcess(tmp_path / "other.jsonl") as other:
        places = [
            (books.provider, "gpt-5-mini"),
            (books.provider, "gpt-4.1-mini"),
            (other, "gpt-5-mini"),
        ]
        members = [
            kind(name, provider=OpenAIProvider(base_url=at.base_url, api_key=KEY))
            for at, name in places
        ]
        books.provider.script("ask", Refuse(500), Refuse(529), Refuse(429), Refuse(503))
        other.script("ask", Answer("from the other one", input_tokens=77))
        fallback = books.ready(Agent(FallbackModel(*members)), max_retries=1)
        result = await books.run({"ask": fallback.as_step("ask: somebody")})
        assert result.output == "from the other one"
        assert await books.agree(other) == [NOT_PAID] * 4 + [PAID]
    hosts = [entry.provider_host for entry in result.entries]
    assert hosts == [books.provider.host] * 4 + [other.host]
    assert [line.asked for line in books.provider.lines] == ["gpt-5-mini"] * 2 + [
        "gpt-4.1-mini"
    ] * 2


class AskingTwice(WrapperModel):
    """Has another model say something first, and asks its own one twice."""

    def __init__(self, wrapped: Any, other: Any) -> None:
        super().__init__(wrapped)
        self.other = other

    async def request(self, *args: Any) -> ModelResponse:
        await self.other.request(*args)
        await super().request(*args)
        return await super().request(*args)


@on(RESPONSES, CHAT)
async def test_models_of_the_users_that_ask_several_times(books: Books) -> None:
    kind: Any = OpenAIResponsesModel if books.api == "openai" else OpenAIChatModel
    provider = OpenAIProvider(base_url=books.provider.base_url, api_key=KEY)
    mini, other = (kind(name, provider=provider) for name in ("gpt-5-mini", "gpt-4.1-mini"))

    class Inheriting(kind):
        async def request(self, *args: Any) -> ModelResponse:
            await super().request(*args)
            return await super().request(*args)

    asked = [Answer(str(tokens), input_tokens=tokens) for tokens in range(3, 8)]
    books.provider.script("ask", asked[0], Refuse(429), *asked[1:])
    first = books.ready(Agent(AskingTwice(mini, other)), max_retries=1)
    second = books.ready(Agent(Inheriting("gpt-5-mini", provider=provider)))
    steps = {"first": first.as_step("first: ask"), "second": second.as_step("second: ask")}
    result = await books.run(steps, {"second": ["first"]})
    assert result.step_outputs == {"first": "5", "second": "7"}
    assert await books.agree() == [PAID, NOT_PAID, PAID, PAID, PAID, PAID]
    assert [line.asked for line in books.provider.lines[:3]] == ["gpt-4.1-mini"] + [
        "gpt-5-mini"
    ] * 2


@on(RESPONSES)
async def test_agents_on_the_model_of_their_caller(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({books.provider.host: "openai"}))
    books = books.at_list_prices()
    stand_in = Agent("test", name="overridden")

    async def ask(ctx: RunContext[Any]) -> str:
        limited = ConcurrencyLimitedModel(FallbackModel(ctx.model), limiter=1)
        answers = [
            await Agent(ctx.model, name="plain").run("outer: inner"),
            await Agent(limited, name="wrapped").run("outer: inner"),
            await books.ready(Agent(InstrumentedModel(ctx.model)), name="ours").run("outer: inner"),
        ]
        with stand_in.override(model=ctx.model):
            answers.append(await stand_in.run("outer: inner"))
        return " ".join(answer.output for answer in answers)

    outer = books.agent(name="outer", toolsets=[FunctionToolset([ask])])
    books.provider.script("inner", Answer("one", input_tokens=10), Refuse(429), Answer("two"))
    books.provider.script("outer", Answer(tool="ask"), Answer("done"))
    result = await books.run({"outer": outer.as_step("outer: do it")})
    assert result.output == "done"
    assert await books.agree() == [PAID, PAID, NOT_PAID, PAID, PAID, PAID, PAID]
    assert [entry.agent for entry in result.entries] == [
        "outer",
        "plain",
        "wrapped",
        "wrapped",
        "ours",
        "overridden",
        "outer",
    ]


@on(RESPONSES)
async def test_agents_called_by_the_tools_of_others(books: Books) -> None:
    inner = books.agent("gpt-4.1-mini", name="inner")

    async def ask_a_colleague(question: str) -> str:
        return str((await inner.run(f"outer: inner: {question}")).output)

    calls = [
        Answer(tool="ask_a_colleague", args={"question": question}) for question in ("why", "how")
    ]
    books.provider.script(
        "inner", Answer("because", input_tokens=10), Refuse(429), Answer("so", input_tokens=11)
    )
    books.provider.script("outer", *calls, Answer("done"))
    outer = books.agent(name="outer", toolsets=[FunctionToolset([ask_a_colleague])])
    result = await books.run({"outer": outer.as_step("outer: do it")})
    assert result.output == "done"
    assert await books.agree() == [PAID, PAID, PAID, NOT_PAID, PAID, PAID]
    assert [entry.agent for entry in result.entries] == [
        "outer",
        "inner",
        "outer",
        "inner",
        "inner",
        "outer",
    ]


@on(RESPONSES, PREFECT)
async def test_agents_of_pydantic_ai_that_steps_and_tools_run_by_themselves(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({books.provider.host: "openai"}))
    books = books.at_list_prices()
    inner = Agent(f"{books.api}:gpt-4.1-mini", name="inner")
    outer = Agent(f"{books.api}:gpt-5-mini", name="outer")
    attempts: list[int] = []

    @outer.tool
    async def ask_a_colleague(ctx: RunContext[None], question: str) -> str:
        return (await inner.run(f"by_itself: inner: {question}", usage=ctx.usage)).output

    @step(retries=1)
    async def by_itself(ctx: StepContext[Any]) -> str:
        answer = (await outer.run("by_itself: outer: do it")).output
        async with inner.run_stream("by_itself: told") as told:
            answer += "".join([piece async for piece in told.stream_text(delta=True)])
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise RuntimeError("behind the answers")
        return answer

    books.provider.script("inner:", Refuse(429), Answer("because", input_tokens=10))
    books.provider.script(
        "outer:", Answer(tool="ask_a_colleague", args={"question": "why"}), Answer("done, ")
    )
    books.provider.script("told", Answer("one two"))
    asked = books.agent(name="asked", toolsets=[FunctionToolset([by_pydantic_ai(inner)])])
    books.provider.script(
        "asked: how", Answer(tool="delegate", args={"question": "how"}), Answer("so")
    )
    result = await books.run(
        {"by_itself": by_itself, "asked": asked.as_step("asked: how")}, {"asked": ["by_itself"]}
    )
    assert result.step_outputs == {"by_itself": "done, one two", "asked": "so"}
    paid = [entry for entry in result.entries if entry.state is not EntryState.REPLAYED]
    assert [entry.agent for entry in paid] == [
        "outer",
        "inner",
        "inner",
        "outer",
        "inner",
        "asked",
        "inner",
        "asked",
    ]
    assert [entry.attribution.step_id for entry in paid] == ["by_itself"] * 5 + ["asked"] * 3
    replayed = [entry.agent for entry in result.entries if entry.state is EntryState.REPLAYED]
    assert replayed == ["outer", "outer", "inner"]  # the tool's result is in the journal
    assert (await books.agree()).count(PAID) == 7


def by_pydantic_ai(agent: Agent[None, str]) -> Any:
    """A tool that runs an agent."""

    async def delegate(question: str) -> str:
        return (await agent.run(f"asked: inner: {question}")).output

    return delegate


@on(RESPONSES, PREFECT)
async def test_a_step_that_fails_behind_an_answer_does_not_ask_again(books: Books) -> None:
    agent, attempts = books.agent(), []

    @step(retries=1, retry_delay=0.0)
    async def fails_once(ctx: StepContext[Any]) -> str:
        answer = await ctx.run(agent, "once: please")
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise RuntimeError("behind the answer")
        return answer.output

    result = await books.run({"once": fails_once})
    assert [entry.state for entry in result.entries] == [EntryState.CHARGED, EntryState.REPLAYED]
    assert await books.agree() == [PAID]


@on(RESPONSES)
async def test_a_run_that_is_executed_again_under_its_key_until_it_ends(books: Books) -> None:
    agent = books.agent()

    @step
    async def both(ctx: StepContext[Any]) -> list[str]:
        return [
            (await ctx.run(agent, f"both: {which} half")).output for which in ("first", "second")
        ]

    steps = {"both": both, "then": agent.as_step("then: the rest")}
    books.provider.script("first", Answer("one", input_tokens=201))
    books.provider.script("second", Refuse(400), Answer("two", input_tokens=302))
    books.provider.script("rest", Refuse(400), Answer("done"))
    runs = [await books.run(steps, {"then": ["both"]}) for _ in range(3)]
    assert [run.output for run in runs] == [None, None, "done"]
    outcomes = await books.agree()
    if books.executor == "memory":
        assert outcomes == [PAID, NOT_PAID, PAID, PAID, NOT_PAID, PAID, PAID, PAID]
        return
    assert outcomes == [PAID, NOT_PAID, PAID, NOT_PAID, PAID]
    # Each answer is used again as often as it is needed, and each time by a reference to the one
    # entry that paid.
    assert [[e.state.value for e in run.entries] for run in runs] == [
        ["charged", "refused"],
        ["replayed", "charged", "refused"],
        ["replayed", "replayed", "charged"],
    ]
    first, second = runs[0].entries[0], runs[1].entries[1]
    assert {e.replay_of for e in runs[2].entries[:2]} == {first.id, second.id}
    assert runs[2].usage is not None
    assert runs[2].usage.total_replayed_cost_usd == (first.cost_usd or 0) + (second.cost_usd or 0)


@on(RESPONSES)
async def test_fifty_steps_at_once(books: Books) -> None:
    await fifty_steps_agree(books)


async def fifty_steps_agree(books: Books) -> None:
    agent = books.agent()
    names = [f"s{number}" for number in range(50)]
    for number, name in enumerate(names):
        answer = Answer(input_tokens=100 + number, output_tokens=number + 1, cached_tokens=number)
        refusals = (Refuse(429), Refuse(500))[: number % 3]
        books.provider.script(f"{name}:", *refusals, answer)
    result = await books.run({name: agent.as_step(f"{name}: Hi") for name in names})
    outcomes = await books.agree()
    assert len(result.step_outputs) == 50
    assert outcomes.count(PAID) == 50
    assert outcomes.count(NOT_PAID) == 49


@on(RESPONSES)
async def test_at_list_prices_where_the_provider_is_said_to_bill_as_openai(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTROAI_PROVIDER_HOSTS", json.dumps({books.provider.host: "openai"}))
    books = books.at_list_prices()
    tokens = {"input_tokens": 1_234_567, "cached_tokens": 7_891, "output_tokens": 333}
    calls = [Answer(tool="ask_a_colleague", args={"question": str(n)}, **tokens) for n in range(2)]
    books.provider.script(
        "inner", Refuse(429), Answer("because", input_tokens=3, cached_tokens=1, output_tokens=1)
    )
    books.provider.script("outer", *calls, Answer("done", input_tokens=999))
    books.provider.script("told", Answer("one two three", **tokens))
    books.provider.script("left", Answer("one two three", left_after=1))
    inner = books.agent("gpt-4.1-mini")

    async def ask_a_colleague(question: str) -> str:
        return str((await inner.run(f"outer: inner: {question}")).output)

    outer = books.agent(toolsets=[FunctionToolset([ask_a_colleague])])
    steps = {
        "left": streaming(books.agent(), "left: soon", leave_after=1),
        "told": streaming(inner, "told: all"),
        "outer": outer.as_step("outer: do it"),
    }
    result = await books.run(steps)
    assert result.output == "done"
    outcomes = await books.agree()
    assert (outcomes.count(PAID), outcomes.count(NOT_PAID), outcomes.count(LEFT)) == (6, 1, 1)


class TestPostgreSQL:
    """The same where several machines may write."""

    @pytest.mark.long
    async def test_fifty_steps_at_once(self, books_on_postgres: Books) -> None:
        await fifty_steps_agree(books_on_postgres)

    async def test_a_run_that_is_cancelled(self, books_on_postgres: Books) -> None:
        await test_a_run_that_is_cancelled(books_on_postgres, streamed=True)

    @pytest.mark.long
    async def test_a_stream_that_breaks_off_and_is_asked_for_again(
        self, books_on_postgres: Books
    ) -> None:
        await test_a_stream_that_breaks_off_and_is_asked_for_again(books_on_postgres)

    async def test_a_run_that_is_executed_again_under_its_key_until_it_ends(
        self, books_on_postgres: Books
    ) -> None:
        await test_a_run_that_is_executed_again_under_its_key_until_it_ends(books_on_postgres)
