"""The models that the agents of a step ask, as far as its code tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from ..agent.agent import FastroAgent
from ..fingerprint.steps import agents_of
from ..metering.members import is_made_of_models
from ..providers import canonical_provider
from .base import AnyStep


@dataclass(frozen=True, slots=True)
class AskedModels:
    """The models of a step's agents.

    Attributes:
        names: As `provider:model`, each provider under one name.
        is_known: Whether these are all; if not, any model may be asked.
        is_simulated: Whether one of them sends nothing.
    """

    names: frozenset[str]
    is_known: bool
    is_simulated: bool

    def are_those_of(self, asked: frozenset[str | None]) -> bool:
        """Whether requests that asked some models may be of this step as it is now."""
        return not self.is_known or all(one and one_name(one) in self.names for one in asked)


def one_name(model: str) -> str:
    """A model's id under the one name of its provider: `openai-chat:x` is `openai:x`."""
    provider, colon, name = model.partition(":")
    return f"{canonical_provider(provider)}:{name}" if colon else model


def asked_models(step: AnyStep, cheaper_model: Model | str | None = None) -> AskedModels:
    """The models that a step's agents ask.

    Args:
        cheaper_model: What takes their requests at the limit of a budget, where they name none.
    """
    agents = agents_of(step)
    found = [model for agent in agents for model in _models_of(agent)]
    if found and cheaper_model is not None:
        found.append(cheaper_model)
    senders = [sender for model in found for sender in _senders_of(model)]
    names = [one if isinstance(one, str) else getattr(one, "model_id", None) for one in senders]
    return AskedModels(
        frozenset(map(one_name, filter(None, names))),
        is_known=bool(names) and all(names),
        is_simulated=any(getattr(one, "simulated", False) is True for one in senders),
    )


def _models_of(agent: Any) -> Iterator[object]:
    if isinstance(agent, FastroAgent):
        if agent.config.cheaper_model is not None:
            yield agent.config.cheaper_model
        agent = agent.agent
    yield agent.model


def _senders_of(model: object) -> Iterator[object]:
    """Those that send, by name or as they are; None: nobody can say."""
    if isinstance(model, WrapperModel):
        yield from _senders_of(model.wrapped)
    elif isinstance(model, FallbackModel):
        for member in model.models:
            yield from _senders_of(member)
    elif isinstance(model, Model) and is_made_of_models(model):
        yield None
    else:
        yield model
