"""A loopback provider: OpenAI's Chat Completions, Responses and Batch APIs, and an invoice of what
it bills.

`python -m tests.support.provider` takes a command in each line of its standard input, and ends when
that is closed, also by the death of whoever started it. The path of an invoice begins a provider of
its own, whose port it says, and ends the one before; a script is for that one.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.behaviours import (
    Answer,
    Behaviour,
    Die,
    Expire,
    Hang,
    Refuse,
    Turns,
    from_json,
)
from tests.support.invoice import Invoice, InvoiceLine
from tests.support.openai_api import (
    Chat,
    Embeddings,
    Images,
    Responses,
    error_body,
    last_prompt,
    tool_results,
)
from tests.support.openai_batches import Batches

__all__ = [
    "KEY",
    "MODEL",
    "Answer",
    "Die",
    "Expire",
    "Hang",
    "InvoiceLine",
    "LoopbackProvider",
    "Refuse",
    "Turns",
]

KEY = "loopback-key"
MODEL = "gpt-5-mini-2025-08-07"
"""What answers whoever asks for `gpt-5-mini`; any other model answers under its own name."""


class LoopbackProvider:
    """Serves on a free port of 127.0.0.1, in threads of its own, while its `with` block lasts.

    Args:
        invoice: Where to write the invoice as JSON lines; None keeps it in `lines` only.
    """

    def __init__(self, invoice: Path | None = None) -> None:
        self.invoice = Invoice(invoice)
        self.batches = Batches(self.next_behaviour, self._book_of_batch, self.invoice)
        self.closing = threading.Event()
        self._scripts: dict[str, list[Behaviour]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
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
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def script(self, prompt: str, *behaviours: Behaviour) -> None:
        """What to do, in order, with the requests whose last user prompt contains a text; the last
        goes on.
        """
        with self._lock:
            self._scripts[prompt] = list(behaviours)

    def _book_of_batch(
        self, body: dict[str, Any], prompt: str, behaviour: Any, path: str, batch: str
    ) -> InvoiceLine:
        return self.invoice.book(
            **_asked(body), **self.received(path, prompt), batch=batch, **_billed(behaviour)
        )

    def received(self, path: str, prompt: str) -> dict[str, Any]:
        host = f"127.0.0.1:{self.port}"
        return {"host": host, "received_at": time.time(), "path": path, "prompt": prompt}

    def next_behaviour(self, prompt: str, turn: int) -> Answer | Refuse | Hang | Die | Expire:
        """The behaviour that is due for a prompt in a conversation with so many tool results."""
        behaviour = self._next(prompt)
        return (
            behaviour.answers[min(turn, len(behaviour.answers) - 1)]
            if isinstance(behaviour, Turns)
            else behaviour
        )

    def _next(self, prompt: str) -> Behaviour:
        with self._lock:
            for part, behaviours in self._scripts.items():
                if part in prompt:
                    return behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        return Answer()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    provider: LoopbackProvider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass

    def do_GET(self) -> None:
        self._answer_about_batches("GET", b"")

    def do_DELETE(self) -> None:
        self._answer_about_batches("DELETE", b"")

    def _answer_about_batches(self, method: str, content: bytes) -> bool:
        """Whether a request was about files or batches, and is answered."""
        batches, content_type = self.server.provider.batches, self.headers.get("Content-Type", "")
        answer = batches.answer(method, self.path, content, content_type)
        if answer is None:
            return False
        status, body = answer
        try:
            self._send_body(status, body if isinstance(body, bytes) else json.dumps(body).encode())
        except OSError:
            self.close_connection = True
        return True

    def do_POST(self) -> None:
        received_at, length = time.time(), int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:
            self.close_connection = True  # the client went away before the request had left it
            return
        if self._answer_about_batches("POST", content):
            return
        self.body = json.loads(content)
        provider = self.server.provider
        prompt, turn = last_prompt(self.body), tool_results(self.body)
        if self.headers.get("Authorization") == f"Bearer {KEY}":
            behaviour = provider.next_behaviour(prompt, turn)
        else:
            behaviour = Refuse(401, None, "invalid_api_key")
        line = provider.invoice.book(
            **(provider.received(self.path, prompt) | {"received_at": received_at}),
            **_asked(self.body),
            **(_billed(behaviour) | _not_answered_by_name(self.path)),
        )
        delivered = False
        try:
            delivered = self._act(behaviour, line)
        except OSError:
            self.close_connection = True
        finally:
            provider.invoice.end(line, delivered=delivered)

    def _act(self, behaviour: Answer | Refuse | Hang | Die, line: InvoiceLine) -> bool:
        """Do it; whether the client was there to the last byte."""
        if isinstance(behaviour, Refuse):
            wait = (
                {}
                if behaviour.retry_after_ms is None
                else {"retry-after-ms": str(behaviour.retry_after_ms)}
            )
            self._send_json(
                behaviour.status, error_body("Refused by the script.", behaviour.code), wait
            )
            return True
        if isinstance(behaviour, Hang):
            self._wait_until_left()
            return False
        answer = Answer("one two three four five six") if isinstance(behaviour, Die) else behaviour
        time.sleep(random.uniform(0, answer.slowest))
        if line.streamed:
            kind = Responses if self.path.endswith("/responses") else Chat
            return self._stream(kind(answer, line).events(), behaviour)
        if answer.left_after is not None:
            self._wait_until_left()
        api = next((api for end, api in _APIS.items() if self.path.endswith(end)), Chat)
        self._send_json(200, api(answer, line).whole())
        return True

    def _stream(self, events: Iterator[bytes], behaviour: Answer | Die) -> bool:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        words = behaviour.words if isinstance(behaviour, Die) else behaviour.left_after
        # What is said before the first word takes up to four events.
        stop = None if words is None else words + 4
        for sent, event in enumerate(events):
            if sent == stop and isinstance(behaviour, Die):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return False
            if sent == stop:
                self._wait_until_left()
            self._send_chunk(event)
            time.sleep(0.002)
        self._send_chunk(b"")
        return True

    def _send_chunk(self, data: bytes) -> None:
        self._send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send_body(status, json.dumps(body).encode(), headers)

    def _send_body(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self._check_still_there()
        self.end_headers()
        self._send(data)

    def _send(self, data: bytes) -> None:
        self._check_still_there()
        self.wfile.write(data)
        self.wfile.flush()

    def _check_still_there(self) -> None:
        """Raise an `OSError` when the client has closed the connection; the kernel takes what is
        sent all the same.
        """
        try:
            if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                raise ConnectionResetError("The client has left.")
        except BlockingIOError:
            pass

    def _wait_until_left(self) -> None:
        """Returns early when the provider is closed."""
        while not self.server.provider.closing.is_set():
            self._check_still_there()
            time.sleep(0.005)
        raise ConnectionAbortedError("The provider is closed.")


_APIS: dict[str, Any] = {
    "/responses": Responses,
    "/embeddings": Embeddings,
    "/images/generations": Images,
}


def _not_answered_by_name(path: str) -> dict[str, Any]:
    """What the invoice says of an answer that is no text."""
    if path.endswith("/embeddings"):
        return {"response_id": None, "output_tokens": 0}
    return {"response_id": None} if path.endswith("/images/generations") else {}


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    """What the invoice says of a request's body."""
    return {
        "tool_results": tool_results(body),
        "streamed": bool(body.get("stream")),
        "asked": body["model"],
        "model": MODEL if body["model"] == "gpt-5-mini" else body["model"],
    }


def _billed(behaviour: Answer | Refuse | Hang | Die | Expire) -> dict[str, Any]:
    """What the invoice says of a behaviour."""
    if isinstance(behaviour, Expire):
        return {"outcome": "expired", "status": 0, "billed": False}
    if isinstance(behaviour, Refuse):
        return {"outcome": "refused", "status": behaviour.status, "billed": False}
    bill = {"status": 200, "billed": True, "input_tokens": behaviour.input_tokens}
    if isinstance(behaviour, Hang):
        return {"outcome": "hung", **bill}
    bill["output_tokens"] = behaviour.output_tokens
    if isinstance(behaviour, Die):
        return {"outcome": "died", **bill}
    return {"outcome": "answered", **bill, "cached_tokens": behaviour.cached_tokens}


def _serve() -> None:
    with ExitStack() as serving:
        for line in sys.stdin:
            command = json.loads(line)
            if "invoice" in command:
                serving.close()
                provider = serving.enter_context(LoopbackProvider(Path(command["invoice"])))
                print(provider.port, flush=True)  # noqa: T201 - whoever started it reads this
            else:
                provider.script(command["prompt"], *map(from_json, command["behaviours"]))
                print("scripted", flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
