"""Random maps, killed at random moments and resumed: outputs, errors and books are those of a run
in memory that nothing happened to.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.usage import EntryState, Ledger
from tests.conformance.killed_map import Kill, accounted, killed_and_resumed
from tests.conformance.test_random_books import examples, ledger_url, made_up
from tests.conformance.test_random_maps import PRICE, Asking, Fate, Job, fates, run, told

__all__ = ["ledger_url"]

jobs_that_ask = st.builds(
    Job,
    values=st.lists(st.integers(0, 7), min_size=2, max_size=12),
    fates=st.fixed_dictionaries(
        dict.fromkeys(range(8), st.one_of(st.just(Fate()), st.just(Fate(2)), fates))
    ),
    has_keys=st.booleans(),
    is_twofold=st.booleans(),
    max_concurrency=st.integers(1, 5),
    max_failures=st.sampled_from([3, 0, 1, 0.3]),
)


async def compare_killed(job: Job, kills: list[Kill], folder: Path) -> int:
    """The number of processes that were killed."""
    whole, failure = await run(Asking(job).pipeline("memory"), job, "in memory")
    outcome, asked, killed = killed_and_resumed(job, folder.name, kills, folder)
    async with Ledger.open() as ledger:
        booked = await ledger.entries(run_key=folder.name)
    states = Counter(entry.state for entry in booked)
    # Each request is an entry; of the last ones before a kill it is not known what became of them.
    answered = asked.total()
    unknown = states[EntryState.UNSETTLED]
    assert answered - unknown <= states[EntryState.CHARGED] <= answered
    under_way = killed * job.max_concurrency * (1 + job.is_twofold)
    assert unknown <= under_way
    assert answered - len(asked) <= under_way
    assert max(asked.values(), default=0) <= 1 + killed
    paid = sum((e.cost_usd or Decimal(0) for e in booked if e.is_spend), Decimal(0))
    assert paid == states[EntryState.CHARGED] * PRICE
    assert outcome.error is (None if failure is None else type(failure))
    if job.completes:
        assert outcome.told == told(whole)
        assert outcome.accounted == accounted(whole.entries)
    return killed


@pytest.mark.timeout(900)
@examples(1, 40)
def test_a_run_that_is_killed_and_resumed_comes_to_what_it_comes_to_in_memory(
    prefect_api: str,
    ledger_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", str(tmp_path / "results"))
    monkeypatch.setenv("FASTROAI_LEASE_SECONDS", "0.5")
    killed: list[int] = []
    runs, kills = count(), st.builds(Kill, st.integers(1, 5), st.floats(0, 0.1))

    @given(job=jobs_that_ask, kills=st.lists(kills, min_size=1, max_size=3))
    @made_up(number)
    def comes_to_the_same(job: Job, kills: list[Kill]) -> None:
        folder = tmp_path / f"run-{next(runs)}"
        folder.mkdir()
        killed.append(asyncio.run(compare_killed(job, kills, folder)))

    comes_to_the_same()
    print(f"{sum(killed)} processes were killed")  # noqa: T201
    assert sum(killed) >= number / 2  # not all come so far
