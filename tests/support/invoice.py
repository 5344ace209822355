"""The invoice of the loopback provider: JSON lines, each one written before its request is
answered.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class InvoiceLine:
    """One request the provider received.

    Attributes:
        received_at: Seconds since the epoch.
        outcome: What the provider did: `answered`, `refused`, `hung` or `died`.
        delivered: Whether the client was still there for the last byte; None: not known yet, or
            never.
        asked: The model that was asked for.
        model: The model that answered.
        tool_results: How many the conversation held: 0 for the first request of a tool loop.
        batch: The batch that it was in, which costs half; None: it was asked by itself.
    """

    number: int
    host: str
    received_at: float
    path: str
    prompt: str
    outcome: str
    status: int
    billed: bool
    asked: str
    model: str
    delivered: bool | None = None
    response_id: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    streamed: bool = False
    tool_results: int = 0
    batch: str | None = None

    @property
    def became(self) -> str:
        """The outcome, with `left` for an answer that could not be delivered."""
        return "left" if self.outcome == "answered" and self.delivered is False else self.outcome

    @property
    def received(self) -> datetime:
        """When it was received."""
        return datetime.fromtimestamp(self.received_at, UTC)


def fixed_price(line: InvoiceLine) -> Decimal:
    """USD of a line at `fixed_prices()`: 1e-6 for an input token, a tenth of it where cached, two
    for an output one.
    """
    return _price(line, "1", "0.1", "2")


def list_price(line: InvoiceLine) -> Decimal:
    """USD of a line as OpenAI lists it.

    Source: https://platform.openai.com/docs/pricing, standard processing.
    """
    return _price(line, *LISTED[line.asked])


LISTED = {
    "gpt-5-mini": ("0.25", "0.025", "2.00"),
    "gpt-4.1-mini": ("0.40", "0.10", "1.60"),
    "text-embedding-3-small": ("0.02", "0.02", "0"),
    "gpt-image-1": ("5.00", "1.25", "40.00"),
}
"""USD per million tokens: input, cached input, output."""


def _price(line: InvoiceLine, full: str, cached: str, output: str) -> Decimal:
    parts = (
        (line.input_tokens - line.cached_tokens) * Decimal(full),
        line.cached_tokens * Decimal(cached),
        line.output_tokens * Decimal(output),
    )
    return sum(parts, Decimal(0)) / (1_000_000 if line.batch is None else 2_000_000)


Price = Callable[[InvoiceLine], Decimal]


class Invoice:
    """Collects lines and appends each to a file: once before its request is answered, and again
    when that has ended.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._lines: list[InvoiceLine] = []
        self._file = file
        self._lock = threading.Lock()

    @property
    def lines(self) -> list[InvoiceLine]:
        """All lines so far, in the order in which the requests were received."""
        with self._lock:
            return list(self._lines)

    def book(self, **line: Any) -> InvoiceLine:
        """Write a line."""
        with self._lock:
            number = len(self._lines) + 1
            response_id = f"resp_{number}" if line["status"] == 200 else None
            booked = InvoiceLine(number=number, **({"response_id": response_id} | line))
            self._lines.append(booked)
            self._write(booked)
        return booked

    def end(self, line: InvoiceLine, *, delivered: bool) -> None:
        """Note what became of the answer."""
        with self._lock:
            ended = self._lines[line.number - 1] = replace(line, delivered=delivered)
            self._write(ended)

    def amend(self, line: InvoiceLine, **changes: Any) -> None:
        """Change what is billed for a request that was withdrawn."""
        with self._lock:
            amended = self._lines[line.number - 1] = replace(line, **changes)
            self._write(amended)

    def _write(self, line: InvoiceLine) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(line)) + "\n")


def read_invoice(file: Path) -> list[InvoiceLine]:
    """The lines of an invoice's file, as they were last written."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    # One that is being written has no end yet.
    lines = [InvoiceLine(**json.loads(text)) for text in texts if text.endswith("\n")]
    return list({line.number: line for line in lines}.values())


def invoiced_usd(lines: Iterable[InvoiceLine], price: Price = fixed_price) -> Decimal:
    """What some lines cost together."""
    return sum(map(price, lines), Decimal(0))
