"""Retries of providers' SDKs: how many they make, and that they make none beneath the books."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

_RETRY_COUNTS: Final = (
    ("max_retries",),  # OpenAI, Anthropic, Groq
    ("_client_wrapper", "httpx_client", "base_max_retries"),  # Cohere
)
_GOOGLE_ATTEMPTS: Final = 5
"""Of google-genai, where its retry options name none."""


def sdk_obeys(model: Model) -> bool:
    """Whether the SDK of a model, out of its wrappers, makes one attempt when a request's settings
    say so.
    """
    if model.provider is None or "max_retries" in model.unsupported_settings:
        return False
    client: type = type(getattr(model, "client", None))
    return _copies_itself(client)


def client_retries(model: Model) -> int:
    """How often the SDK of a model, out of its wrappers, would send a request again if it were not
    told otherwise.
    """
    client = getattr(model, "client", None) if sdk_obeys(model) else None
    for path in _RETRY_COUNTS:
        if isinstance(count := attribute_at(client, path), int):
            return count
    if (google := attribute_at(client, ("_api_client", "_http_options", "retry_options"))) is None:
        return 0
    attempts = getattr(google, "attempts", None)
    return max((_GOOGLE_ATTEMPTS if attempts is None else attempts) - 1, 0)


def settings_for_one_attempt(model: Model, settings: ModelSettings | None) -> ModelSettings | None:
    """Settings that have the SDK of a model, out of its wrappers, make one attempt, as far as it
    can be told.
    """
    if model.provider is None:
        return settings
    told = ModelSettings(**(settings or {}))
    is_asked = "max_retries" in told
    told.pop("max_retries", None)
    if not sdk_obeys(model):
        return told if is_asked else settings
    makes_one = getattr(getattr(model, "client", None), "max_retries", None) == 0
    if makes_one and not is_asked and "max_retries" not in (model.settings or {}):
        return settings
    told["max_retries"] = 0
    return told


def retry_nothing(model: Model) -> None:
    """Have the client of a model that FastroAgent built make one attempt of each request."""
    provider: Any = model.provider
    lazy = getattr(provider, "_lazy_client", None)
    if isinstance(options := getattr(lazy, "_kwargs", None), dict):
        # xAI: gRPC retries below everything that could count, and is told only when its channel is
        # made.
        options.setdefault("channel_options", [("grpc.enable_retries", 0)])
        return
    client: Any = getattr(model, "client", None)
    if isinstance(getattr(client, "max_retries", None), int):
        client.max_retries = 0
    elif (events := boto_events(client)) is not None:
        service = client.meta.service_model.service_id.hyphenize()
        events.unregister(f"needs-retry.{service}", unique_id=f"retry-config-{service}")


@lru_cache(maxsize=256)
def _copies_itself(client: type) -> bool:
    # pydantic-ai 2.62 hands this client's AWS profile to a copy that anthropic 2.12 gives it
    # already: TypeError.
    return all(base.__name__ != "AsyncAnthropicBedrock" for base in client.__mro__)


def attribute_at(client: object, path: tuple[str, ...]) -> object:
    """What stands at a path of attributes; None where one is missing."""
    for name in path:
        client = getattr(client, name, None)
    return client


def boto_events(client: Any) -> Any:
    """The events of a client of AWS; None: it is none."""
    meta = getattr(client, "meta", None)
    return getattr(meta, "events", None) if hasattr(meta, "service_model") else None
