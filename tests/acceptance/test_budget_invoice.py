"""The provider's own invoice stays within a budget, and no request is refused that would have
fitted.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from fastroai.budgets import Budget, Budgets, BudgetState
from tests.support import forked
from tests.support.invoice import fixed_price
from tests.support.provider import Answer
from tests.support.provider_process import ProviderProcess

REPOSITORY = Path(__file__).parents[2]
INPUT, OUTPUT = 120, 30
COST = Decimal(INPUT + 2 * OUTPUT) / 1_000_000
BOUND = Decimal("0.002")
"""More than one of these requests can cost at most."""

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]
ON_SQLITE = ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)]
ON_POSTGRESQL = ["postgresql", pytest.param("sqlite", marks=pytest.mark.long)]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        found = str(request.getfixturevalue("postgres_url"))
    monkeypatch.setenv("FASTROAI_LEDGER_URL", found)
    return found


class Senders:
    """Processes that send at once."""

    def __init__(self, processes: int, count: int, lease: float = 30.0) -> None:
        command = [sys.executable, "-m", "tests.support.budget_senders", str(count), str(lease)]
        self.running = [
            forked.Popen(
                command,
                cwd=REPOSITORY,
                env=dict(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        for process in self.running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def go(self) -> None:
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def ended(self) -> list[tuple[int, int]]:
        """How many requests of each process were answered, and how many were refused."""
        found = []
        for process in self.running:
            out, _ = process.communicate(timeout=170)
            assert process.returncode == 0
            found.append(tuple(json.loads(out)))
        return found


def invoiced(provider: ProviderProcess) -> Decimal:
    return sum((fixed_price(line) for line in provider.billed), Decimal(0))


async def state_of(url: str) -> BudgetState:
    async with Budgets.open(url) as budgets:
        state = await budgets.get("day")
        assert await budgets.recount("day") == state
        return state


async def set_budget(url: str, usd: Decimal) -> None:
    async with Budgets.open(url) as budgets:
        await budgets.set(Budget(name="day", usd=usd, strength="reserved", window="day"))


@pytest.mark.parametrize(
    ("count", "repetitions"), [(80, 1), pytest.param(1000, 20, marks=LONG)], ids=str
)
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 4])
@pytest.mark.parametrize("url", ON_SQLITE, indirect=True)
async def test_requests_that_cost_twice_the_budget_are_sent_as_far_as_they_fit(
    url: str, provider: ProviderProcess, processes: int, count: int, repetitions: int
) -> None:
    provider.script("question", Answer(input_tokens=INPUT, output_tokens=OUTPUT))
    before = Decimal(0)
    for repetition in range(1, repetitions + 1):
        # What was spent before counts: each repetition has half of what its requests cost.
        limit = before + count * COST / 2
        await set_budget(url, limit)
        senders = Senders(processes, count // processes)
        senders.go()
        ended = await asyncio.to_thread(senders.ended)
        spent = invoiced(provider)
        assert spent <= limit, f"repetition {repetition}"
        admitted = sum(answered for answered, _ in ended)
        assert (spent - before) / COST == admitted
        # Nobody is refused while there is room for one more at its bound.
        assert limit - spent < BOUND
        assert admitted >= Decimal("0.95") * (limit - before - BOUND) / COST
        state = await state_of(url)
        assert (state.spent, state.held, state.unknown) == (spent, 0, 0)
        before = spent


@pytest.mark.parametrize("url", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=LONG)])
async def test_killed_at_any_moment_holders_neither_pass_the_budget_nor_block_others(
    url: str, provider: ProviderProcess, kills: int
) -> None:
    provider.script("question", Answer(input_tokens=INPUT, output_tokens=OUTPUT, slowest=0.1))
    limit = (kills + 1) * 30 * COST
    await set_budget(url, limit)
    chance = random.Random(kills)
    for _ in range(kills):
        senders = Senders(1, 30)
        senders.go()
        await asyncio.sleep(chance.uniform(0, 0.6))
        os.kill(senders.running[0].pid, signal.SIGKILL)
        senders.running[0].wait()
    senders = Senders(1, (kills + 1) * 60, lease=0.5)
    senders.go()
    [(_, refused)] = await asyncio.to_thread(senders.ended)
    assert refused
    assert invoiced(provider) <= limit
    state = await state_of(url)
    assert state.held == 0
    assert state.spent + state.unknown <= limit
    assert state.left < BOUND
