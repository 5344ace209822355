"""Reads a provider's invoice: a table with a line for each request."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import chain
from sys import intern
from typing import Any

COLUMNS: dict[str, tuple[str, ...]] = {
    "response_id": ("response_id", "id", "request_id", "completion_id", "generation_id"),
    "model": ("model", "model_name", "model_id", "snapshot_id", "model_permaslug"),
    "at": ("at", "time", "timestamp", "datetime", "created_at", "created", "sent_at", "date"),
    "input_tokens": (
        "input_tokens",
        "prompt_tokens",
        "tokens_in",
        "tokens_prompt",
        "n_context_tokens_total",
    ),
    "output_tokens": (
        "output_tokens",
        "completion_tokens",
        "tokens_out",
        "tokens_completion",
        "n_generated_tokens_total",
    ),
    "cost_usd": (
        "cost_usd",
        "cost",
        "amount",
        "amount_usd",
        "total_cost",
        "cost_total",
        "usd",
        "price",
    ),
}
"""What an invoice may call its columns; case, spaces and dashes don't matter."""

_ADDED_TO_THE_COST = frozenset({"byok_usage_inference"})
"""What OpenRouter says that the provider behind it bills for a key of one's own."""

_CURRENCIES = frozenset({"currency", "amount_currency", "cost_currency"})

_DOLLARS, _ZONE = re.compile(r"USD|\$", re.IGNORECASE), re.compile(r" (?:UTC|GMT)$")

_DAY = re.compile(r"20\d\d[01]\d[0-3]\d")

_MILLISECONDS = 1e11
"""More seconds than that are more than three thousand years."""

_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One request as the provider bills it. None: the invoice does not say.

    Attributes:
        number: Its line in the file; the line of the column names is 1.
        at: Timezone-aware; a time without a zone is taken for UTC.
        cost_usd: With as many places as the invoice gives: costs are compared to that many.
    """

    number: int
    response_id: str | None = None
    model: str | None = None
    at: datetime | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None


def read_invoice(
    rows: Iterable[str], columns: Mapping[str, str] | None = None
) -> tuple[InvoiceLine, ...]:
    """The lines of an invoice in CSV, with a first line of column names.

    Args:
        rows: An open file, or its lines.
        columns: What this invoice calls `response_id`, `model`, `at`, `input_tokens`,
            `output_tokens` or `cost_usd`, where `COLUMNS` does not know.

    Raises:
        ValueError: A column that was named is not there, none says which request a line is for, or
            a value can't be read; the message says which.
    """
    reader = separated(rows)
    header = next(reader, (0, []))[1]
    found = _columns_in(header, columns or {})
    places_of = {ours: header.index(theirs) for ours, theirs in found.items()}
    names = list(map(column_name, header))
    added = [place for place, name in enumerate(names) if name in _ADDED_TO_THE_COST]
    currencies = currency_columns(names)
    lines = []
    for number, row in reader:
        if any(row):
            refuse_other_currencies(number, row, currencies)
            lines.append(_with_added(_line(number, row, places_of, header), row, added))
    return tuple(lines)


def separated(rows: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The cells of a table, each line with its number; they may be separated by commas, semicolons
    or tabs, as the line of the column names shows.
    """
    all_rows = iter(rows)
    first = next(all_rows, "")
    separator = max(",;\t", key=first.count)
    reader = csv.reader(chain([first], all_rows), delimiter=separator)
    for row in reader:
        yield reader.line_num, row


def column_name(name: str) -> str:
    """A column's name as it is compared."""
    return name.strip().lower().replace(" ", "_").replace("-", "_").lstrip("\ufeff")


def currency_columns(names: Sequence[str]) -> list[int]:
    """Which columns say in what currency a line is, given all their names as they are compared."""
    return [place for place, name in enumerate(names) if name in _CURRENCIES]


def refuse_other_currencies(number: int, row: Sequence[str], columns: Iterable[int]) -> None:
    """Refuse a line that is not in USD."""
    for place in columns:
        currency = row[place].strip() if place < len(row) else ""
        if currency.lower() not in ("", "usd"):
            raise ValueError(f"Line {number} of the export is in {currency!r}, not in USD.")


def time(text: str) -> datetime:
    """A time, in seconds or milliseconds since 1970 or in ISO 8601; without a zone, UTC."""
    if "-" not in text[1:] and not _DAY.fullmatch(text):
        with suppress(ValueError):
            seconds = float(text)
            return datetime.fromtimestamp(seconds / (1 if seconds < _MILLISECONDS else 1000), UTC)
    at = datetime.fromisoformat(_ZONE.sub("", text))
    return at if at.utcoffset() is not None else at.replace(tzinfo=UTC)


def count(text: str) -> int:
    """A whole number, perhaps with commas."""
    number = _number(text)
    if number != int(number):
        raise ValueError
    return int(number)


def amount(text: str) -> Decimal:
    """An amount in USD, perhaps with its sign and commas."""
    return _number(_DOLLARS.sub("", text).strip())


def _with_added(line: InvoiceLine, row: Sequence[str], places: Iterable[int]) -> InvoiceLine:
    """A line with what it bills beside its cost, which the ledger has in one sum."""
    texts = [row[place].strip() for place in places if place < len(row)]
    if line.cost_usd is None or not any(texts):
        return line
    return replace(line, cost_usd=sum(map(amount, filter(None, texts)), line.cost_usd))


def _columns_in(header: list[str], given: Mapping[str, str]) -> dict[str, str]:
    """What an invoice calls our columns; those that it lacks are left out."""
    names = {column_name(name): name for name in header}
    found: dict[str, str] = {}
    for ours, theirs in COLUMNS.items():
        wanted = (given[ours],) if ours in given else theirs
        known = [names[column_name(name)] for name in wanted if column_name(name) in names]
        if known:
            found[ours] = known[0]
        elif ours in given:
            raise ValueError(f"The invoice has no column {given[ours]!r}. It has {header}.")
    if found.keys().isdisjoint(("response_id", "model")):
        raise ValueError(
            "The invoice has no column for the response id or the model. It has "
            f"{header}; known are {', '.join(COLUMNS['response_id'] + COLUMNS['model'])}."
        )
    return found


def _line(
    number: int, row: Sequence[str], places_of: Mapping[str, int], header: Sequence[str]
) -> InvoiceLine:
    given: dict[str, Any] = {"number": number}
    for name, place in places_of.items():
        text = row[place].strip() if place < len(row) else ""
        if not text:
            continue
        try:
            given[name] = _READ[name](text)
        except (ValueError, InvalidOperation):
            raise ValueError(
                f"Line {number} of the invoice: {header[place]!r} can't be {text!r}."
            ) from None
    return InvoiceLine(**given)


def _number(text: str) -> Decimal:
    # A comma before other than three digits is no separator of thousands: 0,001 is not 1.
    if "," in text and not _THOUSANDS.fullmatch(text):
        raise ValueError
    number = Decimal(text.replace(",", ""))
    if not number.is_finite():
        raise ValueError
    return number


_READ: dict[str, Callable[[str], Any]] = {
    "response_id": str,
    "model": intern,
    "at": time,
    "input_tokens": count,
    "output_tokens": count,
    "cost_usd": amount,
}
"""How each column of an invoice is read."""
