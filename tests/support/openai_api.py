"""What OpenAI's Chat Completions and Responses APIs send, for the loopback provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.behaviours import Answer
from tests.support.invoice import InvoiceLine


class Chat:
    """Chat Completions."""

    def __init__(self, answer: Answer, line: InvoiceLine) -> None:
        self.answer, self.line = answer, line
        self.head = {"id": line.response_id, "created": 1_700_000_000, "model": line.model}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.answer.tool else self.answer.text,
        }
        if self.answer.tool:
            message["tool_calls"] = [self._call()]
        choice = {"index": 0, "message": message, "finish_reason": self._reason, "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], **self._usage()}

    def events(self) -> Iterator[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if self.answer.tool:
            deltas.append({"tool_calls": [{"index": 0, **self._call()}]})
        else:
            deltas += [{"content": word} for word in _words(self.answer.text)]
        for delta in deltas:
            yield self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])
        yield self._chunk([{"index": 0, "delta": {}, "finish_reason": self._reason}])
        yield self._chunk([], **self._usage())
        yield b"data: [DONE]\n\n"

    @property
    def _reason(self) -> str:
        return "tool_calls" if self.answer.tool else "stop"

    def _call(self) -> dict[str, Any]:
        function = {"name": self.answer.tool, "arguments": json.dumps(self.answer.args)}
        return {"id": f"call_{self.line.number}", "type": "function", "function": function}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event({**self.head, "object": "chat.completion.chunk", "choices": choices, **more})

    def _usage(self) -> dict[str, Any]:
        if not self.answer.reports_usage:
            return {}
        line = self.line
        return {
            "usage": {
                "prompt_tokens": line.input_tokens,
                "completion_tokens": line.output_tokens,
                "total_tokens": line.input_tokens + line.output_tokens,
                "prompt_tokens_details": {"cached_tokens": line.cached_tokens},
            }
        }


class Responses:
    """The Responses API."""

    def __init__(self, answer: Answer, line: InvoiceLine) -> None:
        self.answer, self.line = answer, line

    def whole(self, status: str = "completed") -> dict[str, Any]:
        done = status == "completed"
        return {
            "id": self.line.response_id,
            "object": "response",
            "created_at": 1_700_000_000,
            "status": status,
            "model": self.line.model,
            "output": [self._item()] if done else [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": self._usage() if done and self.answer.reports_usage else None,
        }

    def events(self) -> Iterator[bytes]:
        place = {"output_index": 0, "item_id": self._item()["id"]}
        part = {"type": "output_text", "text": "", "annotations": []}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": self.whole("in_progress")},
            {"type": "response.in_progress", "response": self.whole("in_progress")},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": self._item(empty=True),
            },
        ]
        if self.answer.tool:
            args = json.dumps(self.answer.args)
            events += [
                {"type": "response.function_call_arguments.delta", **place, "delta": args},
                {"type": "response.function_call_arguments.done", **place, "arguments": args},
            ]
        else:
            place["content_index"] = 0
            events.append({"type": "response.content_part.added", **place, "part": part})
            events += [
                {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
                for word in _words(self.answer.text)
            ]
            events.append(
                {
                    "type": "response.output_text.done",
                    **place,
                    "text": self.answer.text,
                    "logprobs": [],
                }
            )
        events += [
            {"type": "response.output_item.done", "output_index": 0, "item": self._item()},
            {"type": "response.completed", "response": self.whole()},
        ]
        for number, event in enumerate(events):
            yield f"event: {event['type']}\n".encode() + _event(
                {**event, "sequence_number": number}
            )

    def _item(self, *, empty: bool = False) -> dict[str, Any]:
        number, status = self.line.number, "in_progress" if empty else "completed"
        if self.answer.tool:
            return {
                "type": "function_call",
                "id": f"fc_{number}",
                "call_id": f"call_{number}",
                "name": self.answer.tool,
                "arguments": "" if empty else json.dumps(self.answer.args),
                "status": status,
            }
        text = {"type": "output_text", "text": self.answer.text, "annotations": []}
        content = [] if empty else [text]
        return {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.line.input_tokens,
            "input_tokens_details": {"cached_tokens": self.line.cached_tokens},
            "output_tokens": self.line.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.line.input_tokens + self.line.output_tokens,
        }


class Embeddings:
    """The Embeddings API, whose answers have no id."""

    def __init__(self, answer: Answer, line: InvoiceLine) -> None:
        self.line = line

    def whole(self) -> dict[str, Any]:
        tokens = self.line.input_tokens
        return {
            "object": "list",
            "model": self.line.model,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


class Images:
    """The Images API, whose answers have no id either."""

    def __init__(self, answer: Answer, line: InvoiceLine) -> None:
        self.line = line

    def whole(self) -> dict[str, Any]:
        asked, drawn = self.line.input_tokens, self.line.output_tokens
        return {
            "created": 1_700_000_000,
            "data": [{"b64_json": _PIXEL}],
            "usage": {
                "input_tokens": asked,
                "output_tokens": drawn,
                "total_tokens": asked + drawn,
                "input_tokens_details": {"text_tokens": asked, "image_tokens": 0},
                "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            },
        }


_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
"""A PNG of one pixel."""


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def error_body(message: str, code: str) -> dict[str, Any]:
    """An error as both APIs tell it."""
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def last_prompt(body: dict[str, Any]) -> str:
    """The text of the last user message, in either API's form."""
    messages = body.get("messages") or body.get("input") or body.get("prompt") or []
    if isinstance(messages, str):
        return messages
    if messages and isinstance(messages[0], str):
        return str(messages[0])
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message["content"]
            return (
                content
                if isinstance(content, str)
                else " ".join(part.get("text", "") for part in content)
            )
    return ""


def tool_results(body: dict[str, Any]) -> int:
    """How many results of tools a request carries, in either API's form."""
    messages = body.get("messages") or body.get("input") or []
    if isinstance(messages, str) or (messages and isinstance(messages[0], str)):
        return 0
    return sum(m.get("role") == "tool" or m.get("type") == "function_call_output" for m in messages)
