"""Reconciles a ledger with a provider's invoice: finds entries and lines without a partner."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from itertools import chain
from operator import itemgetter
from sys import intern
from typing import Any, TypeVar

from ..pricing.model_names import read_model_name, spellings
from ..pricing.money import EXACT
from .entries import ZERO_USD, EntryState, LedgerEntry, spend_of

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

TOLERANCE = timedelta(minutes=5)
"""How far apart the two clocks and the way between them may put one request."""

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class Match:
    """An entry and the invoice line for the same request.

    Attributes:
        by: What they were matched by: `response_id`, `tokens`, `cost` or `time`.
    """

    entry: LedgerEntry
    line: InvoiceLine
    by: str

    @property
    def differences(self) -> tuple[str, ...]:
        """What the two say otherwise, for people; what one of them does not say is no
        difference.
        """
        found = []
        if _tokens_known(self.entry):
            for name in ("input_tokens", "output_tokens"):
                ours, theirs = getattr(self.entry.tokens, name), getattr(self.line, name)
                if theirs is not None and ours != theirs:
                    found.append(f"{name}: {ours} in the ledger, {theirs} on the invoice")
        if not _same_cost(self.entry, self.line):
            found.append(
                f"cost: {self.entry.cost_usd} USD in the ledger, {self.line.cost_usd} on the "
                "invoice"
            )
        return tuple(found)


@dataclass(frozen=True)
class Reconciliation:
    """What became of each entry and each line.

    Attributes:
        matches: Entries with their lines, in the order of the lines.
        entries: Entries without a line, by time: not billed, billed later, or never received.
        lines: Lines without an entry: billed, and not in the ledger; or billed twice.
    """

    matches: tuple[Match, ...]
    entries: tuple[LedgerEntry, ...]
    lines: tuple[InvoiceLine, ...]

    @cached_property
    def differing(self) -> tuple[Match, ...]:
        """The matches whose partners say otherwise."""
        return tuple(match for match in self.matches if match.differences)

    @property
    def is_balanced(self) -> bool:
        """Whether each has a partner and all partners agree."""
        return not self.entries and not self.lines and not self.differing


class AgreeingPairs:
    """Takes entries, as they are read, that agree with the one line which names their response:
    nearly all, of which nobody wants to know more than what they add up to.

    Args:
        lines: Of an invoice.

    Attributes:
        number: How many pairs there are.
        booked_usd: What their entries cost, as far as it is known.
        billed_usd: What their lines do.
    """

    def __init__(self, lines: Iterable[InvoiceLine]) -> None:
        self._unnamed: list[InvoiceLine] = []
        self._named: dict[str, InvoiceLine] = {}
        self.number = 0
        self.booked_usd = self.billed_usd = ZERO_USD
        again: set[str] = set()
        for line in lines:
            name = line.response_id
            if name is None or name in again or name in self._named:
                self._unnamed.append(line)
                if name is not None:
                    again.add(name)
            else:
                self._named[name] = line
        # Which of several lines an entry is of, `reconcile` finds out.
        self._unnamed += [self._named.pop(name) for name in again if name in self._named]

    @property
    def lines(self) -> list[InvoiceLine]:
        """Those that are in no pair, in their order."""
        left = [*self._unnamed, *self._named.values()]
        return sorted(left, key=lambda line: line.number)

    def take(self, entry: LedgerEntry) -> bool:
        """Whether an entry agrees with its line, which is then no more among the others."""
        line = self._named.get(entry.response_id or "")
        if line is None or not entry.is_billed or Match(entry, line, "response_id").differences:
            return False
        del self._named[entry.response_id or ""]
        self.number += 1
        self.booked_usd = EXACT.add(self.booked_usd, spend_of(entry))
        self.billed_usd = EXACT.add(self.billed_usd, line.cost_usd or ZERO_USD)
        return True


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
    added = [header.index(name) for name in header if column_name(name) in _ADDED_TO_THE_COST]
    return tuple(
        _with_added(_line(number, row, places_of, header), row, added)
        for number, row in reader
        if any(row)
    )


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


def reconcile(
    entries: Iterable[LedgerEntry],
    lines: Iterable[InvoiceLine],
    *,
    tolerance: timedelta = TOLERANCE,
) -> Reconciliation:
    """Find the line for each entry and the entry for each line, one to one.

    By the provider's response id where both have it. Else by model and tokens, by model and cost,
    and for requests of which the ledger knows no outcome by model alone; of several the ones
    nearest in time, and none further apart than the tolerance. Two that name different responses
    are never matched.

    Args:
        entries: From a ledger, of the time and the provider that the invoice is for. Those that
            were not sent, were refused or were simulated are left aside.
        lines: From `read_invoice`.
        tolerance: How far apart in time the same request may be on both sides.
    """
    matching = _Matching(
        sorted((e for e in entries if e.is_spend and not e.simulated), key=lambda e: e.sent_at),
        list(lines),
        tolerance,
    )
    matching.by_response_id()
    matching.by_key("tokens", _tokens_key_of_entry, _tokens_key_of_line)
    known = {places(line.cost_usd) for line in matching.lines if line.cost_usd is not None}
    for digits in sorted(known):
        matching.by_key("cost", _cost_key_of_entry(digits), _cost_key_of_line(digits))
    matching.by_key("time", _open_key_of_entry, lambda line: same_model(line.model))
    return matching.result()


class _Matching:
    """The entries and lines that have no partner yet, and the pairs that were found."""

    def __init__(
        self, entries: list[LedgerEntry], lines: list[InvoiceLine], tolerance: timedelta
    ) -> None:
        self.entries, self.lines = entries, lines
        self._tolerance = tolerance
        self._matches: list[Match] = []

    def by_response_id(self) -> None:
        # Mostly, each is there once: lists of one would take as much room as the lines do.
        without = [entry for entry in self.entries if entry.response_id is None]
        first: dict[str | None, LedgerEntry] = {}
        further: dict[str | None, list[LedgerEntry]] = {}
        for entry in _without(self.entries, without):
            if first.setdefault(entry.response_id, entry) is not entry:
                further.setdefault(entry.response_id, []).append(entry)
        left = []
        for line in self.lines:
            name = line.response_id
            if name not in first:
                left.append(line)
                continue
            self._matches.append(Match(first.pop(name), line, "response_id"))
            if same := further.get(name):
                first[name] = same.pop(0)
        self.entries = _without(self.entries, [match.entry for match in self._matches])
        self.lines = left

    def by_key(
        self,
        by: str,
        key_of_entry: Callable[[LedgerEntry], Hashable | None],
        key_of_line: Callable[[InvoiceLine], Hashable | None],
    ) -> None:
        entries_of = _grouped(self.entries, key_of_entry)
        found = [
            Match(entry, line, by)
            for key, lines in _grouped(self.lines, key_of_line).items()
            for entry, line in self._nearest(entries_of.get(key, []), lines)
        ]
        self._matches += found
        self.entries = _without(self.entries, [match.entry for match in found])
        self.lines = _without(self.lines, [match.line for match in found])

    def result(self) -> Reconciliation:
        ordered = sorted(self._matches, key=lambda match: match.line.number)
        return Reconciliation(tuple(ordered), tuple(self.entries), tuple(self.lines))

    def _nearest(
        self, entries: list[LedgerEntry], lines: list[InvoiceLine]
    ) -> list[tuple[LedgerEntry, InvoiceLine]]:
        """Pairs of two lists, in their order in time: as many as there can be within the
        tolerance.
        """
        pairs: list[tuple[LedgerEntry, InvoiceLine]] = []
        waiting, passed = deque(entries), list[LedgerEntry]()
        timed = [(line.at, line) for line in lines if line.at is not None]
        for at, line in sorted(timed, key=itemgetter(0)):
            while waiting and waiting[0].sent_at < at - self._tolerance:
                passed.append(waiting.popleft())
            latest = at + self._tolerance
            entry = _first_until(latest, waiting, line)
            if entry is not None:
                waiting.remove(entry)
                pairs.append((entry, line))
        untimed = [line for line in lines if line.at is None]
        return pairs + _in_order([*passed, *waiting], untimed)


def _without(items: Iterable[T], gone: Iterable[T]) -> list[T]:
    ids = set(map(id, gone))
    return [item for item in items if id(item) not in ids]


def _first_until(
    latest: datetime, waiting: Iterable[LedgerEntry], line: InvoiceLine
) -> LedgerEntry | None:
    """The first of some entries in their order in time that a line may be of."""
    for entry in waiting:
        if entry.sent_at > latest:
            return None
        if _may_be_one(entry, line):
            return entry
    return None


def _in_order(
    entries: list[LedgerEntry], lines: list[InvoiceLine]
) -> list[tuple[LedgerEntry, InvoiceLine]]:
    """Each line with the first entry left that it may be of."""
    pairs: list[tuple[LedgerEntry, InvoiceLine]] = []
    left = list(entries)
    for line in lines:
        entry = next((e for e in left if _may_be_one(e, line)), None)
        if entry is not None:
            left.remove(entry)
            pairs.append((entry, line))
    return pairs


def _may_be_one(entry: LedgerEntry, line: InvoiceLine) -> bool:
    """Whether nothing says that they are two requests: with two response ids they are."""
    return entry.response_id is None or line.response_id is None


def _grouped(items: Iterable[T], key: Callable[[T], Hashable | None]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        if (value := key(item)) is not None:
            groups.setdefault(value, []).append(item)
    return groups


def _tokens_key_of_entry(entry: LedgerEntry) -> Hashable | None:
    if not _tokens_known(entry):
        return None
    return (
        answerer(entry),
        entry.tokens.input_tokens,
        entry.tokens.output_tokens,
    )


def _tokens_key_of_line(line: InvoiceLine) -> Hashable | None:
    if line.input_tokens is None or line.output_tokens is None:
        return None
    return same_model(line.model), line.input_tokens, line.output_tokens


def _cost_key_of_entry(digits: int) -> Callable[[LedgerEntry], Hashable | None]:
    def key(entry: LedgerEntry) -> Hashable | None:
        if entry.cost_usd is None or entry.state is EntryState.UNSETTLED:
            return None
        return answerer(entry), round(entry.cost_usd, digits)

    return key


def _cost_key_of_line(digits: int) -> Callable[[InvoiceLine], Hashable | None]:
    def key(line: InvoiceLine) -> Hashable | None:
        if line.cost_usd is None or line.input_tokens is not None:
            return None
        if places(line.cost_usd) != digits:
            return None
        return same_model(line.model), round(line.cost_usd, digits)

    return key


def _open_key_of_entry(entry: LedgerEntry) -> Hashable | None:
    return None if _tokens_known(entry) else answerer(entry)


def answerer(entry: LedgerEntry) -> str | None:
    """The model that answered an entry, or was asked, as invoices are compared with it."""
    return same_model(entry.model_answered or entry.model_asked)


def _tokens_known(entry: LedgerEntry) -> bool:
    """Whether the tokens are those of the whole request: a request that broke off may have cost
    more.
    """
    counted = entry.tokens.input_tokens or entry.tokens.output_tokens
    return bool(counted) and entry.state is not EntryState.UNSETTLED


def _same_cost(entry: LedgerEntry, line: InvoiceLine) -> bool:
    if entry.cost_usd is None or line.cost_usd is None or entry.state is EntryState.UNSETTLED:
        return True
    return abs(entry.cost_usd - line.cost_usd) <= Decimal(1).scaleb(-places(line.cost_usd)) / 2


def places(usd: Decimal | None) -> int:
    """How many places an amount has, as it is given."""
    exponent = usd.as_tuple().exponent if usd is not None else 0
    return max(0, -exponent) if isinstance(exponent, int) else 0


@lru_cache(maxsize=1024)
def same_model(name: str | None) -> str | None:
    """A model's name without provider and version, which the two sides give differently; also of
    one for people: `Claude Haiku 4.5`.
    """
    if not name:
        return None
    model = read_model_name(name)[0].model.replace(" ", "-").replace(".", "-")
    return list(spellings(model))[-1]


def column_name(name: str) -> str:
    """A column's name as it is compared."""
    return name.strip().lower().replace(" ", "_").replace("-", "_").lstrip("\ufeff")


