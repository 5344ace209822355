"""What a large ledger answers: sums of a million entries, and a comparison with 50,000 lines."""

from __future__ import annotations

import csv
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from operator import sub
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
from .workers import processor, progress

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
MAX_SECONDS, MAX_RECENT, MAX_RECONCILE, MAX_MEGABYTES = 1.0, 0.5, 3.0, 120.0


def measure(quick: bool) -> Section:
    """Processor seconds of the command, those of one that only starts taken off."""
    copies, lines, rounds = (20, 5_000, 2) if quick else (20, 50_000, 2)
    count, days = copies * lines, DAYS / copies
    with TemporaryDirectory() as name:
        folder = Path(name)
        small, url = (f"sqlite:///{folder / name}.db" for name in ("small", "ledger"))
        progress(f"ledger: writing {count:,} entries")
        booked = list(entries(lines, days))
        fill(small, booked)
        fill(url, [])
        multiply(folder / "small.db", folder / "ledger.db", copies, timedelta(days=days))
        database = Database(database_url(url), writes=True)
        started = time.process_time()
        sum_up(database)
        summing = time.process_time() - started
        database.close()
        size = (folder / "ledger.db").stat().st_size / 2**20
        empty = f"sqlite:///{folder / 'empty.db'}"
        fill(empty, [])
        asked = {"`fastroai costs`, an empty ledger": (empty, "costs")} | {
            f"{what}, {count:,} entries": (url, *arguments)
            for what, arguments in (COMMANDS | OF_EACH_RUN).items()
        }
        invoice = folder / "invoice.csv"
        write_invoice(invoice, booked)
        reconcile = f"`costs reconcile`, {lines:,} lines"
        asked[reconcile] = (small, "costs", "reconcile", str(invoice))
        figures: dict[str, list[tuple[float, float]]] = {what: [] for what in asked}
        for number in range(rounds):
            progress(f"ledger: round {number + 1}")
            for what, arguments in asked.items():
                figures[what].append(command(*arguments))
    empty_ledger, *others = ([used for used, _ in values] for values in figures.values())
    beyond = {
        what: median(map(sub, used, empty_ledger))
        for what, used in zip(COMMANDS, others, strict=False)
    }
    recent = max(seconds for what, seconds in beyond.items() if "--since 7d" in what)
    return Section(
        title="Ledger: sums of a million entries, and an invoice of 50,000 lines",
        method=(
            f"Processor seconds and peak memory of the command in a process of its own, median of "
            f"{rounds} interleaved rounds. SQLite; runs of {RUN} requests over {DAYS} days, 8 "
            "pipelines of 5 steps, 4 models, 4 teams, all crossed at random; 6 % of the requests "
            "without price or outcome. "
            f"The entries of {days:g} days were made one by one, and stand {copies} times in the "
            "ledger, each time as others. The question takes off what an empty ledger takes in the "
            "same round: imports. It is not asked of what sums up each run: without `--limit`, "
            "most of that is the table's work."
        ),
        header=["what", "processor, s", "least", "most", "memory, MB"],
        rows=[
            [
                what,
                *(f"{statistic(s for s, _ in used):.2f}" for statistic in (median, min, max)),
                f"{median(m for _, m in used):.0f}",
            ]
            for what, used in figures.items()
        ],
        verdicts=[
            Verdict(
                "sums: seconds beyond an empty ledger, the slowest",
                max(beyond.values()),
                MAX_SECONDS,
            ),
            Verdict("the same, `--since 7d`", recent, MAX_RECENT),
            Verdict(
                "reconcile: seconds, start included",
                median(seconds for seconds, _ in figures[reconcile]),
                MAX_RECONCILE,
            ),
            Verdict("reconcile: MB", median(mb for _, mb in figures[reconcile]), MAX_MEGABYTES),
        ],
        notes=[
            f"Bringing the sums of {count:,} entries up to date took {summing:.0f} s of processor "
            f"once; the database has {size:.0f} MB with them."
        ],
    )


def command(url: str, *arguments: str) -> tuple[float, float]:
    """Processor seconds and MB of a command of `fastroai`."""
    return processor(sys.executable, "-m", "fastroai", *arguments, "--ledger", url)


def entries(count: int, days: float) -> Iterator[LedgerEntry]:
    """Settled entries of the last days, in their order in time."""
    chance = random.Random(1)
    pick: Callable[[list[str]], str] = chance.choice
    pipelines = [f"pipeline-{number}" for number in range(8)]
    models = ["gpt-5-mini", "gpt-5", "gpt-4o", "gpt-4o-mini"]
    span = timedelta(days=days) / count
    for number in range(count):
        if number % RUN == 0:
            pipeline, team = pick(pipelines), pick(["search", "billing", "ops", "growth"])
            run_id = str(UUID(int=chance.getrandbits(128)))
        model = pick(models)
        state = EntryState.CHARGED
        if chance.random() < 0.06:
            state = chance.choice([EntryState.UNPRICED, EntryState.UNSETTLED])
        cost = Decimal(chance.randrange(10**6, 10**10)).scaleb(-12)
        sent_at = END + (number - count) * span
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


def fill(url: str, booked: Sequence[LedgerEntry]) -> None:
    """Write entries in one commit."""
    database = Database(database_url(url), writes=True)
    database.prepare()
    if booked:
        rows = list(map(intent_row, booked)), list(map(outcome_row, booked))
        database.insert((Insert(intents), rows[0]), (Insert(outcomes), rows[1]))
    database.close()


def multiply(small: Path, large: Path, copies: int, apart: timedelta) -> None:
    """Write the entries of one ledger several times into another: other requests of other runs,
    each time so much earlier.
    """
    changed = {name: f"{name} || :copy" for name in ("id", "entry_id", "run_id", "response_id")}
    changed |= {name: f"{name} - :earlier" for name in ("sent_at", "settled_at")}
    with closing(sqlite3.connect(large)) as connection:
        connection.execute("ATTACH ? AS small", [str(small)])
        for copy, table in product(range(copies), (intents, outcomes)):
            names = [column.name for column in table.columns]
            values = ", ".join(changed.get(name, name) for name in names)
            earlier = copy * (apart // timedelta(microseconds=1))
            connection.execute(
                f"INSERT INTO main.{table.name} ({', '.join(names)}) "
                f"SELECT {values} FROM small.{table.name}",
                {"copy": f"-{copy}", "earlier": earlier},
            )
        connection.commit()


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
