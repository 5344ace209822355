"""A server that answers as scripted, in the shapes of several providers' APIs, and counts what
arrives.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

DROP: Final = "drop"
"""Takes the request and closes the connection."""
HANG: Final = "hang"
"""Takes the request and answers nothing."""
Answer = int | str


class ScriptedHTTP:
    """Serves on a free port of 127.0.0.1 while its `with` block lasts.

    Args:
        *answers: HTTP statuses, `DROP` or `HANG`, in the order in which they are due; the last goes
            on.
        port: Where to listen; 0 takes any free port.
    """

    def __init__(self, *answers: Answer, port: int = 0) -> None:
        self.answers = list(answers)
        self.arrived: list[str] = []
        """The path of each request."""
        self.on_arrival: Callable[[], object] = lambda: None
        """Called in the server's thread before anything is answered."""
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.script = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def next_answer(self, path: str) -> Answer:
        """What is due, now that a request has arrived."""
        with self._lock:
            self.arrived.append(path)
            self.on_arrival()
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    script: ScriptedHTTP

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.server.script.next_answer(self.path)
        if answer == DROP:
            self.close_connection = True
            self.connection.shutdown(2)
        elif answer == HANG:
            self.server.script.closing.wait(30)
            self.close_connection = True
        elif answer == 307:
            self._send(307, "application/json", b"{}", {"Location": self.path})
        elif answer != 200:
            error = {
                "error": {
                    "message": "As scripted.",
                    "type": "scripted",
                    "code": answer,
                    "status": "INTERNAL",
                }
            }
            self._send(
                int(answer), "application/json", json.dumps(error).encode(), {"retry-after-ms": "1"}
            )
        elif body.get("stream"):
            self._send(200, "text/event-stream", _stream(self.path))
        else:
            self._send(200, "application/json", json.dumps(_whole(self.path)).encode())

    def _send(
        self, status: int, kind: str, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _whole(path: str) -> dict[str, Any]:
    """A complete answer of the API that has the path: 100 tokens in, 10 out."""
    if path.endswith("/responses"):
        text = {"type": "output_text", "text": "Hi", "annotations": []}
        message = {
            "type": "message",
            "id": "m1",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
        details = {
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return {
            "id": "r1",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "gpt-5-mini",
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110, **details},
        }
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": "Hi"}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-5-mini",
            "choices": [
                {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    if path.endswith("/messages"):
        return {
            "id": "a1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5",
            "content": [{"type": "text", "text": "Hi"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 10},
        }
    if "generateContent" in path:
        content = {"role": "model", "parts": [{"text": "Hi"}]}
        return {
            "candidates": [{"content": content, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": 100,
                "candidatesTokenCount": 10,
                "totalTokenCount": 110,
            },
            "modelVersion": "gemini-2.5-flash",
            "responseId": "g1",
        }
    if path.endswith("/converse"):
        return {
            "output": {"message": {"role": "assistant", "content": [{"text": "Hi"}]}},
            "stopReason": "end_turn",
            "metrics": {"latencyMs": 1},
            "usage": {"inputTokens": 100, "outputTokens": 10, "totalTokens": 110},
        }
    raise ValueError(f"No answer is known for {path!r}; add its API's shape here.")


def _stream(path: str) -> bytes:
    """The answer of `_whole` as a stream of events."""
    return _messages_stream(_whole(path)) if path.endswith("/messages") else _chat_stream()


def _messages_stream(whole: dict[str, Any]) -> bytes:
    empty = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 100, "output_tokens": 1},
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": empty},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 100, "output_tokens": 10},
        },
        {"type": "message_stop"},
    ]
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def _chat_stream() -> bytes:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    chunks = [
        {**head, "choices": [delta]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**head, "choices": [], "usage": usage},
    ]
    return (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
        + b"data: [DONE]\n\n"
    )
