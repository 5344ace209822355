"""OpenAI's files and batches, for the loopback provider."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from tests.support.behaviours import Answer, Expire, Hang, Refuse
from tests.support.invoice import Invoice, InvoiceLine
from tests.support.openai_api import Responses, error_body, last_prompt, tool_results

Choose = Callable[[str, int], Any]
"""The behaviour that is due for a prompt with so many tool results."""
BookLine = Callable[..., InvoiceLine]


@dataclass
class _Request:
    custom_id: str
    behaviour: Any
    line: InvoiceLine


@dataclass
class _Batch:
    id: str
    input_file: str
    created_at: float
    requests: list[_Request]
    cancelled: bool = False
    output_file: str | None = None
    error_file: str | None = None
    final: str | None = field(default=None)

    @property
    def seconds(self) -> float:
        """How long the provider takes: as long as its slowest answer."""
        if any(isinstance(request.behaviour, Hang) for request in self.requests):
            return float("inf")
        return max((getattr(r.behaviour, "slowest", 0.0) for r in self.requests), default=0.0)

    @property
    def status(self) -> str:
        if self.final is None and self.cancelled:
            self.final = "cancelled"
        if self.final is None and time.time() - self.created_at >= self.seconds:
            expired = any(isinstance(request.behaviour, Expire) for request in self.requests)
            self.final = "expired" if expired else "completed"
        return self.final or "in_progress"


class Batches:
    """What the provider was given in files, and made of it.

    Each request of a batch is a line of the invoice, from its submission on.

    Args:
        choose: Gives the behaviour for a request.
        book: Writes a request's line, by its body and behaviour.
        invoice: Of the provider.
    """

    def __init__(self, choose: Choose, book: BookLine, invoice: Invoice) -> None:
        self._choose = choose
        self._book = book
        self._invoice = invoice
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, _Batch] = {}
        self._lock = threading.Lock()

    @property
    def submitted(self) -> int:
        """How many batches were submitted so far."""
        return len(self._batches)

    def answer(
        self, method: str, path: str, content: bytes, content_type: str
    ) -> tuple[int, Any] | None:
        """Status and body (an object, or bytes) for a request; None: it is about something else."""
        _, _, rest = path.partition("/v1/")
        parts = rest.partition("?")[0].split("/")
        with self._lock:
            match [method, *parts]:
                case ["POST", "files"]:
                    return 200, self._upload(content, content_type)
                case ["GET", "files", name, "content"]:
                    return 200, self._files[name]
                case ["DELETE", "files", name]:
                    return 200, {"id": name, "object": "file", "deleted": True}
                case ["POST", "batches"]:
                    return self._create(json.loads(content), path)
                case ["GET", "batches"]:
                    newest = [self._told(batch) for batch in reversed(self._batches.values())]
                    return 200, {"object": "list", "data": newest, "has_more": False}
                case ["GET", "batches", name]:
                    return 200, self._told(self._batches[name])
                case ["POST", "batches", name, "cancel"]:
                    self._cancel(self._batches[name])
                    return 200, self._told(self._batches[name])
        return None

    def _upload(self, content: bytes, content_type: str) -> dict[str, Any]:
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        form = BytesParser(policy=HTTP).parsebytes(head + content)
        [part] = [p for p in form.iter_parts() if p.get_filename()]
        name = self._keep(part.get_payload(decode=True))
        return {
            "id": name,
            "object": "file",
            "bytes": len(self._files[name]),
            "created_at": int(time.time()),
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self._files) + 1}"
        self._files[name] = content
        return name

    def _create(self, body: dict[str, Any], path: str) -> tuple[int, Any]:
        now, asked = time.time(), []
        for text in self._files[body["input_file_id"]].splitlines():
            line = json.loads(text)
            prompt = last_prompt(line["body"])
            behaviour = self._choose(prompt, tool_results(line["body"]))
            asked.append((line, prompt, behaviour))
        # A script can have the whole batch refused.
        for _, _, behaviour in asked:
            if isinstance(behaviour, Refuse) and behaviour.code == "batch_refused":
                return behaviour.status, error_body("The batch is refused.", behaviour.code)
        name = f"batch_{len(self._batches) + 1}"
        requests = [
            _Request(line["custom_id"], behaviour, self._line(line, prompt, behaviour, name, path))
            for line, prompt, behaviour in asked
        ]
        batch = _Batch(name, body["input_file_id"], now, requests)
        self._batches[name] = batch
        return 200, self._told(batch)

    def _line(
        self, line: dict[str, Any], prompt: str, behaviour: Any, batch: str, path: str
    ) -> InvoiceLine:
        booked = self._book(line["body"], prompt, behaviour, path, batch)
        self._invoice.end(booked, delivered=True)
        return replace(booked, delivered=True)

    def _cancel(self, batch: _Batch) -> None:
        if batch.status != "in_progress":
            return
        batch.cancelled = True
        for request in batch.requests:
            self._invoice.amend(request.line, outcome="withdrawn", billed=False)

    def _told(self, batch: _Batch) -> dict[str, Any]:
        status = batch.status
        if status in ("completed", "expired") and batch.output_file is None:
            self._write_results(batch)
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/responses",
            "input_file_id": batch.input_file,
            "completion_window": "24h",
            "status": status,
            "output_file_id": batch.output_file,
            "error_file_id": batch.error_file,
            "created_at": int(batch.created_at),
            "request_counts": {"total": len(batch.requests), "completed": 0, "failed": 0},
        }

    def _write_results(self, batch: _Batch) -> None:
        answered, failed = [], []
        for request in batch.requests:
            match request.behaviour:
                case Answer():
                    body = Responses(request.behaviour, request.line).whole()
                    answered.append(_result(request, {"status_code": 200, "body": body}, None))
                case Refuse(status=status, code=code):
                    body = error_body("Refused by the script.", code)
                    failed.append(_result(request, {"status_code": status, "body": body}, None))
                case Expire():
                    error = {"code": "batch_expired", "message": "The batch expired."}
                    failed.append(_result(request, None, error))
        batch.output_file = self._keep(b"\n".join(answered))
        batch.error_file = self._keep(b"\n".join(failed)) if failed else None


def _result(request: _Request, response: Any, error: Any) -> bytes:
    return json.dumps(
        {"custom_id": request.custom_id, "response": response, "error": error}
    ).encode()
