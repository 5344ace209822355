"""What a large ledger answers: sums of a million entries, and a comparison with 50,000 lines."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from uuid import UUID

from fastroai.database.engine import Database, database_url
from fastroai.database.statements import Insert
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.store.mapping import intent_row, outcome_row
from fastroai.ledger.store.schema import intents, outcomes
from fastroai.ledger.store.summing import sum_up
from fastroai.pricing.token_counts import TokenCounts

from .report import Section, Verdict
from .workers import environment, progress

DAYS = 90
RUN = 25
END = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
COMMANDS = {
    "`fastroai costs`": ("costs",),
    "`fastroai costs --by day`": ("costs", "--by", "day"),
    "`fastroai costs --by day,model`": ("costs", "--by", "day,model"),
    "`fastroai costs --by model --tag team=search`": (
        "costs", "--by", "model", "--tag", "team=search",
    ),
    "`fastroai costs --by step --since 7d`": ("costs", "--by", "step", "--since", "7d"),
    "`fastroai costs --by run --since 7d`": ("costs", "--by", "run", "--since", "7d"),
    "`fastroai runs`": ("runs",),
}  # fmt: skip
OF_EACH_RUN = {
    "`fastroai costs --by run --limit 20`": ("costs", "--by", "run", "--limit", "20"),
    "`fastroai costs --by run`": ("costs", "--by", "run"),
}
"""Stated, not judged: tens of thousands of groups, and lines of a table."""
MAX_SECONDS, MAX_RECONCILE, MAX_MEGABYTES = 1.0, 3.0, 120.0


def measure(quick: bool) -> Section:
    """Processor seconds of the command, those of one that only starts taken off."""
    count, lines, rounds = (100_000, 5_000, 3) if quick else (1_000_000, 50_000, 7)
    with TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'ledger.db'}"
        progress(f"ledger: writing {count:,} entries")
        fill(url, entries(count))
        database = Database(database_url(url), writes=True)
        started = time.process_time()
        sum_up(database)
        summing = time.process_time() - started
        database.close()
        size = (folder / "ledger.db").stat().st_size / 2**20
        empty = f"sqlite:///{folder / 'empty.db'}"
        fill(empty, iter(()))
        start = median(command(empty, "costs")[0] for _ in range(rounds))
        rows, slowest = [["`fastroai costs`, an empty ledger", f"{start:.2f}", ""]], 0.0
        for what, arguments in (COMMANDS | OF_EACH_RUN).items():
            progress(f"ledger: {what}")
            seconds = [command(url, *arguments)[0] for _ in range(rounds)]
            if what in COMMANDS:
                slowest = max(slowest, median(seconds) - start)
            rows.append([f"{what}, {count:,} entries", f"{median(seconds):.2f}", ""])
        small = f"sqlite:///{folder / 'small.db'}"
        booked = list(entries(lines))
        fill(small, iter(booked))
        invoice = folder / "invoice.csv"
        write_invoice(invoice, booked)
        compared = [command(small, "costs", "reconcile", str(invoice)) for _ in range(rounds)]
        seconds, megabytes = median(s for s, _ in compared), median(m for _, m in compared)
        rows.append([f"`costs reconcile`, {lines:,} lines", f"{seconds:.2f}", f"{megabytes:.0f}"])
    return Section(
        title="Ledger: sums of a million entries, and an invoice of 50,000 lines",
        method=(
            f"Processor seconds and peak memory of the command in a process of its own, median of "
            f"{rounds}. SQLite; runs of {RUN} requests over {DAYS} days, 8 pipelines of 5 steps, 4 "
            "models, 4 teams, all crossed at random; 6 % of the requests without price or outcome. "
            "The question takes off what an empty ledger takes: imports. It is not asked of what "
            "sums up each run: without `--limit`, most of that is the table's work."
        ),
        header=["what", "processor, s", "memory, MB"],
        rows=rows,
        verdicts=[
            Verdict("sums: seconds beyond an empty ledger, the slowest", slowest, MAX_SECONDS),
            Verdict("reconcile: seconds, start included", seconds, MAX_RECONCILE),
            Verdict("reconcile: MB", megabytes, MAX_MEGABYTES),
        ],
        notes=[
            f"Bringing the sums of {count:,} entries up to date took {summing:.0f} s of processor "
            f"once; the database has {size:.0f} MB with them."
        ],
    )


_SPAWN = """
import os, sys
line = [sys.executable, "-m", "fastroai", *sys.argv[1:]]
nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(line[0], line, os.environ, file_actions=nowhere), 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def command(url: str, *arguments: str) -> tuple[float, float]:
    """Processor seconds and MB of a command of `fastroai`."""
    # Out of a small process: a peak of memory is inherited, and this one's is that of the entries.
    line = [sys.executable, "-c", _SPAWN, *arguments, "--ledger", url]
    env = environment(Path(__file__).parents[1])
    done = subprocess.run(line, stdout=subprocess.PIPE, env=env, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def entries(count: int) -> Iterator[LedgerEntry]:
    """Settled entries in their order in time."""
    chance = random.Random(1)
    pick: Callable[[list[str]], str] = chance.choice
    pipelines = [f"pipeline-{number}" for number in range(8)]
    models = ["gpt-5-mini", "gpt-5", "gpt-4o", "gpt-4o-mini"]
    span = timedelta(days=DAYS) / count
    for number in range(count):
        if number % RUN == 0:
            pipeline, team = pick(pipelines), pick(["search", "billing", "ops", "growth"])
            run_id = str(UUID(int=chance.getrandbits(128)))
        model = pick(models)
        state = EntryState.CHARGED
        if chance.random() < 0.06:
            state = chance.choice([EntryState.UNPRICED, EntryState.UNSETTLED])
        cost = Decimal(chance.randrange(10**6, 10**10)).scaleb(-12)
        sent_at = END - timedelta(days=DAYS) + number * span
        yield LedgerEntry(
            id=str(UUID(int=chance.getrandbits(128))),
            attribution=Attribution(
                run_id=run_id,
                pipeline=pipeline,
                step_id=f"step-{number % 5}",
                tags={"team": team},
                dispatch=1,
            ),
            state=state,
            model_asked=f"openai:{model}",
            model_answered=f"{model}-2025-08-07",
            provider="openai",
            sent_at=sent_at,
            settled_at=sent_at,
            tokens=TokenCounts(
                input_tokens=chance.randrange(100, 5000), output_tokens=chance.randrange(10, 900)
            ),
            cost_usd=cost if state is EntryState.CHARGED else None,
            upper_bound_usd=Decimal("0.01"),
            response_id=f"resp-{number}",
        )


def fill(url: str, booked: Iterator[LedgerEntry]) -> None:
    """Write entries, many in each commit."""
    database = Database(database_url(url), writes=True)
    database.prepare()
    intend, settle = Insert(intents), Insert(outcomes)
    while batch := [entry for _, entry in zip(range(20_000), booked, strict=False)]:
        database.insert(
            (intend, list(map(intent_row, batch))), (settle, list(map(outcome_row, batch)))
        )
    database.close()


def write_invoice(path: Path, booked: list[LedgerEntry]) -> None:
    """The same requests as a provider bills them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "model", "created_at", "input_tokens", "output_tokens", "cost"])
        for entry in booked:
            counts = entry.tokens.input_tokens, entry.tokens.output_tokens
            cost = "" if entry.cost_usd is None else f"{entry.cost_usd:f}"
            at = entry.sent_at.isoformat()
            writer.writerow([entry.response_id, entry.model_answered, at, *counts, cost])
