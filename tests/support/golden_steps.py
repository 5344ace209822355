"""Steps whose keys are written down in a test: an edit here changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import FunctionToolset

from fastroai import BaseStep, FastroAgent, StepContext, step

HERE = Path(__file__).parent
WORDS = {"alpha", "beta", "gamma", "delta", "epsilon"}
TEMPLATES = {"summary": "Summarise: {text}"}


class Tone(StrEnum):
    PLAIN = "plain"
    FORMAL = "formal"


@dataclass(frozen=True)
class Limits:
    words: int = 200
    share: float = 0.5
    stop: frozenset[str] = frozenset({"the", "a", "an"})


class Points(BaseModel):
    """Key points of a text."""

    points: list[str] = Field(description="one sentence each")


LIMITS = Limits(words=100)


def shorten(text: str, *, to: int = LIMITS.words) -> str:
    """Cut a text."""
    return " ".join(
        word
        for word in text.split()[:to]
        if word not in LIMITS.stop and word not in {"x", "y", "z"}
    )


async def lookup(name: str, exact: bool = False) -> str:
    """Look a name up."""
    return f"{name!r:>{20}}" if exact else shorten(name)


agent = FastroAgent(
    model="openai:gpt-5-mini",
    system_prompt="You read carefully.",
    output_type=Points,
    toolsets=[FunctionToolset([lookup], id="names")],
)


@step(retries=2)
async def read(context: StepContext[Any]) -> Points:
    """Read the text."""
    prompt = TEMPLATES["summary"].format(text=shorten(context.get_input("text")))
    return (
        await context.run(agent, f"{prompt} {Tone.FORMAL} {HERE.name}" if WORDS else prompt)
    ).output


class Count(BaseStep[Any, int]):
    """Counts words."""

    tone = Tone.PLAIN

    def __init__(self, least: int) -> None:
        self.least = least

    async def execute(self, context: StepContext[Any]) -> int:
        return sum(self._counts(word) for word in context.get_input("text").split())

    def _counts(self, word: str) -> bool:
        return len(word) >= self.least and word in WORDS


def limited(key: Callable[[str], Any]) -> Any:
    @step
    def longest(context: StepContext[Any]) -> str:
        return max(context.get_input("text").split(), key=key)

    return longest


STEPS = {
    "read": read,
    "count": Count(3),
    "longest": limited(lambda word: (len(word), word)),
    "ask": agent.as_step(lambda context: f"About {context.get_input('text')}"),
}
