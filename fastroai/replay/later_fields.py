"""Fields that pydantic-ai gained after the first records were written.

A record is found by all that its request says. A field that a newer version adds says nothing
until somebody sets it: as long as it has its default it is left out, so that what was answered
before an upgrade is found after it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic_ai import messages
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_core import to_jsonable_python

_FILE = "vendor_metadata _media_type _identifier kind"
_CALL = "tool_name args tool_call_id tool_kind id provider_name provider_details part_kind"
_RETURN = "tool_name content tool_call_id tool_kind metadata timestamp outcome part_kind"
_OF_PROVIDER = "id provider_name provider_details part_kind"

FIRST = {
    "SystemPromptPart": "content timestamp dynamic_ref scope metadata part_kind",
    "UserPromptPart": "content timestamp part_kind",
    "ToolReturnPart": f"{_RETURN} retry",
    "RetryPromptPart": "content tool_name tool_call_id timestamp part_kind",
    "RetryFeedbackPart": "content retry timestamp part_kind",
    "InstructionPart": "content dynamic on_change name id part_kind",
    "InstructionBaselinePart": "instructions part_kind",
    "InstructionDeltaPart": "id content base_hash part_kind",
    "InstructionDigest": "id dynamic content_hash part_kind",
    "ModelSettingsDeltaPart": "settings top_level part_kind",
    "ToolAvailabilityDeltaPart": "tools_added tool_call_id part_kind",
    "TextPart": f"content citations {_OF_PROVIDER}",
    "ThinkingPart": f"content signature {_OF_PROVIDER}",
    "FilePart": f"content {_OF_PROVIDER}",
    "CompactionPart": f"content metadata {_OF_PROVIDER}",
    "SpeechPart": f"speaker transcript audio interrupted_at_ms {_OF_PROVIDER}",
    "ToolCallPart": _CALL,
    "NativeToolCallPart": _CALL,
    "NativeToolReturnPart": f"{_RETURN} provider_name provider_details",
    "TextContent": "content metadata kind",
    "StructuredContent": "content metadata kind value tag description",
    "CachePoint": "kind ttl",
    "BinaryContent": f"data media_type {_FILE}",
    "UploadedFile": f"file_id provider_name {_FILE}",
    "ImageUrl": f"url force_download {_FILE}",
    "AudioUrl": f"url force_download {_FILE}",
    "VideoUrl": f"url force_download {_FILE}",
    "DocumentUrl": f"url force_download {_FILE}",
    "ToolDefinition": (
        "name parameters_json_schema description outer_typed_dict_key strict sequential kind "
        "metadata timeout defer_loading unless_native with_native tool_kind unless_tool_kind "
        "return_schema include_return_schema toolset_id capability_id"
    ),
    "ModelRequestParameters": (
        "function_tools native_tools _telemetry_mcp_url_ids _telemetry_mcp_url_toolset_ids "
        "_telemetry_mcp_url_tool_names tool_visibility revealed_tool_names introduced_tool_names "
        "deferred_capability_ids output_mode output_object output_tools prompted_output_template "
        "allow_text_output allow_image_output instruction_parts instruction_visibility thinking "
        "cache"
    ),
}
"""By class, the fields it had when records were first written (pydantic-ai 2.62)."""


@cache
def later_fields(cls: type[Any]) -> dict[str, Any]:
    """The fields that a class has gained since, each with its default in JSON."""
    first = FIRST.get(cls.__name__)
    if first is None:
        return {}
    later: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name not in first.split():
            make = field.default_factory
            default = field.default if make is dataclasses.MISSING else make()
            later[field.name] = to_jsonable_python(default, fallback=repr)
    return later


@cache
def _later_by_kind() -> dict[str, dict[str, Any]]:
    """The same by what the JSON of a message's part, or of an item of its content, calls itself."""
    by_kind: dict[str, dict[str, Any]] = {}
    for name in FIRST:
        cls = vars(messages).get(name)
        if cls is not None and (later := later_fields(cls)):
            kinds = {field.name: field.default for field in dataclasses.fields(cls)}
            by_kind[str(kinds.get("part_kind") or kinds["kind"])] = later
    return by_kind


@cache
def has_later_fields() -> bool:
    """Whether the installed pydantic-ai has any."""
    classes = (ModelRequestParameters, ToolDefinition)
    return bool(_later_by_kind()) or any(map(later_fields, classes))


def drop_later_defaults(messages: Iterable[dict[str, Any]]) -> None:
    """Leave them out of the JSON of messages: of their parts, and of the items of their content."""
    by_kind = _later_by_kind()
    for part in itertools.chain.from_iterable(message["parts"] for message in messages):
        content = part.get("content")
        for item in (part, *(content if isinstance(content, list) else ())):
            if isinstance(item, dict):
                kind = item.get("part_kind") or item.get("kind")
                _drop_equal(item, by_kind.get(str(kind), {}))


def _drop_equal(item: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for name, default in defaults.items():
        if item.get(name) == default:
            item.pop(name, None)


def known_parameters(parameters: ModelRequestParameters) -> object:
    """What a request is asked besides its messages, without them."""
    known = _known(parameters)
    for name in ("function_tools", "output_tools"):
        known[name] = list(map(_known, known[name]))
    return known


def _known(value: Any) -> dict[str, Any]:
    later = later_fields(value.__class__)
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {n: v for n, v in given.items() if n not in later or not _is(v, later[n])}


def _is(value: object, default: object) -> bool:
    return bool(to_jsonable_python(value, fallback=repr) == default)
