"""OfflineModel: answers with sentences of what it is given to read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from .local_model import LocalModel, prompt_text, structured_part
from .schema_filling import Schema, SchemaFiller
from .sentences import ranked, sentences_of

SENTENCES_OF_AN_ANSWER = 3
NOTHING = "There is nothing to read in the prompt."


class OfflineModel(LocalModel):
    """A deterministic model that needs no key and no network: it quotes, it does not understand.

    It reads the prompts and tool results of the conversation. The first paragraph of a prompt that
    has several is taken as the task, the rest as the text. As text it answers with the sentences
    that share the most words with the task. For a structured output it fills the schema: strings
    with the sentences that share the most words with the field's name and description, choices by
    what is mentioned, numbers and booleans with the plainest value. The value is always valid by
    the schema. It calls no tools.

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
        """Sentences of the text, in the form that the request asks for.

        Raises:
            ValueError: The output's schema has a pattern that no part of the text matches.
        """
        task, text = _task_and_text(messages)
        sentences = sentences_of(text)
        schema = _output_schema(parameters)
        part: ModelResponsePart
        if schema is not None:
            part = structured_part(SchemaFiller(schema, text, sentences).fill(), parameters)
        else:
            best = ranked(sentences, task)[:SENTENCES_OF_AN_ANSWER]
            part = TextPart(" ".join(sorted(best, key=sentences.index)) or NOTHING)
        return ModelResponse(parts=[part], provider_response_id=f"offline-{self.calls}")


def _output_schema(parameters: ModelRequestParameters) -> Schema | None:
    """What a structured answer has to fit; None for one that is text."""
    if parameters.output_tools and not parameters.allow_text_output:
        return parameters.output_tools[0].parameters_json_schema
    return parameters.output_object.json_schema if parameters.output_object else None


def _task_and_text(messages: Iterable[ModelMessage]) -> tuple[str, str]:
    """The first paragraph of the first prompt, and what there is to read in all of them."""
    tasks: list[str] = []
    texts: list[str] = []
    for text in _texts_to_read(messages):
        first, _, rest = "\n".join(text.splitlines()).strip().partition("\n\n")
        tasks.append(first)
        texts.append(rest if rest.strip() else first)
    return "".join(tasks[:1]), "\n\n".join(texts)


def _texts_to_read(messages: Iterable[ModelMessage]) -> Iterator[str]:
    """Prompts, and what tools have given."""
    for part in itertools.chain.from_iterable(message.parts for message in messages):
        if isinstance(part, UserPromptPart):
            yield prompt_text(part)
        elif isinstance(part, ToolReturnPart):
            yield f"{part.tool_name}\n\n{part.model_response_str()}"