def _line(
    number: int, row: Sequence[str], places_of: Mapping[str, int], header: Sequence[str]
) -> InvoiceLine:
    given: dict[str, Any] = {"number": number}
    refuse_other_currencies(number, dict(zip(map(column_name, header), row, strict=False)))
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


def refuse_other_currencies(number: int, row: Mapping[str, str]) -> None:
    """Refuse a line that is not in USD."""
    for name in _CURRENCIES & row.keys():
        if row[name].strip().lower() not in ("", "usd"):
            raise ValueError(f"Line {number} of the export is in {row[name]!r}, not in USD.")


def time(text: str) -> datetime:
    """A time, in seconds or milliseconds since 1970 or in ISO 8601; without a zone, UTC."""
    if "-" not in text[1:] and not _DAY.fullmatch(text):
        with suppress(ValueError):
            seconds = float(text)
            return datetime.fromtimestamp(seconds / (1 if seconds < _MILLISECONDS else 1000), UTC)
    at = datetime.fromisoformat(re.sub(r" (?:UTC|GMT)$", "", text))
    return at if at.utcoffset() is not None else at.replace(tzinfo=UTC)


_DAY = re.compile(r"20\d\d[01]\d[0-3]\d")
_MILLISECONDS = 1e11
"""More seconds than that are more than three thousand years."""


def count(text: str) -> int:
    """A whole number, perhaps with commas."""
    number = _number(text)
    if number != int(number):
        raise ValueError
    return int(number)


def amount(text: str) -> Decimal:
    """An amount in USD, perhaps with its sign and commas."""
    return _number(re.sub(r"USD|\$", "", text, flags=re.IGNORECASE).strip())


def _number(text: str) -> Decimal:
    # A comma before other than three digits is no separator of thousands: 0,001 is not 1.
    if "," in text and not _THOUSANDS.fullmatch(text):
        raise ValueError
    number = Decimal(text.replace(",", ""))
    if not number.is_finite():
        raise ValueError
    return number


_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")


_READ: dict[str, Callable[[str], Any]] = {
    "response_id": str,
    "model": intern,
    "at": time,
    "input_tokens": count,
    "output_tokens": count,
    "cost_usd": amount,
}
"""How each column of an invoice is read."""
