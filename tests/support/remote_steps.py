"""Steps that workers of a task runner import, and what they get there."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from fastroai import FastroAgent, StepContext, step
from fastroai.testing import fixed_prices
from tests.support.provider import KEY

NOW = {"retry_delay": 0.0}


class Desk:
    """What the deps factory makes in each process: an agent that asks the loopback provider."""

    def __init__(self, port: int) -> None:
        provider = OpenAIProvider(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
        self.agent: FastroAgent[Any] = FastroAgent(
            model=OpenAIChatModel("gpt-5-mini", provider=provider),
            cost_calculator=fixed_prices("gpt-5-mini"),
        )


class Square(BaseModel):
    """What one step computes, and where."""

    value: int
    pid: int


class BadNumberError(Exception):
    """Of nobody else; takes more than a text."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.number = number


@step
def square(context: StepContext[Any]) -> Square:
    number = context.get_input("number", 3)
    if number < 0:
        raise BadNumberError(number, "below 0")
    return Square(value=number**2, pid=os.getpid())


@step(**NOW)
def square_of_item(context: StepContext[Any]) -> Square:
    if context.item < 0:
        raise BadNumberError(context.item, "below 0")
    Path(context.get_input("folder"), f"{context.item_key}-{os.getpid()}").touch()
    return Square(value=context.item**2 + context.get_dependency("offset"), pid=os.getpid())


@step(**NOW)
def plain_square(context: StepContext[Any]) -> int:
    if context.item < 0:
        raise BadNumberError(context.item, "below 0")
    return int(context.item) ** 2


@step
def look_at_squares(context: StepContext[Any]) -> dict[str, Any]:
    squares = context.get_dependency("squares")
    failed = {key: type(error).__name__ for key, error in squares.errors.items()}
    return dict(squares) | failed


@step
def raises_from_deep_within(context: StepContext[Any]) -> None:
    def down(levels: int) -> None:
        if levels == 0:
            raise BadNumberError(context.get_input("number"), "deep")
        down(levels - 1)

    down(300)


@step
def reads_all(context: StepContext[Any]) -> int:
    return len(context.get_input("numbers"))


@step
async def where_the_run_is(context: StepContext[Any]) -> int:
    return os.getpid()


@dataclass
class Notes:
    """Files by which a test and a step in another process speak."""

    folder: Path

    def begin(self) -> None:
        """Say which process it is."""
        (self.folder / "pid").write_text(str(os.getpid()))

    def pid(self) -> int:
        """Which it is."""
        return int((self.folder / "pid").read_text())

    def fail_once(self) -> None:
        """Have it fail when it looks next."""
        (self.folder / "fails").touch()

    def look(self) -> None:
        """
        Raises:
            RuntimeError: It is to fail; not again.
        """
        if (fails := self.folder / "fails").exists():
            fails.unlink()
            raise RuntimeError("once")

    async def hold_once(self) -> None:
        """Wait until it is let go; not again."""
        with suppress(FileExistsError):
            (self.folder / "held").touch(exist_ok=False)
            while not (self.folder / "go").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def is_held(self) -> bool:
        """Whether it has come so far."""
        return (self.folder / "held").exists()

    def let_go(self) -> None:
        """Have it go on."""
        (self.folder / "go").touch()

    def end(self, how: str) -> None:
        """Say that it has ended."""
        with (self.folder / "ended").open("a") as file:
            file.write(f"{how}\n")

    def ended(self) -> list[str]:
        """How it has ended, each time."""
        found = self.folder / "ended"
        return found.read_text().split() if found.exists() else []

    def items(self) -> list[str]:
        """Which were computed."""
        return sorted(path.name.split("-")[0] for path in self.folder.glob("?-*"))


async def _ask_twice(context: StepContext[Desk]) -> list[Any]:
    notes = Notes(context.get_input("folder"))
    notes.begin()
    first = (await context.run(context.deps.agent, "one")).output
    notes.look()
    return [first, (await context.run(context.deps.agent, "two")).output, os.getpid()]


async def _ask_when_let(context: StepContext[Desk]) -> list[Any]:
    notes = Notes(context.get_input("folder"))
    notes.begin()
    first = (await context.run(context.deps.agent, "one")).output
    try:
        await notes.hold_once()
        answers = [first, (await context.run(context.deps.agent, "two")).output]
    except BaseException as error:
        notes.end(type(error).__name__)
        raise
    notes.end("well")
    return answers


async def _ask_many(context: StepContext[Desk]) -> list[Any]:
    notes = Notes(context.get_input("folder"))
    notes.begin()
    answers = []
    try:
        for number in range(context.get_input("questions")):
            answers.append((await context.run(context.deps.agent, f"question {number}")).output)
    except BaseException as error:
        notes.end(type(error).__name__)
        raise
    return answers


asks_when_let = step(remote=True)(_ask_when_let)
asks_many = step(remote=True)(_ask_many)
asks_remotely = step(remote=True, retries=1, **NOW)(_ask_twice)


@step
def asks_while_it_computes(context: StepContext[Desk]) -> Any:
    return context.run(context.deps.agent, "one")
