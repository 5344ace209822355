"""A field that a newer pydantic-ai adds changes no key until it is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic_ai import messages, models
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, UserPromptPart
from pydantic_ai.tools import ToolDefinition

from fastroai.metering.request_books import RequestBooks
from fastroai.replay import later_fields, model
from fastroai.replay.journal import Journal
from fastroai.replay.model import JournaledModel
from fastroai.replay.requests import RequestOfModel
from fastroai.testing import ScriptedModel, fixed_prices

TOOL = ToolDefinition(name="look_up", metadata={"rates": object()})
BEFORE = models.ModelRequestParameters(function_tools=[TOOL])


@dataclass(repr=False, kw_only=True)
class ModelRequestParameters(models.ModelRequestParameters):
    """As a later version may have them."""

    _marks: list[str] = field(default_factory=list)
    tone: str | None = None


@dataclass(repr=False, kw_only=True)
class LaterTool(ToolDefinition):
    cost: int = 0


LaterTool.__name__ = "ToolDefinition"


@pytest.fixture(autouse=True)
def _there_are_later_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "has_later_fields", lambda: True)


def place(parameters: models.ModelRequestParameters) -> str:
    asking = JournaledModel(ScriptedModel("x"), Journal("step"), RequestBooks(fixed_prices()))
    asked: list[Any] = [ModelRequest(parts=[UserPromptPart("What?")])]
    return asking.place_of(RequestOfModel(asked, {"temperature": 0.5}, parameters))


def test_parameters_and_tools_with_later_fields_have_the_same_place():
    tool = LaterTool(name="look_up", metadata=TOOL.metadata)
    assert place(ModelRequestParameters(function_tools=[tool])) == place(BEFORE)
    assert place(ModelRequestParameters(function_tools=[TOOL])) == place(BEFORE)


@pytest.mark.parametrize(
    "changed",
    [
        ModelRequestParameters(function_tools=[TOOL], tone="warm"),
        ModelRequestParameters(function_tools=[TOOL], _marks=["x"]),
        ModelRequestParameters(function_tools=[LaterTool(name="look_up", cost=1)]),
        ModelRequestParameters(),
    ],
)
def test_what_is_set_changes_the_place(changed: models.ModelRequestParameters):
    assert place(changed) != place(BEFORE)


def test_later_fields_of_messages_are_left_out_while_they_have_their_default(
    monkeypatch: pytest.MonkeyPatch,
):
    by_kind = {"user-prompt": {"tone": None}, "cache-point": {"ttl": "5m"}}
    monkeypatch.setattr(later_fields, "_later_by_kind", lambda: by_kind)
    part = {
        "part_kind": "user-prompt",
        "tone": None,
        "content": ["Hello", {"kind": "cache-point", "ttl": "5m"}],
    }
    later_fields.drop_later_defaults([{"parts": [part]}])
    assert part == {"part_kind": "user-prompt", "content": ["Hello", {"kind": "cache-point"}]}
    kept = {"part_kind": "user-prompt", "tone": "warm", "content": "Hello"}
    later_fields.drop_later_defaults([{"parts": [kept]}])
    assert kept == {"part_kind": "user-prompt", "tone": "warm", "content": "Hello"}


def test_each_kind_of_part_that_a_message_can_have_is_listed():
    schema = ModelMessagesTypeAdapter.json_schema()
    kinds = [of.get("properties", {}).get("part_kind", {}) for of in schema["$defs"].values()]
    listed = [vars(messages).get(name) for name in later_fields.FIRST]
    known = {getattr(cls, "part_kind", None) for cls in listed}
    later = {"capability-load-delta"}  # came after the first records, as a whole
    assert {kind["const"] for kind in kinds if kind} - later <= known
