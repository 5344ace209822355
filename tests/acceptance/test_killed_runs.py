"""`kill -9` at random moments of runs that are executed again until they end: the books agree over all of them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from fastroai.usage import EntryState, Ledger, LedgerEntry
from tests.support.agreement import assert_told_alike, fits
from tests.support.invoice import InvoiceLine, invoiced_usd
from tests.support.killed_runs import LEASE_SECONDS, SCRIPT, WIDTH, Attempt
from tests.support.provider_process import ProviderProcess

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 400.0
"""Seconds after which the runs count as hanging."""

Place = tuple[int, str]
"""A step within one process; it has one request under way at a time."""


@dataclass
class Compared:
    """What came of comparing the books of all processes.

    Attributes:
        charged: Lines whose answer is booked.
        unsent: By process: entries without a line. The process was killed between intent and send.
        unknown: By process: lines whose entry has no outcome. It was killed between send and settlement.
    """

    charged: list[InvoiceLine] = field(default_factory=list)
    unsent: Counter[int] = field(default_factory=Counter)
    unknown: Counter[int] = field(default_factory=Counter)


def run_killed(executor: str, kills: int, results: Path, provider: ProviderProcess) -> list[Attempt]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    for prompt, behaviours in SCRIPT.items():
        provider.script(prompt, *behaviours)
    command = [sys.executable, "-m", "tests.support.killed_runs", executor, str(kills), str(seed), str(results)]
    environment = os.environ | {"PREFECT_LOGGING_LEVEL": "ERROR", "FASTROAI_LEASE_SECONDS": str(LEASE_SECONDS)}
    # In a session of its own, so that none of its processes outlives this test.
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            told, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return [Attempt(**json.loads(line)) for line in told.splitlines()]


def attempt_of(entry: LedgerEntry, attempts: Iterable[Attempt]) -> Attempt:
    """The process that made an entry: none began before the last one had ended."""
    [attempt] = [a for a in attempts if a.began <= entry.sent_at.timestamp() <= a.ended]
    assert entry.attribution.run_key == attempt.run_key
    return attempt


def step_of(entry: LedgerEntry) -> str:
    assert entry.attribution.step_id is not None
    return entry.attribution.step_id


def place_of(line: InvoiceLine) -> Place:
    process = re.match(r"/process-(\d+)/", line.path)
    assert process is not None
    return int(process[1]), line.prompt.partition(":")[0]


def compare(lines: Sequence[InvoiceLine], entries: Iterable[LedgerEntry], attempts: Sequence[Attempt]) -> Compared:
    """Pair the lines of each step in each process with its entries: the first with the first, and so on.

    Only the last request of a step that was under way when its process was killed may lack an outcome, or a line.
    """
    entries_at: defaultdict[Place, list[LedgerEntry]] = defaultdict(list)
    lines_at: defaultdict[Place, list[InvoiceLine]] = defaultdict(list)
    for entry in entries:
        if entry.state is not EntryState.REPLAYED:
            entries_at[attempt_of(entry, attempts).number, step_of(entry)].append(entry)
    for line in lines:
        lines_at[place_of(line)].append(line)
    compared = Compared()
    for place in entries_at.keys() | lines_at.keys():
        _compare_step(lines_at[place], entries_at[place], attempts[place[0]], place[1], compared)
    return compared


def _compare_step(
    lines: list[InvoiceLine], entries: list[LedgerEntry], attempt: Attempt, step_id: str, compared: Compared
) -> None:
    last = entries[-1] if entries else None
    if last is not None and last.settled_at is None:
        assert last.state is EntryState.UNSETTLED
        assert attempt.killed, last
        assert step_id not in attempt.stored, last
        if len(lines) < len(entries):
            compared.unsent[attempt.number] += 1
            entries = entries[:-1]
        else:
            compared.unknown[attempt.number] += 1
    assert len(lines) == len(entries), f"{lines}\n{entries}"
    for line, entry in zip(lines, entries, strict=True):
        assert fits(line, entry), f"{line}\n{entry}"
        if entry is last and last.settled_at is None:
            continue
        assert_told_alike(line, entry)
        if entry.state is EntryState.CHARGED:
            compared.charged.append(line)


def assert_no_stored_step_is_sent_again(lines: Iterable[InvoiceLine], attempts: Sequence[Attempt]) -> int:
    """The number of results that were there when a process was killed."""
    stored: defaultdict[str, set[str]] = defaultdict(set)
    sent: defaultdict[int, set[str]] = defaultdict(set)
    for line in lines:
        number, step_id = place_of(line)
        sent[number].add(step_id)
    found = 0
    for attempt in attempts:
        before = stored[attempt.run_key]
        assert not before & sent[attempt.number], attempt
        assert before <= set(attempt.stored)
        before |= set(attempt.stored)
        found += len(attempt.stored) if attempt.killed else 0
    return found


def assert_recorded_answers_are_not_asked_for_again(lines: Iterable[InvoiceLine], attempts: Sequence[Attempt]) -> int:
    """What a process was answered is recorded, but for the last answer of each step under way when it was killed.

    So a run that ends has asked for each answer once, and once more for each that was lost. The number of lost ones.
    """
    billed = Counter(place_of(line) for line in lines if line.billed)
    needed, lost = attempts[0].recorded, 0
    for previous, attempt in pairwise(attempts):
        before = previous.recorded if previous.run_key == attempt.run_key else {}
        for step_id in needed:
            gone = billed[attempt.number, step_id] - (attempt.recorded.get(step_id, 0) - before.get(step_id, 0))
            assert gone in ((0, 1) if attempt.killed and step_id not in attempt.stored else (0,)), (step_id, attempt)
            lost += gone
        assert attempt.killed or attempt.recorded == needed, attempt
    return lost


def assert_replays_were_paid_for(entries: Sequence[LedgerEntry]) -> int:
    """The number of entries that say an answer was used again: each names the one that paid, of the same run."""
    paid = {entry.id: entry for entry in entries if entry.state is EntryState.CHARGED}
    replayed = [entry for entry in entries if entry.state is EntryState.REPLAYED]
    for entry in replayed:
        first = paid[entry.replay_of or ""]
        assert (first.attribution.run_key, first.attribution.step_id) == (
            entry.attribution.run_key,
            entry.attribution.step_id,
        )
        assert (first.cost_usd, first.response_id) == (entry.cost_usd, entry.response_id)
    return len(replayed)


async def books_agree(
    provider: ProviderProcess, attempts: Sequence[Attempt], url: str
) -> tuple[Compared, list[LedgerEntry]]:
    lines = provider.lines
    async with Ledger.open(url) as ledger:
        entries = await ledger.entries()
        totals = await ledger.totals(by="run_key")
    compared = compare(lines, entries, attempts)
    charged = sum((e.cost_usd or Decimal(0) for e in entries if e.state is EntryState.CHARGED), Decimal(0))
    assert charged == invoiced_usd(compared.charged)
    assert sum((total.cost_usd for total in totals), Decimal(0)) == charged
    assert sum(total.requests for total in totals) == len(lines) + compared.unsent.total()
    assert sum(total.unsettled for total in totals) == compared.unknown.total() + compared.unsent.total()
    # Nothing else than the requests under way at a kill is open: at most one for each step that can run at once.
    open_at_kills = compared.unknown + compared.unsent
    assert max(open_at_kills.values(), default=0) <= WIDTH
    assert {a.number for a in attempts if a.killed} >= set(open_at_kills)
    return compared, entries


def assert_each_run_ended_well(attempts: Sequence[Attempt]) -> None:
    """Each run came to the output of the one left alone; what its last process paid and replayed is what it costs."""
    alone = attempts[0]
    assert alone.output
    ended = [attempt for attempt in attempts if not attempt.killed]
    assert [a.run_key for a in ended] == list(dict.fromkeys(a.run_key for a in attempts))
    for attempt in ended:
        assert attempt.output == alone.output
        assert Decimal(attempt.paid) + Decimal(attempt.replayed) == Decimal(alone.paid)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.mark.timeout(PATIENCE + 100)
async def test_killed_thirty_times_under_prefect(
    provider: ProviderProcess, prefect_api: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("FASTROAI_LEDGER_URL", url)
    attempts = run_killed("prefect", 30, results, provider)
    assert sum(attempt.killed for attempt in attempts) == 30
    compared, entries = await books_agree(provider, attempts, url)
    assert_each_run_ended_well(attempts)
    stored = assert_no_stored_step_is_sent_again(provider.lines, attempts)
    replayed = assert_replays_were_paid_for(entries)
    lost = assert_recorded_answers_are_not_asked_for_again(provider.lines, attempts)
    # The kills hit: requests under way, and runs with steps behind them.
    hits = len(compared.unknown + compared.unsent)
    print(f"{hits} of 30 kills hit {lost} requests, {stored} results were stored, {replayed} requests replayed")  # noqa: T201
    assert hits >= 5
    assert stored >= 5
    assert replayed >= 5


@pytest.mark.timeout(PATIENCE + 100)
async def test_killed_ten_times_in_memory_nothing_is_resumed_and_nothing_is_lost(
    provider: ProviderProcess, results: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv("FASTROAI_LEDGER_URL", postgres_url)
    attempts = run_killed("memory", 10, results, provider)
    assert sum(attempt.killed for attempt in attempts) == 10
    compared, entries = await books_agree(provider, attempts, postgres_url)
    assert_each_run_ended_well(attempts)
    assert assert_replays_were_paid_for(entries) == 0
    assert len(compared.unknown + compared.unsent) >= 3
