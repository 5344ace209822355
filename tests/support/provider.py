"""A loopback provider: OpenAI's Chat Completions and Responses APIs, and an invoice of what it bills."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

KEY = "loopback-key"
MODEL = "gpt-5-mini-2025-08-07"


@dataclass(frozen=True)
class Answer:
    """An answer, billed. `tool` names a function to call, with its arguments, instead of a text."""

    text: str = "Hello from the loopback provider."
    tool: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    input_tokens: int = 120
    output_tokens: int = 30
    cached_tokens: int = 0
    reports_usage: bool = True


@dataclass(frozen=True)
class Refuse:
    """An HTTP error, not billed."""

    status: int = 429
    retry_after_ms: int | None = 1
    code: str = "refused_by_script"


@dataclass(frozen=True)
class Hang:
    """Accepts the request, bills it, and never answers."""

    input_tokens: int = 120


@dataclass(frozen=True)
class Die:
    """Bills the request, sends the first words of a stream, and cuts the connection."""

    words: int = 2
    input_tokens: int = 120
    output_tokens: int = 30


Behaviour = Answer | Refuse | Hang | Die


@dataclass(frozen=True)
class InvoiceLine:
    """One request the provider received."""

    number: int
    path: str
    prompt: str
    outcome: str
    status: int
    billed: bool
    model: str = MODEL
    response_id: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    streamed: bool = False


class LoopbackProvider:
    """Serves on a free port of 127.0.0.1, in threads of its own, while its `with` block lasts.

    Args:
        invoice: Where to write the invoice as JSON lines; None keeps it in `lines` only.
    """

    def __init__(self, invoice: Path | None = None) -> None:
        self.lines: list[InvoiceLine] = []
        self._invoice = invoice
        self._scripts: dict[str, list[Behaviour]] = {}
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self.hanging = threading.Event()
        """Set once a request hangs."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    @property
    def base_url(self) -> str:
        """For `OPENAI_BASE_URL`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def host(self) -> str:
        """Host and port, as ledger entries name it."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def billed(self) -> list[InvoiceLine]:
        """What would be on the bill."""
        return [line for line in self.lines if line.billed]

    def script(self, prompt: str, *behaviours: Behaviour) -> None:
        """What to do, in order, with the requests whose last user prompt contains a text; the last goes on."""
        self._scripts[prompt] = list(behaviours)

    def next_behaviour(self, prompt: str) -> Behaviour:
        """The behaviour that is due for a prompt."""
        with self._lock:
            for part, behaviours in self._scripts.items():
                if part in prompt:
                    return behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        return Answer()

    def book(self, **line: Any) -> InvoiceLine:
        """Write an invoice line."""
        with self._lock:
            number = len(self.lines) + 1
            written = InvoiceLine(
                number=number, response_id=f"resp_{number}" if line["status"] == 200 else None, **line
            )
            self.lines.append(written)
            if self._invoice is not None:
                with self._invoice.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(written)) + "\n")
        return written


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    provider: LoopbackProvider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, streamed = _last_prompt(body), bool(body.get("stream"))
        about = {"path": self.path, "prompt": prompt, "streamed": streamed}
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.server.provider.book(**about, outcome="refused", status=401, billed=False)
            self._send_json(401, _error("Incorrect API key provided: wrong-***.", "invalid_api_key"))
            return
        behaviour = self.server.provider.next_behaviour(prompt)
        if isinstance(behaviour, Refuse):
            self.server.provider.book(**about, outcome="refused", status=behaviour.status, billed=False)
            wait = {} if behaviour.retry_after_ms is None else {"retry-after-ms": str(behaviour.retry_after_ms)}
            self._send_json(behaviour.status, _error("Refused by the script.", behaviour.code), wait)
        elif isinstance(behaviour, Hang):
            self.server.provider.book(
                **about, outcome="hung", status=200, billed=True, input_tokens=behaviour.input_tokens
            )
            self.server.provider.hanging.set()
            self.server.provider.closing.wait(30)
            self.close_connection = True
        else:
            self._answer(behaviour, about, streamed)

    def _answer(self, behaviour: Answer | Die, about: dict[str, Any], streamed: bool) -> None:
        dies = isinstance(behaviour, Die)
        answer = Answer("one two three four five six") if isinstance(behaviour, Die) else behaviour
        line = self.server.provider.book(
            **about,
            outcome="died" if dies else "answered",
            status=200,
            billed=True,
            input_tokens=behaviour.input_tokens,
            output_tokens=behaviour.output_tokens,
            cached_tokens=answer.cached_tokens,
        )
        api = _Responses(answer, line) if self.path.endswith("/responses") else _Chat(answer, line)
        if not streamed:
            self._send_json(200, api.whole())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for sent, event in enumerate(api.events()):
            if isinstance(behaviour, Die) and sent >= behaviour.words + 4:
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self._send_chunk(event)
            time.sleep(0.002)
        self._send_chunk(b"")

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Chat:
    """Chat Completions."""

    def __init__(self, answer: Answer, line: InvoiceLine) -> None:
        self.answer, self.line = answer, line
        self.head = {"id": line.response_id, "created": 1_700_000_000, "model": line.model}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None if self.answer.tool else self.answer.text}
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


class _Responses:
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
            {"type": "response.output_item.added", "output_index": 0, "item": self._item(empty=True)},
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
            events.append({"type": "response.output_text.done", **place, "text": self.answer.text, "logprobs": []})
        events += [
            {"type": "response.output_item.done", "output_index": 0, "item": self._item()},
            {"type": "response.completed", "response": self.whole()},
        ]
        for number, event in enumerate(events):
            yield f"event: {event['type']}\n".encode() + _event({**event, "sequence_number": number})

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
        return {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": status, "content": content}

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.line.input_tokens,
            "input_tokens_details": {"cached_tokens": self.line.cached_tokens},
            "output_tokens": self.line.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.line.input_tokens + self.line.output_tokens,
        }


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


def _last_prompt(body: dict[str, Any]) -> str:
    """The text of the last user message, in either API's form."""
    messages = body.get("messages") or body.get("input") or []
    if isinstance(messages, str):
        return messages
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message["content"]
            return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    return ""
