"""Which edits change a step's fingerprint, and which leave it as it is."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import linecache
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent, TextOutput, ToolOutput
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from fastroai import BaseStep, FastroAgent, StepContext, step
from fastroai.fingerprint import functions as source
from fastroai.fingerprint.steps import fingerprint
from tests.support import forked

PROMPTS = '''
"""Prompts."""
SYSTEM = "You summarise."
UNUSED = "Nobody reads this."
LOCAL = "Imported in a function."

def farewell():
    return "Good bye"


def polite(text):
    return "Please: " + text
'''

STEPS = '''
from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import string
from collections import namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from types import SimpleNamespace

import jinja2
from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator

import prompts
from prompts import polite
from fastroai import BaseStep, FastroAgent, Pipeline, StepContext, StepConfig, safe_tool, step
from pydantic_ai import Agent, FunctionToolset, ModelRetry, Tool, ToolOutput

HERE = Path(__file__).parent
FOLDER = os.path.dirname(__file__)
logger = logging.getLogger(__name__)
LIMIT = 10
FACTOR = 1.5
TERSE = "Be terse."
UNUSED = "unused constant"
TEMPLATES = {"summary": "Summarise {text}", "other": ["Translate", ("to", "German")]}
WORDS = {"alpha", "beta", "gamma", "delta"}
TEMPLATE = string.Template("Explain $this")
JINJA = jinja2.Template("Compare {{ a }} with {{ b }}")
PATTERN = re.compile("[a-z]+")
SPACE = SimpleNamespace(prompt="In a namespace")
SECRET = SecretStr("key-one")
FORMAT = "Format {}".format
_calls = 0
_client = None


class Kind(StrEnum):
    SHORT = "a short one"
    LONG = "a long one"


class Texts:
    FIRST = "first text"
    SECOND = "second text"


@dataclass(frozen=True)
class Settings:
    prompt: str = "dataclass default"
    tags: list[str] = field(default_factory=lambda: ["factory"])


class Points(BaseModel):
    """Key points."""
    points: list[str] = Field(description="what matters")
    _hint: str = PrivateAttr(default="private default")

    @field_validator("points", mode="after")
    @classmethod
    def not_empty(cls, value):
        if not value:
            raise ValueError("no points")
        return value


SETTINGS = Settings(prompt="dataclass instance")
MODEL_SETTINGS = Points(points=["an instance"])


class Builder:
    style = "class attribute"

    def __init__(self, tone):
        self.tone = tone

    @property
    def opening(self):
        return "Opening " + self.tone

    @staticmethod
    def closing():
        return "Closing"

    def build(self, text):
        return self.opening + text + self.closing()


BUILDER = Builder("instance attribute")


def helper(text, length=7, *, suffix="keyword default"):
    """A docstring."""
    # a comment
    return deeper(text)[:length] + suffix


def deeper(text):
    return text.strip()


def unrelated(text):
    return text.upper()


def counted():
    global _calls, _client
    _calls += 1
    _client = object()


def decorated(prefix):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            return prefix + function(*args)
        return wrapper
    return decorate


@decorated("prefix argument")
def wrapped(text):
    return "wrapped body" + text


@functools.lru_cache(maxsize=8)
def cached(text):
    return "cached body" + text


@safe_tool(timeout=3)
async def search(query: str) -> str:
    """Search the web."""
    return "search body " + query


def lookup(name: str) -> str:
    """Look a name up."""
    return "lookup body " + name


toolset = FunctionToolset(id="tools")
toolset.add_function(search)
agent = FastroAgent(
    model="openai:gpt-5-mini",
    system_prompt="Agent prompt",
    output_type=Points,
    toolsets=[toolset],
    temperature=0.2,
)


@step(retries=1)
async def one(context: StepContext[None]) -> Points:
    """Docstring of the step."""
    from prompts import LOCAL as local
    import prompts as others

    counted()
    logger.info(local + others.farewell())
    text = prompts.SYSTEM + polite(TERSE) + helper("x") + wrapped("y") + cached("z")
    text += TEMPLATES["summary"] + TEMPLATE.substitute(this="a") + JINJA.render(a=1, b=2)
    text += Kind.SHORT + Kind.LONG.value + Texts.FIRST + SETTINGS.prompt + MODEL_SETTINGS.points[0]
    text += BUILDER.build("t") + SPACE.prompt + FORMAT("x") + str(HERE) + FOLDER + str(_client)
    if PATTERN.match(text) and len(text) > LIMIT * FACTOR and text in WORDS and SECRET:
        await asyncio.sleep(0)
    return (await context.run(agent, text)).output


@step
async def handing_on(context):
    return Agent("test", tools=[lookup])


key = lambda item: item.value; other = lambda item: item.other


class Own(BaseStep[None, Points]):
    config = StepConfig(retries=1)
    prompt = "prompt on the class"

    def __init__(self):
        self.extra = "prompt on the instance"

    async def execute(self, context):
        return self.prompt + self.extra + self._more()

    def _more(self):
        return "other method"


def factory(prompt):
    @step
    async def made(context):
        return (await context.run(agent, prompt)).output
    return made


own = Own()
made = factory("closure")
asked = agent.as_step(lambda context: "asked " + context.get_input("x") + TERSE)
sorting = agent.as_step(key)
nested = Pipeline("inner", {"own": own, "made": made}, {"made": ["own"]})


@step
async def outer(context):
    return (await nested.execute({}, None)).output
'''

EVERY = ("one", "handing_on", "own", "made", "asked", "sorting", "outer")
_names = itertools.count()


@pytest.fixture(autouse=True)
def _import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in [
        n
        for n, m in sys.modules.items()
        if str(getattr(m, "__file__", "")).startswith(str(tmp_path))
    ]:
        del sys.modules[name]


def fingerprints(folder: Path, steps: str = STEPS, prompts: str = PROMPTS) -> dict[str, str]:
    """Of each step in a module, loaded from a folder of its own as a program would."""
    place = folder / f"copy{next(_names)}"
    place.mkdir()
    (place / "prompts.py").write_text(prompts)
    (place / "steps.py").write_text(steps)
    sys.path.insert(0, str(place))
    for name in ("prompts", "steps"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module("steps")
        return {name: fingerprint(getattr(module, name)) for name in EVERY}
    finally:
        sys.path.remove(str(place))


def changed_by(folder: Path, old: str, new: str) -> set[str]:
    """The steps whose fingerprint an edit changes."""
    assert (STEPS + PROMPTS).count(old) == 1, old
    before = fingerprints(folder)
    after = fingerprints(folder, STEPS.replace(old, new), PROMPTS.replace(old, new))
    return {name for name in EVERY if before[name] != after[name]}


ONE = {"one"}
AGENT = {"one", "made", "asked", "sorting", "outer"}

CHANGES: dict[str, tuple[str, str, set[str]]] = {
    "a line of the step": ("len(text) > LIMIT", "len(text) >= LIMIT", ONE),
    "a constant": ('TERSE = "Be terse."', 'TERSE = "Be brief."', {"one", "asked"}),
    "a number": ("LIMIT = 10", "LIMIT = 11", ONE),
    "a float": ("FACTOR = 1.5", "FACTOR = 1.6", ONE),
    "a constant of another module": ("You summarise.", "You translate.", ONE),
    "a function of a module beside it": ("Please: ", "Do: ", ONE),
    "a constant it imports itself": ("Imported in a function.", "Imported.", ONE),
    "a function of a module it imports itself": ("Good bye", "Bye", ONE),
    "a function it calls": ("return deeper(text)[:length]", "return deeper(text)[length:]", ONE),
    "a function that one calls": ("text.strip()", "text.lstrip()", ONE),
    "a default": ("length=7", "length=8", ONE),
    "a keyword's default": ("keyword default", "another default", ONE),
    "a prompt in a dict": ("Summarise {text}", "Shorten {text}", ONE),
    "a prompt deep in a dict": ("German", "French", ONE),
    "an item of a set": ('"delta"', '"epsilon"', ONE),
    "a string.Template": ("Explain $this", "Describe $this", ONE),
    "a Jinja template's text": ("Compare {{", "Contrast {{", ONE),
    "a Jinja template's expression": ("with {{ b }}", "with {{ b + 1 }}", ONE),
    "a pattern": ("[a-z]+", "[a-z]*", ONE),
    "a namespace": ("In a namespace", "In another", ONE),
    "a bound method of a text": ('"Format {}"', '"Formatted {}"', ONE),
    "an enum's value": ("a short one", "a shorter one", ONE),
    "an enum's value, taken": ("a long one", "a longer one", ONE),
    "an attribute of a class": ("first text", "First text", ONE),
    "a dataclass's value": ("dataclass instance", "dataclass object", ONE),
    "a dataclass's default factory": ('["factory"]', '["factories"]', ONE),
    "a pydantic model's value": ("an instance", "an object", ONE),
    "a pydantic model's private default": ("private default", "private", AGENT | {"own"}),
    "an instance's attribute": ("instance attribute", "other attribute", ONE),
    "a class attribute of an instance": ("class attribute", "class's attribute", ONE),
    "a property": ('"Opening "', '"Beginning "', ONE),
    "a static method": ('"Closing"', '"Ending"', ONE),
    "a decorator's argument": ("prefix argument", "other prefix", ONE),
    "a decorated function": ("wrapped body", "the wrapped body", ONE),
    "a cached function": ("cached body", "the cached body", ONE),
    "an agent's prompt": ("Agent prompt", "Another prompt", AGENT),
    "an agent's model": ("openai:gpt-5-mini", "openai:gpt-5", AGENT),
    "an agent's settings": ("temperature=0.2", "temperature=0.3", AGENT),
    "an output type's description": ("what matters", "what counts", AGENT | {"own"}),
    "an output type's docstring": ("Key points.", "The key points.", AGENT | {"own"}),
    "an output type's validator": ("if not value:", "if value is None:", AGENT | {"own"}),
    "how a validator is applied": ('mode="after"', 'mode="before"', AGENT | {"own"}),
    "a tool's code": ("search body", "the search body", AGENT),
    "a tool's docstring": ("Search the web.", "Search it.", AGENT),
    "a tool's parameter": ("(query: str)", "(query: str | None)", AGENT),
    "a tool's wrapper": ("timeout=3", "timeout=4", AGENT),
    "a toolset's id": ('id="tools"', 'id="others"', AGENT),
    "a tool handed on by a step": ("lookup body", "the lookup body", {"handing_on"}),
    "the docstring of a tool handed on": ("Look a name up.", "Look it up.", {"handing_on"}),
    "a prompt on a step's class": ("prompt on the class", "prompt", {"own", "outer"}),
    "a prompt on a step": ("prompt on the instance", "prompt", {"own", "outer"}),
    "another method of a step": ("other method", "another method", {"own", "outer"}),
    "a closure": ('factory("closure")', 'factory("cell")', {"made", "outer"}),
    "a prompt function": ('"asked "', '"told "', {"asked"}),
    "one of two lambdas on a line": ("item.value", "item.key", {"sorting"}),
    "a nested pipeline's edges": (
        '{"made": ["own"]})',
        '{"own": ["made"]}, output_step="own")',
        {"outer"},
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_edit_changes_the_steps_it_concerns_and_no_other(case: str, tmp_path: Path):
    old, new, concerned = CHANGES[case]
    assert changed_by(tmp_path, old, new) == concerned


UNRELATED: dict[str, tuple[str, str]] = {
    "a comment": ("# a comment", "# another\n    # comment"),
    "a step's docstring": ("Docstring of the step.", "Another."),
    "a helper's docstring": ('    """A docstring."""\n', ""),
    "layout": (
        "return deeper(text)[:length] + suffix",
        "return (\n        deeper(text)[ : length]\n        + suffix)",
    ),
    "quotes": ('"prefix argument"', "'prefix argument'"),
    "an unused constant": ("unused constant", "never used"),
    "an unused constant of another module": ("Nobody reads this.", "Nobody."),
    "an unused function": ("text.upper()", "text.title()"),
    "an unused attribute of a class": ("second text", "Second text"),
    "the other lambda on a line": ("item.other", "item.another"),
    "how a step is retried": ("@step(retries=1)", "@step(retries=3, timeout=5)"),
    "a step's own config": ("config = StepConfig(retries=1)", "config = StepConfig(retries=9)"),
    "a secret": ("key-one", "key-two"),
    "state of a module": ("_client = None", '_client = "made"'),
    "a counter of a module": ("_calls = 0", "_calls = 7"),
    "lines before": ("LIMIT = 10", "\n\nNEW = 1\n\nLIMIT = 10"),
}


@pytest.mark.parametrize("case", UNRELATED)
def test_an_unrelated_edit_changes_nothing(case: str, tmp_path: Path):
    old, new = UNRELATED[case]
    assert changed_by(tmp_path, old, new) == set()


def test_the_folder_a_module_stands_in_does_not_count(tmp_path: Path):
    assert fingerprints(tmp_path) == fingerprints(tmp_path)


@pytest.mark.parametrize("arguments", [["steps.py"], ["-m", "steps"]], ids=["script", "module"])
def test_a_program_that_is_run_has_the_fingerprints_of_the_module_that_is_imported(
    arguments: list[str], tmp_path: Path
):
    program = f"""
