"""Reconciles a ledger with what providers export: lines that each stand for many requests."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from operator import attrgetter

from ..pricing.money import EXACT
from .entries import EntryState, LedgerEntry, total_usd
from .invoices import (
    amount,
    column_name,
    count,
    currency_columns,
    refuse_other_currencies,
    separated,
    time,
)
from .reconciliation import answerer, same_model

COST = "cost_usd"
_DAY = timedelta(days=1)
_INEXACT = Decimal("1e-9")
"""USD by which a provider's floating-point sum may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """How a provider's export is read.

    Attributes:
        has: Columns by which it is told from others.
        ends: The column of a line's end; None: it is of a day (UTC).
        sums: Columns that are added up, by what they amount to: `requests`, a count of tokens or
            `cost_usd`. Those that an export lacks count as 0.
        usd: What an amount of 1 means in USD.
        off: USD by which a line may be off.
    """

    name: str
    provider: str
    has: tuple[str, ...]
    starts: str
    ends: str | None = None
    model: str
    sums: Mapping[str, tuple[str, ...]]
    usd: Decimal = Decimal(1)
    off: Decimal = _INEXACT


FORMATS = (
    ExportFormat(
        name="OpenAI usage",
        provider="openai",
        has=("start_time", "num_model_requests"),
        starts="start_time",
        ends="end_time",
        model="model",
        sums={
            "requests": ("num_model_requests",),
            "input_tokens": ("input_tokens", "input_audio_tokens"),
            "output_tokens": ("output_tokens", "output_audio_tokens"),
        },
    ),
    ExportFormat(
        name="OpenAI costs",
        provider="openai",
        has=("start_time", "amount_value"),
        starts="start_time",
        ends="end_time",
        model="line_item",
        sums={COST: ("amount_value",)},
    ),
    ExportFormat(
        name="Anthropic usage",
        provider="anthropic",
        has=("usage_date_utc", "usage_output_tokens"),
        starts="usage_date_utc",
        model="model_version",
        sums={
            "input_tokens": (
                "usage_input_tokens_no_cache", "usage_input_tokens_cache_write",
                "usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h",
                "usage_input_tokens_cache_read",
            ),
            "output_tokens": ("usage_output_tokens",),
        },
    ),
    ExportFormat(
        name="Anthropic costs",
        provider="anthropic",
        has=("usage_date_utc", "cost_usd"),
        starts="usage_date_utc",
        model="model",
        sums={COST: ("cost_usd",)},
        off=Decimal("0.005"),
    ),
    ExportFormat(
        name="Anthropic usage report",
        provider="anthropic",
        has=("starting_at", "uncached_input_tokens"),
        starts="starting_at",
        ends="ending_at",
        model="model",
        sums={
            "input_tokens": (
                "uncached_input_tokens", "cache_read_input_tokens",
                "cache_creation.ephemeral_5m_input_tokens",
                "cache_creation.ephemeral_1h_input_tokens",
            ),
            "output_tokens": ("output_tokens",),
        },
    ),
    ExportFormat(
        name="Anthropic cost report",
        provider="anthropic",
        has=("starting_at", "amount", "currency"),
        starts="starting_at",
        ends="ending_at",
        model="model",
        sums={COST: ("amount",)},
        usd=Decimal("0.01"),
    ),
    ExportFormat(
        name="OpenRouter activity",
        provider="openrouter",
        has=("date", "requests", "usage"),
        starts="date",
        model="model",
        sums={
            "requests": ("requests",),
            "input_tokens": ("prompt_tokens",),
            "output_tokens": ("completion_tokens",),
            COST: ("usage", "byok_usage_inference"),
        },
    ),
)  # fmt: skip
"""What is known; each is a line per time, model, and things that a ledger does not know: project,
API key, workspace.
"""


@dataclass(slots=True, kw_only=True)
class BilledSum:
    """What a provider bills for one model (None: for all) in a time.

    Attributes:
        lines: Where it stands in the export; the line of the column names is 1.
        sums: `requests`, counts of tokens, `cost_usd`: what the export tells.
        off: USD by which the cost may be off, as its lines are rounded.
    """

    start: datetime
    end: datetime
    model: str | None
    lines: list[int] = field(default_factory=list)
    sums: dict[str, Decimal] = field(default_factory=dict)
    off: Decimal = Decimal(0)

    def add(self, other: BilledSum) -> None:
        """Add another one to this."""
        self.lines += other.lines
        self.off += other.off
        for name, value in other.sums.items():
            self.sums[name] = EXACT.add(self.sums.get(name, Decimal(0)), value)


@dataclass(frozen=True, slots=True)
class ComparedSum:
    """A billed sum beside the entries that are part of it."""

    billed: BilledSum
    entries: tuple[LedgerEntry, ...]

    def booked(self, name: str) -> Decimal:
        """What the ledger knows."""
        if name == "requests":
            return Decimal(sum(entry.request_count for entry in self._settled))
        if name == COST:
            return total_usd(self.entries)
        return Decimal(sum(getattr(entry.tokens, name) for entry in self.entries))

    def at_most(self, name: str) -> Decimal | None:
        """What it can be with what the ledger does not know; None: there is no saying."""
        if name == "requests":
            return Decimal(sum(entry.request_count for entry in self.entries))
        if name == COST:
            return self._cost_at_most()
        return self.booked(name) if len(self._settled) == len(self.entries) else None

    def _cost_at_most(self) -> Decimal | None:
        usd = self.booked(COST)
        for entry in self.entries:
            if entry.state is EntryState.UNSETTLED or entry.cost_usd is None:
                if entry.upper_bound_usd is None:
                    return None
                usd = EXACT.add(usd, entry.upper_bound_usd)
        return usd

    @property
    def _settled(self) -> list[LedgerEntry]:
        return [entry for entry in self.entries if entry.state is not EntryState.UNSETTLED]

    @property
    def differences(self) -> tuple[str, ...]:
        """What the two say otherwise, for people."""
        found = []
        for name, theirs in self.billed.sums.items():
            least, most = self.booked(name), self.at_most(name)
            slack = self.billed.off if name == COST else Decimal(0)
            if theirs < least - slack or (most is not None and theirs > most + slack):
                found.append(f"{name}: {least:f} in the ledger, {theirs:f} in the export")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class SumsReconciliation:
    """What became of each sum and each entry.

    Attributes:
        compared: In the order of time and model.
        entries: Those of which no line of the export is, by time.
    """

    compared: tuple[ComparedSum, ...]
    entries: tuple[LedgerEntry, ...]

    @property
    def is_balanced(self) -> bool:
        """Whether all sums agree, and each entry is part of one."""
        return not self.entries and not any(one.differences for one in self.compared)


def export_format(header: Iterable[str]) -> ExportFormat | None:
    """The known format that has these columns, if any."""
    names = set(map(column_name, header))
    return next((known for known in FORMATS if names.issuperset(known.has)), None)


def read_export(rows: Iterable[str], known: ExportFormat) -> tuple[BilledSum, ...]:
    """What an export in CSV bills, by time and model.

    A time in which something is billed of no model is one sum.

    Raises:
        ValueError: A value can't be read, or is in another currency; the message says which.
    """
    found: dict[tuple[datetime, datetime, str | None], BilledSum] = {}
    for line in lines_of(rows, known):
        key = line.start, line.end, line.model
        empty = BilledSum(start=line.start, end=line.end, model=line.model)
        found.setdefault(key, empty).add(line)
    for start, end, model in list(found):
        if model is not None and (start, end, None) in found:
            found[start, end, None].add(found.pop((start, end, model)))
    return tuple(found[key] for key in sorted(found, key=lambda key: (*key[:2], key[2] or "")))


def lines_of(rows: Iterable[str], known: ExportFormat) -> Iterator[BilledSum]:
    """What each line of an export bills; lines of days without requests are left out."""
    reader = separated(rows)
    names = list(map(column_name, next(reader, (0, []))[1]))
    currencies = currency_columns(names)
    for number, row in reader:
        if not row:
            continue
        named = dict.fromkeys(names, "") | dict(zip(names, map(str.strip, row), strict=False))
        refuse_other_currencies(number, row, currencies)
        line = _line(number, named, known)
        if any(line.sums.values()):
            yield line


def model_in(row: Mapping[str, str], known: ExportFormat) -> str | None:
    """The model that a line is for; None where it names none."""
    name = row.get(known.model, "")
    if known.model == "line_item":
        name = name.rpartition(",")[0]  # gpt-5-mini-2025-08-07, input
    return same_model(name)


def sums_in(row: Mapping[str, str], known: ExportFormat) -> dict[str, Decimal]:
    """What a line bills, each kind summed over its columns, the cost in USD."""
    sums: dict[str, Decimal] = {}
    for ours, theirs in known.sums.items():
        texts = filter(None, map(row.get, theirs))
        sums[ours] = sum((_number(ours, text) for text in texts), Decimal(0))
    if COST in sums:
        sums[COST] = EXACT.multiply(sums[COST], known.usd)
    return sums


def _line(number: int, row: Mapping[str, str], known: ExportFormat) -> BilledSum:
    try:
        sums = sums_in(row, known)
        start = time(row[known.starts])
        ends = row.get(known.ends or "")
        end = time(ends) if ends else start + _DAY
    except (ValueError, InvalidOperation) as error:
        raise ValueError(f"Line {number} of the export can't be read: {error}") from None
    return BilledSum(
        start=start,
        end=end,
        model=model_in(row, known),
        lines=[number],
        sums=sums,
        off=known.off,
    )


def _number(name: str, text: str) -> Decimal:
    return amount(text) if name == COST else Decimal(count(text))


def reconcile_sums(
    entries: Iterable[LedgerEntry], billed: Sequence[BilledSum]
) -> SumsReconciliation:
    """Compare each billed sum with the entries of its time and model.

    An outcome that the ledger does not know may be billed or not, at any amount up to its bound.

    Args:
        entries: From a ledger, of the time and the provider that the export is of. Those that were
            not sent, were refused or were simulated are left aside.
        billed: From `read_export`.
    """
    parts: dict[int, list[LedgerEntry]] = {}
    spans = _Spans(billed)
    left = []
    billable = filter(attrgetter("is_billed"), entries)
    for entry in sorted(billable, key=attrgetter("sent_at")):
        at = spans.of(entry)
        if at is not None:
            parts.setdefault(at, []).append(entry)
        elif spans.covers(entry.sent_at):
            left.append(entry)
    compared = (ComparedSum(one, tuple(parts.get(at, ()))) for at, one in enumerate(billed))
    return SumsReconciliation(tuple(compared), tuple(left))


class _Spans:
    """Finds the billed sum that an entry is part of."""

    def __init__(self, billed: Sequence[BilledSum]) -> None:
        self._of = {(one.start, one.model): (at, one.end) for at, one in enumerate(billed)}
        self._starts = sorted({one.start for one in billed})
        self._end = max((one.end for one in billed), default=None)

    def covers(self, at: datetime) -> bool:
        return bool(self._starts) and self._end is not None and self._starts[0] <= at < self._end

    def of(self, entry: LedgerEntry) -> int | None:
        before = bisect_right(self._starts, entry.sent_at)
        if not before:
            return None
        start = self._starts[before - 1]
        for model in self._names(entry):
            at, end = self._of.get((start, model), (None, start))
            if at is not None and entry.sent_at < end:
                return at
        return None

    def _names(self, entry: LedgerEntry) -> Iterator[str | None]:
        yield answerer(entry)
        yield None
