"""Each public method of pydantic-ai's models is metered, or listed here with the reason why not: a
release that adds a way of sending fails this.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic_ai
import pytest
from pydantic_ai.embeddings.wrapper import WrapperEmbeddingModel
from pydantic_ai.images.wrapper import WrapperImageGenerationModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from fastroai.ledger.recorder import RequestRecorder
from fastroai.metering.scope import DispatchScope
from fastroai.metering.sending_methods import MARK

METERED = {
    *("request", "request_stream", "compact_messages", "decide"),
    *("batch_encode", "batch_create", "batch_status", "batch_results", "batch_cancel"),
    *("embed", "generate", "connect", "connect_webrtc"),
}
"""What sends, or reads an answer that is paid for: replaced wherever a class defines it."""

NOT_METERED = {
    "answer_webrtc_offer": "opens a call of a browser; it is billed as connect_webrtc follows it",
    "create_client_secret": "lets a browser call by itself, which nobody here sees",
    "hang_up": "ends a call",
    "cancel_suspended_response": "ends a job, which its request was booked for",
    "count_tokens": "is free at each provider that offers it",
    "max_input_tokens": "is a constant, or read from a list of models, which is free",
}
"""What may reach a provider and is no request of its own."""

SENDS_NOTHING = {
    *("accepts_server_state", "accepts_stateless_artifacts"),
    *("batch_decode", "batch_request_size", "continuation_delay", "customize_request_parameters"),
    *("gen_tool_args", "model_attributes", "prepare_embed", "prepare_generate"),
    *("prepare_messages", "prepare_request", "resolve_cache_retention", "serialize_any"),
    *("resolve_prompt_cache_retention", "supported_native_tools"),
    "unsupported_native_tool_settings",
}
"""What only computes."""

HANDS_ON = (WrapperModel, FallbackModel, WrapperEmbeddingModel, WrapperImageGenerationModel)
"""Classes that have another model send: that one is metered."""


def models() -> Iterator[type[Any]]:
    """The classes of pydantic-ai that name a model and its provider, as far as their client's
    package is installed.
    """
    found: dict[type[Any], None] = {}
    for module in pkgutil.walk_packages(pydantic_ai.__path__, "pydantic_ai."):
        if module.name.endswith("__main__") or "._cli" in module.name:
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        for value in names.values():
            if inspect.isclass(value) and hasattr(value, "model_name") and hasattr(value, "system"):
                found[value] = None
    return iter(found)


def holes(classes: Iterable[type[Any]]) -> list[str]:
    """The public methods that are neither metered nor listed."""
    found = []
    for cls in classes:
        for name, member in vars(cls).items():
            function = getattr(member, "__func__", member)
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            is_known = name in NOT_METERED or name in SENDS_NOTHING
            if not is_known and not (name in METERED and is_metered(cls, function)):
                found.append(f"{cls.__module__}.{cls.__qualname__}.{name}")
    return found


def is_metered(cls: type[Any], function: Any) -> bool:
    return (
        hasattr(function, MARK)
        or getattr(function, "__isabstractmethod__", False)
        or issubclass(cls, HANDS_ON)
        # What pydantic-ai's base classes define only raises.
        or cls.__name__ in ("Model", "EmbeddingModel", "ImageGenerationModel", "RealtimeModel")
    )


@pytest.fixture(autouse=True)
def _metering_is_installed() -> None:
    with DispatchScope(RequestRecorder()):
        pass


def test_each_way_of_sending_is_metered_or_listed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = list(models())
    names = {cls.__name__ for cls in classes}
    assert {"OpenAIResponsesModel", "AnthropicModel", "OpenAIEmbeddingModel"} <= names
    assert {"GoogleImageGenerationModel", "OpenAIRealtimeModel"} <= names
    assert holes(classes) == []


def test_a_sending_method_that_is_new_is_a_hole() -> None:
    class Model(pydantic_ai.models.Model[Any]):
        model_name = "new"  # type: ignore[assignment]
        system = "new"  # type: ignore[assignment]

        async def request(self, *args: Any) -> Any: ...

        async def transcribe(self, audio: bytes) -> str: ...

        def speak(self, text: str) -> bytes: ...

    assert [hole.rpartition(".")[2] for hole in holes([Model])] == ["transcribe", "speak"]


def test_a_new_kind_of_model_is_a_hole() -> None:
    class SpeechModel:
        model_name, system = "new", "new"

        async def generate(self, text: str) -> bytes: ...

    assert [hole.rpartition(".")[2] for hole in holes([SpeechModel])] == ["generate"]
