"""Unwraps models: the one that sends, its settings and its URL."""

from __future__ import annotations

from typing import Any

from pydantic_ai.models import Model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ..pricing.price_list import is_listed_host


def innermost(model: Model) -> Model:
    """The model that sends, without what is wrapped around it."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    return model


def merged(model_settings: ModelSettings | None, settings: ModelSettings | None) -> dict[str, Any]:
    """A model's own settings and those of one request, which win."""
    return {**(model_settings or {}), **(settings or {})}


def sends_setting(model: Model, name: str) -> bool:
    """Whether a model class puts a setting on the wire."""
    return name not in innermost(model).unsupported_settings


def endpoint(model: Model, answered: str | None = None) -> str | None:
    """Where a model's requests go, which the answer may say.

    Some providers name their own URL even where the client was given another one: then the client
    is believed, unless that one is a provider's too.
    """
    client_url = str(getattr(getattr(innermost(model), "client", None), "base_url", None) or "")
    said = answered or model.base_url
    if not client_url or (said and client_url.startswith(said)):
        return said
    return said if said and is_listed_host(client_url) else client_url
