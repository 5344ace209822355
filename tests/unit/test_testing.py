"""The public fakes: what they answer, and that it always fits."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, EmailStr, Field, TypeAdapter
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.messages import BinaryContent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RequestUsage

from fastroai import CostCalculator, FastroAgent
from fastroai.simulation.local_model import estimate_tokens
from fastroai.simulation.schema_filling import SchemaFiller
from fastroai.simulation.sentences import sentences_of
from fastroai.testing import OfflineModel, ScriptedModel, ToolCall, fixed_prices
from tests.support import forked

PACKAGE = """\
Name: orchard
Version: 2.4.1
License: BSD-3-Clause
Requires-Python: >=3.11
Project-URL: Homepage, https://example.com/orchard

# orchard

Orchard is a **small** library that grows trees of tasks. It keeps every task in an append-only
journal, so that a crash loses nothing.

## Changes

- Version 2.4.1 was released on 2024-05-17 and fixes a deadlock when 12 workers share one journal.
- The old `grow()` function is deprecated and will be removed in version 3.
- There is no breaking change in this release.

Write to trees@example.com with questions. The software is provided without warranty of any kind.
"""


def ask(text: str, output_type: Any = str, task: str = "Review this package.") -> Any:
    """What the offline model answers about a text."""
    agent: FastroAgent[Any] = FastroAgent(model=OfflineModel(), output_type=output_type)
    return agent.agent.run_sync(f"{task}\n\n{text}").output


class Risk(StrEnum):
    LOW = "low"
    HIGH = "high"
    UNKNOWN = "unknown"


class TestScriptedModel:
    async def test_replies_come_in_order(self) -> None:
        agent = FastroAgent(model=ScriptedModel("one", "two"))
        assert [(await agent.run("Hi")).output for _ in range(2)] == ["one", "two"]

    async def test_one_request_too_many_says_which(self) -> None:
        agent = FastroAgent(model=ScriptedModel("one"))
        await agent.run("Hi")
        with pytest.raises(AssertionError, match="asked a 2th time, but has 1 replies: 'Again'"):
            await agent.run("Again")

    async def test_the_last_reply_may_repeat(self) -> None:
        model = ScriptedModel("one", "two", repeat=True)
        agent = FastroAgent(model=model)
        assert [(await agent.run("Hi")).output for _ in range(3)] == ["one", "two", "two"]
        assert model.calls == 3

    async def test_prompts_are_noted(self) -> None:
        model = ScriptedModel("one", "two")
        agent = FastroAgent(model=model)
        await agent.run("First?")
        await agent.run(["Second?", "And this."])
        assert model.prompts == ["First?", "Second?\n\nAnd this."]

    def test_a_script_may_not_be_empty(self) -> None:
        with pytest.raises(ValueError, match="at least one reply"):
            ScriptedModel()

    async def test_an_error_is_raised_as_it_is(self) -> None:
        error = ConnectionError("down")
        with pytest.raises(ConnectionError) as raised:
            await FastroAgent(model=ScriptedModel(error)).run("Hi")
        assert raised.value is error

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_function_answers_from_the_messages(self, asynchronous: bool) -> None:
        def reply(messages: list[ModelMessage], info: AgentInfo) -> str:
            return f"{len(messages)} {info.allow_text_output}"

        async def later(messages: list[ModelMessage], info: AgentInfo) -> str:
            return reply(messages, info)

        response = await FastroAgent(model=ScriptedModel(later if asynchronous else reply)).run(
            "Hi"
        )
        assert response.output == "1 True"

    @pytest.mark.parametrize("mode", [lambda t: t, NativeOutput, PromptedOutput])
    async def test_a_structured_reply_takes_the_form_that_was_asked_for(self, mode: Any) -> None:
        class City(BaseModel):
            name: str

        for reply in (City(name="Oslo"), {"name": "Oslo"}):
            agent: FastroAgent[City] = FastroAgent(
                model=ScriptedModel(reply), output_type=mode(City)
            )
            assert (await agent.run("Hi")).output == City(name="Oslo")

    async def test_a_value_that_is_no_object_is_wrapped(self) -> None:
        agent: FastroAgent[list[int]] = FastroAgent(
            model=ScriptedModel([1, 2]), output_type=list[int]
        )
        assert (await agent.run("Hi")).output == [1, 2]

    async def test_one_of_several_output_types_is_found_by_its_name(self) -> None:
        class Apple(BaseModel):
            size: int

        class Pear(BaseModel):
            size: int

        agent: FastroAgent[Any] = FastroAgent(
            model=ScriptedModel(Pear(size=3)), output_type=[Apple, Pear]
        )
        assert (await agent.run("Hi")).output == Pear(size=3)

    async def test_several_tools_may_be_called_at_once(self) -> None:
        def double(n: int) -> int:
            return 2 * n

        model = ScriptedModel(
            [ToolCall("double", {"n": 1}, id="a"), ToolCall("double", {"n": 2}, id="b")], "done"
        )
        response = await FastroAgent(model=model, toolsets=[FunctionToolset([double])]).run("Hi")
        assert [call["tool_call_id"] for call in response.tool_calls] == ["a", "b"]

    async def test_a_ready_response_is_given_as_it_is(self) -> None:
        reply = ModelResponse(
            parts=[TextPart("Hi")], usage=RequestUsage(input_tokens=7), model_name="gpt-4o-mini"
        )
        response = await FastroAgent(model=ScriptedModel(reply)).run("Hi")
        assert (response.model, response.input_tokens) == ("gpt-4o-mini", 7)
        assert reply.usage.cost is None

    async def test_usage_is_estimated_from_the_texts_and_can_be_fixed(self) -> None:
        short = await FastroAgent(model=ScriptedModel("x")).run("Hi")
        long = await FastroAgent(model=ScriptedModel("x" * 400)).run("Hi" * 400)
        assert 0 < short.input_tokens < long.input_tokens
        assert (short.output_tokens, long.output_tokens) == (1, 100)
        fixed = await FastroAgent(model=ScriptedModel("x", usage=RequestUsage(input_tokens=7))).run(
            "Hi"
        )
        assert fixed.input_tokens == 7

    def test_a_token_is_four_characters(self) -> None:
        assert [estimate_tokens("x" * length) for length in (0, 1, 4, 5)] == [0, 1, 1, 2]


class TestFixedPrices:
    async def test_by_default_a_token_is_a_microcent(self) -> None:
        model = ScriptedModel("x", usage=RequestUsage(input_tokens=5, output_tokens=3))
        response = await FastroAgent(model=model, cost_calculator=fixed_prices()).run("Hi")
        assert response.cost_microcents == 11

    def test_models_can_be_named(self) -> None:
        calculator = fixed_prices(
            "a", "b", input_per_mtok=4, output_per_mtok=0, cache_read_per_mtok=1
        )
        assert isinstance(calculator, CostCalculator)
        assert calculator.calculate_cost("b", 1000, 10, cache_read_tokens=500) == 2500


class TestOfflineModel:
    def test_text_is_drawn_from_the_document(self) -> None:
        answer = ask(PACKAGE, task="What does this package do?")
        assert "grows trees of tasks" in answer
        assert "**" not in answer

    def test_the_task_guides_the_choice(self) -> None:
        assert "deprecated" in ask(PACKAGE, task="Which function is deprecated?")
        assert "warranty" in ask(PACKAGE, task="Is there a warranty?")

    def test_other_documents_give_other_answers(self) -> None:
        assert ask("Apples are red. They grow on trees.") != ask(
            "Pears are green. They grow on trees."
        )

    def test_the_same_document_gives_the_same_answer(self) -> None:
        assert ask(PACKAGE) == ask(PACKAGE)

    def test_nothing_to_read_is_said(self) -> None:
        assert "nothing to read" in FastroAgent(model=OfflineModel()).agent.run_sync("  ").output

    def test_a_prompt_of_one_paragraph_is_its_own_material(self) -> None:
        agent = FastroAgent(model=OfflineModel())
        assert agent.agent.run_sync("Orchard grows trees.").output == "Orchard grows trees."

    def test_attached_text_is_read(self) -> None:
        attached = BinaryContent(b"Orchard grows trees of tasks.", media_type="text/plain")
        output = FastroAgent(model=OfflineModel()).agent.run_sync(["Summarise:", attached]).output
        assert output == "Orchard grows trees of tasks."

    def test_fields_are_filled_with_the_sentences_about_them(self) -> None:
        class Findings(BaseModel):
            deprecation: str = Field(description="which function is deprecated")
            warranty: str = Field(description="warranty of any kind")
            released: dt.date

        findings = ask(PACKAGE, Findings)
        assert "grow()" in findings.deprecation
        assert "warranty" in findings.warranty

    def test_choices_are_made_by_what_is_mentioned(self) -> None:
        class Verdict(BaseModel):
            risk: Risk

        assert ask(PACKAGE, Verdict).risk is Risk.LOW
        assert ask(f"{PACKAGE}\n\nThe risk is high.", Verdict).risk is Risk.HIGH

    def test_lists_hold_different_sentences(self) -> None:
        class Findings(BaseModel):
            statements: list[str] = Field(max_length=2)
            sources: set[str] = Field(min_length=2, max_length=4)

        findings = ask(PACKAGE, Findings)
        assert len(findings.statements) == 2
        assert len(findings.sources) >= 2
        assert findings.sources.isdisjoint(findings.statements)

    async def test_it_is_priced_as_the_model_it_stands_for(self) -> None:
        response = await FastroAgent(model=OfflineModel("gpt-4o")).run(
            "Read.\n\nOrchard grows trees."
        )
        (entry,) = response.entries
        expected = CostCalculator().calculate_cost(
            "gpt-4o", response.input_tokens, response.output_tokens
        )
        assert response.cost_microcents == expected > 0
        assert entry.simulated
        assert entry.model_asked == "offline:gpt-4o"

    async def test_it_streams(self) -> None:
        agent = FastroAgent(model=OfflineModel())
        prompt = f"Review.\n\n{PACKAGE}"
        pieces = [chunk.content async for chunk in agent.run_stream(prompt)]
        assert len(pieces) > 5
        assert "".join(pieces) == (await agent.run(prompt)).output

    def test_what_tools_return_is_read_in_a_history(self) -> None:
        def read() -> str:
            return "Orchard grows trees of tasks."

        first = Agent(ScriptedModel(ToolCall("read"), "read"), tools=[read]).run_sync(
            "What is orchard?"
        )
        output = Agent(OfflineModel()).run_sync("And?", message_history=first.all_messages()).output
        assert "Orchard grows trees of tasks." in output


class Node(BaseModel):
    label: str = Field(max_length=12)
    children: list[Node] = Field(default_factory=list)
    parent: Node | None = None


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0, lt=10)


class Square(BaseModel):
    kind: Literal["square"]
    side: int = Field(ge=1, multiple_of=5)


SCHEMAS: dict[str, Any] = {
    "recursive": Node,
    "discriminated": Annotated[Circle | Square, Field(discriminator="kind")],
    "bounds": Annotated[int, Field(gt=3, lt=5)],
    "fractions": Annotated[float, Field(gt=0, lt=1)],
    "multiples": Annotated[int, Field(ge=7, multiple_of=5)],
    "lengths": Annotated[str, Field(min_length=5, max_length=7)],
    "many": Annotated[list[str], Field(min_length=30)],
    "few": Annotated[list[str], Field(max_length=1)],
    "none": Annotated[list[str], Field(max_length=0)],
    "unique": Annotated[set[int], Field(min_length=5)],
    "unique choices": Annotated[set[Risk], Field(min_length=2)],
    "tuple": tuple[int, str, bool],
    "mapping": dict[str, int],
    "mapping of at least two": Annotated[dict[str, list[bool]], Field(min_length=2)],
    "decimal": Decimal,
    "date and time": dt.datetime,
    "day": dt.date,
    "time": dt.time,
    "duration": dt.timedelta,
    "url": AnyUrl,
    "mail": EmailStr,
    "null": None,
    "anything": Any,
    "choice of types": int | list[str] | None,
    "nested": dict[str, list[tuple[Risk, Node | None]]],
    "bytes": bytes,
    "numbers": list[float],
}


def filled(schema: dict[str, Any], text: str) -> object:
    return SchemaFiller(schema, text, sentences_of(text)).fill()


class TestSchemaFilling:
    @pytest.mark.parametrize("text", ["", "?", PACKAGE], ids=["nothing", "no words", "a text"])
    @pytest.mark.parametrize("schema", SCHEMAS)
    def test_a_value_always_fits_its_schema(self, schema: str, text: str) -> None:
        adapter = TypeAdapter(SCHEMAS[schema])
        value = filled(adapter.json_schema(), text)
        adapter.validate_python(
            adapter.validate_json(adapter.dump_json(adapter.validate_python(value, strict=False)))
        )

    @settings(database=None)
    @given(text=st.text(max_size=300), schema=st.sampled_from(sorted(SCHEMAS)))
    def test_it_fits_whatever_the_text_is(self, text: str, schema: str) -> None:
        adapter = TypeAdapter(SCHEMAS[schema])
        adapter.validate_python(filled(adapter.json_schema(), text))

    def test_a_pattern_is_searched_in_the_text_and_named_where_it_is_not_found(self) -> None:
        schema = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
        assert filled(schema, PACKAGE) == "2.4.1"
        with pytest.raises(ValueError, match="ScriptedModel") as raised:
            filled(schema, "No version.")
        assert repr(schema["pattern"]) in str(raised.value)


class TestSentences:
    def test_wrapped_lines_are_one_sentence(self) -> None:
        text = "The quick brown fox jumps over the lazy dog and then it goes\nhome. It sleeps."
        assert sentences_of(text) == [
            "The quick brown fox jumps over the lazy dog and then it goes home.",
            "It sleeps.",
        ]

    def test_code_tables_and_marks_are_left_out(self) -> None:
        text = (
            "# Use\n\n- **Install** [the package](https://example.com).\n\n```\npip install\n```"
            "\n\n| a | table |\n\nThen use it."
        )
        assert sentences_of(text) == ["Install the package.", "Then use it."]


def test_importing_fastroai_does_not_import_the_fakes() -> None:
    code = (
        "import fastroai, sys; assert not any(m.startswith('fastroai.testing') for m in "
        "sys.modules)"
    )
    forked.run([sys.executable, "-c", code], kind=forked.BARE, check=True)