if __name__ == "__main__":
    import json
    from fastroai.fingerprint.steps import fingerprint
    print(json.dumps({{name: fingerprint(globals()[name]) for name in {EVERY!r}}}))
"""
    (tmp_path / "prompts.py").write_text(PROMPTS)
    (tmp_path / "steps.py").write_text(STEPS + program)
    command = [sys.executable, *arguments]
    done = forked.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == fingerprints(tmp_path)


def test_a_step_without_a_source_has_a_fingerprint_of_its_compiled_code():
    def made(body: str) -> str:
        names: dict[str, Any] = {"step": step, "__name__": "made_up"}
        exec(f"@step\nasync def made(context):\n    return {body}", names)
        return fingerprint(names["made"])

    assert made("{'a', 'b'}") == made("{'a', 'b'}")
    assert made("1") != made("2")
    assert made("context.a") != made("context.b")


def test_code_that_was_edited_after_it_was_loaded_shares_no_fingerprint_with_what_stands_there_now(
    tmp_path: Path,
):
    """A process that still runs the old code must not store its results under the key of the
    new.
    """
    file = tmp_path / "edited.py"
    old, new = (
        f"from fastroai import step\n@step\nasync def it(context):\n    return {n}\n"
        for n in ("1", "22")
    )

    def load() -> Any:
        spec = importlib.util.spec_from_file_location("edited", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.it

    file.write_text(old)
    running, same = load(), load()
    before = fingerprint(same)
    assert before == fingerprint(load())
    file.write_text(new)
    linecache.checkcache()
    source.source_lines_of.cache_clear()
    assert fingerprint(running) not in (before, fingerprint(load()))
    assert fingerprint(load()) != before


def test_a_step_that_refers_to_itself_has_a_fingerprint():
    class Cyclic(BaseStep[Any, int]):
        def __init__(self) -> None:
            self.me = self
            self.items: list[Any] = [self]
            self.items.append(self.items)

        async def execute(self, context: StepContext[Any]) -> int:
            return await Cyclic().execute(context)

    assert fingerprint(Cyclic()) == fingerprint(Cyclic())


@pytest.mark.parametrize(
    "make", [threading.Lock, asyncio.Event, iter, lambda: SecretStr("s"), lambda: SecretStr("t")]
)
def test_what_has_no_content_that_could_be_told_counts_by_its_type(make: Any):
    class Holds(BaseStep[Any, int]):
        def __init__(self, held: Any) -> None:
            self.held = held

        async def execute(self, context: StepContext[Any]) -> int:
            return 1

    made = [make([]) if make is iter else make() for _ in range(2)]
    assert fingerprint(Holds(made[0])) == fingerprint(Holds(made[1])) != fingerprint(Holds(None))


def test_a_step_that_can_not_be_told_is_run_and_never_reused(caplog: pytest.LogCaptureFixture):
    class Raises(BaseStep[Any, int]):
        def __init__(self) -> None:
            self.deep: Any = None
            for _ in range(100_000):
                self.deep = (self.deep,)

        async def execute(self, context: StepContext[Any]) -> int:
            return 1

    raising = Raises()
    assert fingerprint(raising) != fingerprint(raising)
    assert "can't be fingerprinted" in caplog.text


def test_a_counter_in_a_closure_is_state():
    calls = 0

    @step
    async def counting(context: StepContext[Any]) -> int:
        nonlocal calls
        calls += 1
        return calls

    before = fingerprint(counting)
    calls = 7
    assert fingerprint(counting) == before


def test_requests_that_were_sent_do_not_change_an_agents_fingerprint():
    agent = FastroAgent(model="test", system_prompt="s", output_type=Points)
    asked = agent.as_step("hello")
    before = fingerprint(asked)
    asyncio.run(agent.run("hello"))
    assert fingerprint(asked) == before


def test_members_of_a_fallback_model_count():
    one, other = (
        FallbackModel(TestModel(model_name="a"), TestModel(model_name=name)) for name in ("b", "c")
    )
    settings = FallbackModel(
        TestModel(model_name="a"), TestModel(model_name="b", settings={"seed": 1})
    )
    found = {fingerprint(FastroAgent(model=model).as_step("p")) for model in (one, other, settings)}
    assert len(found) == 3


def test_what_a_ready_agent_was_given_later_counts():
    def agent(given: str) -> Agent[Any, str]:
        made: Agent[Any, str] = Agent("test")
        if given == "prompt":
            made.system_prompt(lambda: "prompt")
        if given == "instructions":
            made.instructions(lambda: "instructions")
        if given == "validator":
            made.output_validator(lambda output: output)
        if given == "tool":
            made.tool_plain(_tool)
        if given == "toolset":
            made.toolset(lambda context: None)
        return made

    kinds = ["nothing", "prompt", "instructions", "validator", "tool", "toolset"]
    found = [fingerprint(FastroAgent(agent=agent(kind)).as_step("p")) for kind in kinds]
    assert len(set(found)) == len(kinds)
    assert found == [fingerprint(FastroAgent(agent=agent(kind)).as_step("p")) for kind in kinds]


def _tool(name: str) -> str:
    return name


class Points(BaseModel):
    points: list[str]


def test_output_functions_and_markers_count():
    def shorter(text: str) -> str:
        return text[:1]

    def longer(text: str) -> str:
        return text[:2]

    markers = [
        TextOutput(shorter),
        TextOutput(longer),
        ToolOutput(Points, name="x"),
        ToolOutput(Points, name="y"),
    ]
    outputs = [shorter, longer, [shorter, longer], *markers]
    found = [
        fingerprint(FastroAgent(model="test", output_type=output).as_step("p"))
        for output in outputs
    ]
    assert len(set(found)) == len(outputs)


class TestVersions:
    """`@step(version=…)` stands for the code; agents and output types still count."""

    @staticmethod
    def asks(prompt: str, version: str | None, output: type = str, more: str = "") -> str:
        agent = FastroAgent(model=TestModel(), system_prompt=prompt)

        async def ask(context: StepContext[None]) -> str:
            return (await context.run(agent, more)).output

        async def ask_and_count(context: StepContext[None]) -> str:
            count = len(context.get_input("text", ""))
            return f"{count} {(await context.run(agent, more)).output}"

        function = ask_and_count if more else ask
        function.__annotations__["return"] = output
        return fingerprint(step(version=version)(function))

    def test_edited_code_with_the_same_version_keeps_the_fingerprint(self) -> None:
        assert self.asks("p", "1") == self.asks("p", "1", more="Count.")
        assert self.asks("p", None) != self.asks("p", None, more="Count.")

    def test_another_version_is_another_fingerprint(self) -> None:
        assert len({self.asks("p", version) for version in ("1", "2", None)}) == 3

    def test_the_agents_of_a_step_and_its_output_still_count(self) -> None:
        assert self.asks("p", "1") != self.asks("q", "1")
        assert self.asks("p", "1") != self.asks("p", "1", output=int)

    def test_an_empty_version_is_refused(self) -> None:
        with pytest.raises(ValueError, match="version must not be empty"):
            step(version="")
