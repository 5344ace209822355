"""OfflineModel: extracts its answers from what it is given to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from .local_model import LocalModel, prompt_text, structured_part
from .material import Material, keywords_of
from .schema_filling import SchemaFiller

_SENTENCES_OF_AN_ANSWER = 3
_NOTHING = "There is nothing to read in the prompt."


class OfflineModel(LocalModel):
    """A deterministic model that needs no key and no network: it extracts, it does not understand.

    It reads the prompts and tool results of the conversation. The first paragraph of a prompt that
    has several is taken for the task, the rest for the material; what it answers is drawn from the
    material, so other material gives other answers. As text it returns the most informative
    sentences, those nearest to the task first chosen. For a structured output it fills the schema:
    texts by the sentences nearest to a field's name and description (or a `Name: value` line),
    choices and booleans by what is mentioned, lists by the sentences or terms that stand out,
    numbers by those beside the field's words, else by counting. The value always fits the schema.
    It calls no tools.

    Nothing is sent or paid: `simulated` marks its ledger entries. They are priced all the same, as
    if OpenAI's model of that name had answered, with token counts estimated from the lengths of the
    texts (see `LocalModel`).

    Args:
        model_name: The OpenAI model whose prices apply.
        delay: Seconds each answer takes.
    """

    _SYSTEM = "offline"
    simulated = True

    async def answer(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """What the material says."""
        task, material = _read(messages)
        if parameters.output_tools and not parameters.allow_text_output:
            tools = parameters.output_tools
            tool = max(
                tools,
                key=lambda t: (
                    _nearness(f"{t.name} {t.description or ''}", material),
                    -tools.index(t),
                ),
            )
            filled = SchemaFiller(tool.parameters_json_schema, material).fill()
            part = structured_part(filled, parameters, name=tool.name.rpartition("_")[2])
        elif parameters.output_object is not None:
            part = structured_part(
                SchemaFiller(parameters.output_object.json_schema, material).fill(), parameters
            )
        else:
            part = TextPart(_extract(task, material))
        return ModelResponse(parts=[part], provider_response_id=f"offline-{self.calls}")


def _read(messages: Iterable[ModelMessage]) -> tuple[str, Material]:
    """The task and the material of a conversation."""
    tasks: list[str] = []
    texts: list[str] = []
    for text in _readable(messages):
        first, blank_line, rest = re.sub(r"\r\n?", "\n", text).strip().partition("\n\n")
        tasks.append(first)
        texts.append(rest if blank_line and rest.strip() else first)
    return (tasks[0] if tasks else ""), Material("\n\n".join(texts))


def _readable(messages: Iterable[ModelMessage]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, ModelRequest):
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    yield prompt_text(part)
                elif isinstance(part, ToolReturnPart):
                    yield f"{part.tool_name}\n\n{part.model_response_str()}"


def _extract(task: str, material: Material) -> str:
    best = material.ranked(keywords_of(task))[:_SENTENCES_OF_AN_ANSWER]
    return (
        " ".join(sentence.text for sentence in sorted(best, key=lambda s: s.position)) or _NOTHING
    )


def _nearness(description: str, material: Material) -> int:
    return sum(material.counts[word] for word in keywords_of(description))
