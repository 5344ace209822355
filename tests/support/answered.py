"""Models with the true client of a provider, which is answered from memory."""

from __future__ import annotations

import importlib
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import httpx2 as httpx
from pydantic_ai.models import Model
from pydantic_ai.providers import infer_provider_class

_CLASSES = {
    "openai-chat": "openai.OpenAIChatModel",
    "openai-responses": "openai.OpenAIResponsesModel",
    "anthropic": "anthropic.AnthropicModel",
    "anthropic-vertex": "anthropic.AnthropicModel",
    "google": "google.GoogleModel",
    "bedrock": "bedrock.BedrockConverseModel",
    "OpenAIChatModel": "openai.OpenAIChatModel",
    "OpenRouterModel": "openrouter.OpenRouterModel",
}


def answered_model(case: Mapping[str, Any]) -> Model:
    """The model that a case asks: `client`, `base_url`, `model`, `settings`, and the `answers` that
    it gets, the last of them for ever.
    """
    module, name = _CLASSES[case.get("model_class") or case["client"]].split(".")
    model_class = getattr(importlib.import_module(f"pydantic_ai.models.{module}"), name)
    model: Model = model_class(
        case["model"], provider=_provider(case, _Answers(case)), settings=case.get("settings")
    )
    return model


class _Answers:
    def __init__(self, case: Mapping[str, Any]) -> None:
        self._answers = list(case["answers"])

    def take(self) -> tuple[int, dict[str, str], bytes]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        kind, body = _body(answer)
        return answer.get("status", 200), {"content-type": kind, **answer.get("headers", {})}, body


def _body(answer: Mapping[str, Any]) -> tuple[str, bytes]:
    if "sse" not in answer:
        return "application/json", json.dumps(answer["json"]).encode()
    lines: list[str] = []
    for event in answer["sse"]:
        if isinstance(event, str):
            lines += [event, ""]
            continue
        if "type" in event:
            lines.append(f"event: {event['type']}")
        lines += [f"data: {json.dumps(event)}", ""]
    return "text/event-stream", "\n".join([*lines, ""]).encode()


class _Stream(httpx.AsyncByteStream):
    """A body in small pieces, as it comes from a socket."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> Any:
        for start in range(0, len(self._body), 97):
            yield self._body[start : start + 97]


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, answers: _Answers) -> None:
        self._answers = answers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        status, headers, body = self._answers.take()
        return httpx.Response(status, headers=headers, stream=_Stream(body), request=request)


def _provider(case: Mapping[str, Any], answers: _Answers) -> Any:
    client, url = case["client"], case["base_url"]
    if client == "bedrock":
        return infer_provider_class("bedrock")(bedrock_client=_boto_client(url, answers))  # type: ignore[call-arg]
    http = httpx.AsyncClient(transport=_Transport(answers))
    options: dict[str, Any] = {"base_url": url, "max_retries": 0, "http_client": http}
    if client == "google":
        return infer_provider_class("google")(api_key="k", http_client=http, base_url=url)  # type: ignore[call-arg]
    if client == "anthropic":
        from anthropic import AsyncAnthropic

        sdk: Any = AsyncAnthropic(**options, api_key="k")
        return infer_provider_class("anthropic")(anthropic_client=sdk)  # type: ignore[call-arg]
    if client == "anthropic-vertex":
        from anthropic import AsyncAnthropicVertex

        region = re.search(r"//([\w-]+)-aiplatform", url)
        sdk = AsyncAnthropicVertex(
            **options,
            region=region[1] if region else "global",
            project_id="project",
            access_token="token",
        )
        return infer_provider_class("anthropic")(anthropic_client=sdk)  # type: ignore[call-arg]
    from openai import AsyncAzureOpenAI, AsyncOpenAI

    name = case.get("provider", "openai")
    if name == "azure":
        del options["base_url"]
        sdk = AsyncAzureOpenAI(
            **options, azure_endpoint=url, api_version="2025-04-01-preview", api_key="k"
        )
    else:
        sdk = AsyncOpenAI(**options, api_key="k")
    return infer_provider_class(name)(openai_client=sdk)  # type: ignore[call-arg]


class _Raw(io.BytesIO):
    def stream(self, **_: Any) -> Any:
        yield self.read()


def _boto_client(url: str, answers: _Answers) -> Any:
    import boto3
    from botocore.awsrequest import AWSResponse

    def answer(request: Any, **_: Any) -> Any:
        status, headers, body = answers.take()
        return AWSResponse(request.url, status, headers, _Raw(body))

    region = re.search(r"bedrock-runtime\.([\w-]+)\.", url)
    assert region, url
    client = boto3.client(
        "bedrock-runtime",
        region_name=region[1],
        aws_access_key_id="k",
        aws_secret_access_key="k",
    )
    client.meta.events.register("before-send.bedrock-runtime", answer)
    return client
