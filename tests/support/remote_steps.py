"""Steps that workers of a task runner import, and what they get there."""

from __future__ import annotations

import os
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

    def items(self) -> list[str]:
        """Which were computed."""
        return sorted(path.name.split("-")[0] for path in self.folder.glob("?-*"))


async def _ask_twice(context: StepContext[Desk]) -> list[Any]:
    notes = Notes(context.get_input("folder"))
    notes.begin()
    first = (await context.run(context.deps.agent, "one")).output
    notes.look()
    return [first, (await context.run(context.deps.agent, "two")).output, os.getpid()]


asks_remotely = step(remote=True, retries=1, **NOW)(_ask_twice)


@step
def asks_while_it_computes(context: StepContext[Desk]) -> Any:
    return context.run(context.deps.agent, "one")
