"""Models of agents: made from their names, once for each event loop."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.providers import Provider, infer_provider

from ..metering.sdk_retries import retry_nothing
from ..providers import canonical_provider


class ModelsOfLoops:
    """The models of one agent. They keep their connections, which belong to an event loop."""

    def __init__(self) -> None:
        self._made: dict[asyncio.AbstractEventLoop, Model] = {}

    def of_running_loop(self, model: str) -> Model | None:
        """The model of a name, as it was made for the running loop.

        Returns:
            None: it can't be made. The run then raises why, unless another model was put in this
                one's place.
        """
        loop = asyncio.get_running_loop()
        if (known := self._made.get(loop)) is not None:
            return known
        try:
            made = make_model(model)
        # a name that can't be resolved here is pydantic-ai's to refuse, when the agent runs
        except Exception:
            return None
        retry_nothing(made)
        # Their connections hold their loop, so weak references would keep the closed ones.
        alive = {other: kept for other, kept in self._made.items() if not other.is_closed()}
        self._made = {loop: made} | alive
        return made


def make_model(name: str) -> Model:
    """A model by its name, as agents ask it.

    Raises:
        Exception: pydantic-ai's own, for example where the provider's key is missing.
    """
    return infer_model(name, _provider)


def _provider(name: str) -> Provider[Any]:
    """A provider for a model's name; OpenAI's with the key of the settings, which may be in `.env`
    only.
    """
    from ..settings import load_settings  # only here: pydantic-settings takes its time to import

    key = load_settings().openai_api_key if canonical_provider(name) == "openai" else None
    if key is None or name.startswith("gateway/"):
        return infer_provider(name)
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIProvider(api_key=key.get_secret_value())


def is_overridden(agent: Agent[Any, Any]) -> bool:
    """Whether another model was put in place of the agent's (`agent.override`); taken as so where
    it can't be told.
    """
    override = getattr(agent, "_override_model", None)
    return not isinstance(override, ContextVar) or override.get(None) is not None


def reasons(model: object) -> bool:
    """Whether a model reasons unless told otherwise; not known of a model made of models."""
    try:
        return isinstance(model, Model) and bool(model.profile.get("thinking_enabled_by_default"))
    except (NotImplementedError, UserError):
        return False
