"""Choice of the jobs' model."""

from __future__ import annotations

from pydantic_ai.models import Model
from pydantic_ai.providers import infer_provider_class

from fastroai.errors import SettingsError
from fastroai.settings import load_settings

DEFAULT_MODEL = "openai:gpt-5-mini"
OFFLINE = "offline"
CONCURRENT_CALLS = 8
"""How many items of one step are worked on at once."""


def choose_model() -> str | Model:
    """`FASTROAI_MODEL`; unset, `openai:gpt-5-mini` where there is an OPENAI_API_KEY, else the
    offline model.

    `FASTROAI_MODEL=offline` simulates also where there is a key.

    Raises:
        SettingsError: `FASTROAI_MODEL` names no provider, or none that can be used here.
    """
    settings = load_settings()
    if settings.model is None and settings.openai_api_key is not None:
        return DEFAULT_MODEL
    if settings.model is None or settings.model == OFFLINE:
        from fastroai.testing import OfflineModel

        return OfflineModel()
    if ":" not in settings.model and settings.model != "test":
        raise SettingsError(
            f"FASTROAI_MODEL={settings.model!r} names no provider. Give provider:model, for "
            f"example {DEFAULT_MODEL}, or {OFFLINE!r} to simulate."
        )
    if settings.model != "test":
        _check_provider(settings.model)
    return settings.model


def _check_provider(model: str) -> None:
    provider = model.partition(":")[0].removeprefix("gateway/")
    try:
        infer_provider_class(provider)
    except (ValueError, ImportError) as error:
        raise SettingsError(
            f"FASTROAI_MODEL={model!r}: {provider!r} is no provider that can be used here "
            f"({error}). Give provider:model, for example {DEFAULT_MODEL}, or {OFFLINE!r} to "
            "simulate."
        ) from error
