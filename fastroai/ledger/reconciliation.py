"""Reconciles a ledger with a provider's invoice: finds entries and lines without a partner."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import TypeVar

from ..pricing.model_names import read_model_name, spellings
from ..pricing.money import EXACT
from .entries import ZERO_USD, EntryState, LedgerEntry, spend_of
from .invoices import InvoiceLine

TOLERANCE = timedelta(minutes=5)
"""How far apart the two clocks and the way between them may put one request."""

T = TypeVar("T")


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
    # Nearly all are the same: to find out how many places an amount has takes longer.
    return (
        entry.cost_usd == line.cost_usd
        or abs(entry.cost_usd - line.cost_usd) <= Decimal(1).scaleb(-places(line.cost_usd)) / 2
    )


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
