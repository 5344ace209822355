"""What `fastroai run` shows on a terminal: progress, a result, and a cost table that adds up."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from typing import Any, TextIO
from uuid import uuid4

from pydantic import BaseModel

from .usage.ledger import EntryState, LedgerEntry, total_usd

WIDTH = 100
STEP_SPAN = "step."


class ProgressTracer:
    """Writes one line when a step starts and one when it ends, with how long it took."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._attempts: dict[str, int] = {}

    @asynccontextmanager
    async def span(self, name: str, **attributes: Any) -> AsyncIterator[str]:
        """Report a step's span; other spans pass silently."""
        span_id = str(uuid4())
        if not name.startswith(STEP_SPAN):
            yield span_id
            return
        step_id = name.removeprefix(STEP_SPAN)
        attempt = self._attempts[step_id] = self._attempts.get(step_id, 0) + 1
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._say(f"  start   {step_id}{again}")
        started = time.perf_counter()
        outcome = "stopped"
        try:
            yield span_id
            outcome = "done"
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._say(f"  {outcome:<7} {step_id}{again} ({time.perf_counter() - started:.1f} s)")

    def log_metric(self, trace_id: str, name: str, value: Any) -> None:
        """Nothing: the cost table says it at the end."""

    def log_error(self, trace_id: str, error: Exception, context: dict[str, Any] | None = None) -> None:
        """Nothing: the run's own error is reported once, at the end."""

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def render(value: Any) -> str:
    """A result as indented text: models, dataclasses and mappings by field, sequences as lists."""
    return "\n".join(_lines(value, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, str) or (not isinstance(value, Iterable | BaseModel) and not _is_record(value)):
        yield from _wrapped(_scalar(value), indent)
        return
    items = _items(value)
    if items is None:
        for item in value:
            lines = list(_lines(item, indent + "  ")) or [indent]
            yield f"{indent}- {lines[0].lstrip()}"
            yield from lines[1:]
        return
    for name, item in items:
        if _is_empty(item):
            yield f"{indent}{name}: (none)"
        elif not isinstance(item, str) and (isinstance(item, Iterable | BaseModel) or _is_record(item)):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "  ")
        else:
            yield from _wrapped(f"{name}: {_scalar(item)}", indent)


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Name and value of each field; None for a plain sequence."""
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if _is_record(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    return None


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, Sequence | Mapping | set) and not value)


def _scalar(value: Any) -> str:
    return {None: "(none)", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def _wrapped(text: str, indent: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.splitlines() or [""]):
        first = indent if number == 0 else indent + "  "
        yield from textwrap.wrap(
            paragraph, WIDTH, initial_indent=first, subsequent_indent=indent + "  ", break_on_hyphens=False
        ) or [""]


@dataclass(frozen=True, slots=True)
class CostLine:
    """Requests of one step to one model, as a line of the table; `usd` is exact."""

    step: str
    model: str
    requests: int
    replayed: int
    input_tokens: int
    output_tokens: int
    usd: Decimal

    @classmethod
    def of(cls, step: str, model: str, entries: Sequence[LedgerEntry]) -> CostLine:
        """Sum entries: replayed requests are counted apart, and are neither tokens nor money."""
        spend = [e for e in entries if e.is_spend]
        return cls(
            step=step,
            model=model,
            requests=sum(e.request_count for e in entries if e.state is not EntryState.REPLAYED),
            replayed=sum(e.state is EntryState.REPLAYED for e in entries),
            input_tokens=sum(e.tokens.input_tokens for e in spend),
            output_tokens=sum(e.tokens.output_tokens for e in spend),
            usd=total_usd(spend),
        )


def cost_lines(entries: Iterable[LedgerEntry], steps: Iterable[str] = ()) -> list[CostLine]:
    """One line for each step and model; a step without requests has one of zeros.

    Args:
        entries: A run's ledger entries.
        steps: Step ids in the order in which they are listed.
    """
    groups: dict[str, dict[str, list[LedgerEntry]]] = {step_id: {} for step_id in steps}
    for entry in entries:
        model = entry.model_answered or entry.model_asked or "unknown"
        groups.setdefault(entry.attribution.step_id or "-", {}).setdefault(model, []).append(entry)
    return [
        CostLine.of(step_id, model, group)
        for step_id, models in groups.items()
        for model, group in (models or {"-": []}).items()
    ]


_HEADINGS = ("step", "model", "requests", "replayed", "input tokens", "output tokens", "USD")


def cost_table(entries: Sequence[LedgerEntry], steps: Iterable[str] = ()) -> str:
    """The lines of `cost_lines` and their total, in exact USD, with what must be known to read them."""
    lines = cost_lines(entries, steps)
    total = CostLine.of("total", "", entries)
    places = max((-int(line.usd.normalize().as_tuple().exponent) for line in lines), default=0)
    rows = [_HEADINGS, *(_cells(line, max(places, 2)) for line in (*lines, total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    ruler = "  ".join("-" * width for width in widths)
    shown = ["  ".join(_aligned(row, widths)) for row in rows]
    return "\n".join([shown[0].rstrip(), ruler, *shown[1:-1], ruler, shown[-1], *_remarks(entries)])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for heading, cell, width in zip(_HEADINGS, row, widths, strict=True):
        yield cell.ljust(width) if heading in ("step", "model") else cell.rjust(width)


def _cells(line: CostLine, places: int) -> tuple[str, ...]:
    counts = (line.requests, line.replayed, line.input_tokens, line.output_tokens)
    return line.step, line.model, *(f"{count:,}" for count in counts), f"{line.usd:.{places}f}"


def _remarks(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    simulated = [e for e in entries if e.simulated]
    if simulated:
        models = ", ".join(sorted({_priced_as(e) for e in simulated}))
        which = "" if len(simulated) == len(entries) else f"{len(simulated)} of {len(entries)} requests: "
        yield f"{which}SIMULATED by an offline model, priced as {models}; nothing was paid."
    unknown = sum(e.is_spend and e.cost_usd is None for e in entries)
    if unknown:
        yield f"Not in the total: {unknown} request(s) whose cost is not known (no listed price, or no answer seen)."
    refused = sum(e.state is EntryState.REFUSED for e in entries)
    if refused:
        yield f"{refused} request(s) were refused by the provider, which bills nothing for them."


def _priced_as(entry: LedgerEntry) -> str:
    """`provider:model` as the price's source names it."""
    listed = re.search(r"([\w-]+)/(\S+?)(,|$)", entry.price_source or "")
    return f"{listed[1]}:{listed[2]}" if listed else entry.model_answered or "an unknown model"
