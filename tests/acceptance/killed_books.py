"""What the books of runs that were killed and went on must say, compared with the provider's
invoice.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise

from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.agreement import assert_told_alike, fits, place_in
from tests.support.invoice import InvoiceLine, invoiced_usd
from tests.support.killed_runs import WIDTH, Attempt
from tests.support.provider_process import ProviderProcess

Place = tuple[str, str]
"""A process and a step in it, which has one request under way at a time."""


@dataclass
class Compared:
    """What came of comparing the books of all processes.

    Attributes:
        charged: Lines whose answer is booked.
        unsent: By process: entries without a line. The process was killed between intent and send.
        unknown: By process: lines whose entry has no outcome. It was killed between send and
            settlement.
    """

    charged: list[InvoiceLine] = field(default_factory=list)
    unsent: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def attempt_of(entry: LedgerEntry, attempts: Iterable[Attempt]) -> Attempt:
    """The process that made an entry: none of a run began before the last one of that run had
    ended.
    """
    run, _ = _run_and_step(entry)
    [attempt] = [a for a in attempts if a.run == run and _is_within(a, entry)]
    return attempt


def _run_and_step(entry: LedgerEntry) -> tuple[str | None, str | None]:
    told = entry.attribution
    return told.run_key or told.run_id, step_of(entry)


def _is_within(attempt: Attempt, entry: LedgerEntry) -> bool:
    return attempt.began <= entry.sent_at.timestamp() <= attempt.ended


def step_of(entry: LedgerEntry) -> str:
    """Its step, or the item of a mapped one."""
    assert entry.attribution.step_id is not None
    return place_in(entry.attribution.step_id, entry.attribution.item)


def place_of(line: InvoiceLine) -> Place:
    process = re.match(r"/process-([^/]+)/", line.path)
    assert process is not None
    return process[1], line.prompt.partition(":")[0]


def compare(
    lines: Sequence[InvoiceLine], entries: Iterable[LedgerEntry], attempts: Sequence[Attempt]
) -> Compared:
    """Pair the lines of each step in each process with its entries: the first with the first, and
    so on.

    Only the last request of a step that was under way when its process was killed may lack an
    outcome, or a line.
    """
    entries_at: defaultdict[Place, list[LedgerEntry]] = defaultdict(list)
    lines_at: defaultdict[Place, list[InvoiceLine]] = defaultdict(list)
    for entry in entries:
        if entry.state is not EntryState.REPLAYED:
            entries_at[attempt_of(entry, attempts).process, step_of(entry)].append(entry)
    for line in lines:
        lines_at[place_of(line)].append(line)
    by_process = {attempt.process: attempt for attempt in attempts}
    assert len(by_process) == len(attempts)
    compared = Compared()
    for place in entries_at.keys() | lines_at.keys():
        _compare_step(lines_at[place], entries_at[place], by_process[place[0]], place[1], compared)
    return compared


def _compare_step(
    lines: list[InvoiceLine],
    entries: list[LedgerEntry],
    attempt: Attempt,
    step_id: str,
    compared: Compared,
) -> None:
    last = entries[-1] if entries else None
    if last is not None and last.settled_at is None:
        assert last.state is EntryState.UNSETTLED
        assert attempt.killed, last
        assert step_id not in attempt.stored, last
        if len(lines) < len(entries):
            compared.unsent[attempt.process] += 1
            entries = entries[:-1]
        else:
            compared.unknown[attempt.process] += 1
    assert len(lines) == len(entries), f"{lines}\n{entries}"
    for line, entry in zip(lines, entries, strict=True):
        assert fits(line, entry), f"{line}\n{entry}"
        if entry is last and last.settled_at is None:
            continue
        assert_told_alike(line, entry)
        if entry.state is EntryState.CHARGED:
            compared.charged.append(line)


def assert_no_stored_step_is_sent_again(
    lines: Iterable[InvoiceLine], attempts: Sequence[Attempt]
) -> int:
    """The number of results that were there when a process was killed."""
    stored: defaultdict[str, set[str]] = defaultdict(set)
    sent: defaultdict[str, set[str]] = defaultdict(set)
    for line in lines:
        process, step_id = place_of(line)
        sent[process].add(step_id)
    found = 0
    for attempt in attempts:
        before = stored[attempt.run]
        assert not before & sent[attempt.process], attempt
        assert before <= set(attempt.stored)
        before |= set(attempt.stored)
        found += len(attempt.stored) if attempt.killed else 0
    return found


def assert_recorded_answers_are_not_asked_for_again(
    lines: Iterable[InvoiceLine], attempts: Sequence[Attempt]
) -> int:
    """What a process was answered is recorded, but for the last answer of each step under way when
    it was killed.

    So a run that ends has asked for each answer once, and once more for each that was lost. The
    number of lost ones.
    """
    billed = Counter(place_of(line) for line in lines if line.billed)
    needed, lost = attempts[0].recorded, 0
    for previous, attempt in pairwise(attempts):
        before = previous.recorded if previous.run == attempt.run else {}
        for step_id in needed:
            gone = billed[attempt.process, step_id] - (
                attempt.recorded.get(step_id, 0) - before.get(step_id, 0)
            )
            assert gone in ((0, 1) if attempt.killed and step_id not in attempt.stored else (0,)), (
                step_id,
                attempt,
            )
            lost += gone
        assert attempt.killed or attempt.recorded == needed, attempt
    return lost


def assert_replays_were_paid_for(entries: Sequence[LedgerEntry]) -> int:
    """The number of entries that say an answer was used again: each names the one that paid, of the
    same run.
    """
    paid = {entry.id: entry for entry in entries if entry.state is EntryState.CHARGED}
    replayed = [entry for entry in entries if entry.state is EntryState.REPLAYED]
    for entry in replayed:
        first = paid[entry.replay_of or ""]
        assert _run_and_step(first) == _run_and_step(entry)
        assert (first.cost_usd, first.response_id) == (entry.cost_usd, entry.response_id)
    return len(replayed)


async def books_agree(
    provider: ProviderProcess, attempts: Sequence[Attempt], url: str, at_once: int = WIDTH
) -> tuple[Compared, list[LedgerEntry]]:
    lines = provider.lines
    async with Ledger.open(url) as ledger:
        entries = await ledger.entries()
        totals = await ledger.totals(by="run_key")
    compared = compare(lines, entries, attempts)
    charged = sum(
        (e.cost_usd or Decimal(0) for e in entries if e.state is EntryState.CHARGED), Decimal(0)
    )
    assert charged == invoiced_usd(compared.charged)
    assert sum((total.cost_usd for total in totals), Decimal(0)) == charged
    assert sum(total.requests for total in totals) == len(lines) + compared.unsent.total()
    assert (
        sum(total.unsettled for total in totals)
        == compared.unknown.total() + compared.unsent.total()
    )
    # Nothing else than the requests under way at a kill is open: at most one for each step that can
    # run at once.
    open_at_kills = compared.unknown + compared.unsent
    assert max(open_at_kills.values(), default=0) <= at_once
    assert {a.process for a in attempts if a.killed} >= set(open_at_kills)
    return compared, entries


def assert_each_run_ended_well(attempts: Sequence[Attempt]) -> None:
    """Each run came to the output of the one left alone; what its last process paid and replayed is
    what it costs.
    """
    alone = attempts[0]
    assert alone.output
    ended = [attempt for attempt in attempts if not attempt.killed]
    assert [a.run for a in ended] == list(dict.fromkeys(a.run for a in attempts))
    for attempt in ended:
        assert attempt.output == alone.output
        assert Decimal(attempt.paid) + Decimal(attempt.replayed) == Decimal(alone.paid)


def with_costs(attempt: Attempt, entries: Iterable[LedgerEntry]) -> Attempt:
    """What a process paid and replayed, by the entries that it made: where it could not tell that
    itself.
    """
    made = [e for e in entries if _run_and_step(e)[0] == attempt.run and _is_within(attempt, e)]
    paid, replayed = (
        sum((e.cost_usd or Decimal(0) for e in made if e.state is state), Decimal(0))
        for state in (EntryState.CHARGED, EntryState.REPLAYED)
    )
    return replace(attempt, paid=str(paid), replayed=str(replayed))
