"""The history of a pipeline: what entries add up to by run and step, wherever these are kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fastroai.database.engine import Database
from fastroai.database.statements import Insert
from fastroai.ledger.entries import EntryState, total_usd
from fastroai.ledger.history import RecordedRun, WholeRun
from fastroai.ledger.store import summing
from fastroai.ledger.store.histories import read_history, whole_run_row
from fastroai.ledger.store.mapping import as_stored, intent_row, outcome_row
from fastroai.ledger.store.numbers import Numbers
from fastroai.ledger.store.schema import (
    groups,
    intents,
    outcomes,
    run_sums,
    runs,
    summed,
    sums,
    whole_runs,
)
from fastroai.usage import Ledger, LedgerEntry
from tests.support.examples import examples
from tests.support.ledger_entries import START, charged, entries

TABLES = (intents, outcomes, groups, runs, summed, sums, run_sums, whole_runs)
SENT = {EntryState.CHARGED, EntryState.UNPRICED, EntryState.UNSETTLED}


def whole(run_id: str, run_key: str | None = None, minutes: int = 0, **fields: Any) -> WholeRun:
    at = START + timedelta(minutes=minutes)
    given = {"pipeline": "p", "shape": "s", "ended_at": at} | fields
    return WholeRun(run_id=run_id, run_key=run_key, **given)


def fill(database: Database, booked: list[LedgerEntry], ended: list[WholeRun]) -> None:
    def empty(connection: Any) -> None:
        for table in TABLES:
            connection.execute(table.delete())

    database.run(empty)
    database.insert(
        (Insert(intents), [intent_row(entry) for entry in booked]),
        (Insert(outcomes), [outcome_row(e) for e in booked if e.settled_at is not None]),
        (Insert(whole_runs), list(map(whole_run_row, ended))),
    )


def history(database: Database, most: int = 100) -> dict[str, RecordedRun]:
    """By key, else by id."""
    found = database.run(lambda connection: read_history(connection, "p", most))
    return {recorded.run.run_key or recorded.run.run_id: recorded for recorded in found}


ENDED = [whole("a"), whole("other", "b"), whole("a/b", "a/b", 1), whole("x", pipeline="a")]


@given(st.lists(entries(), max_size=12), st.integers(0, 3))
@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_step_cost_in_a_run_is_what_its_entries_say(
    database: Database, booked: list[LedgerEntry], chunk: int
) -> None:
    ended = [whole(one.run_id, one.run_key, pipeline="b") for one in ENDED]
    fill(database, booked, ended)
    if chunk:  # some of them in the sums
        database.run(lambda connection: summing.add_to_sums(connection, 4 * chunk, Numbers()))
    found = database.run(lambda connection: read_history(connection, "b", 9))
    assert {r.run.run_id for r in found} == {"a", "other", "a/b", "x"}
    for recorded in found:
        run = recorded.run
        mine = [
            e
            for e in map(as_stored, booked)
            if e.attribution.pipeline == "b"
            and (
                e.attribution.run_key == run.run_key
                if run.run_key is not None
                else (e.attribution.run_id, e.attribution.run_key) == (run.run_id, None)
            )
        ]
        assert set(recorded.steps) == {e.attribution.step_id for e in mine}
        for step_id, cost in recorded.steps.items():
            own = [e for e in mine if e.attribution.step_id == step_id]
            assert cost.usd == total_usd(own)
            assert cost.models == {e.model for e in own}
            assert cost.sent == sum(e.request_count for e in own if e.state in SENT)
            assert cost.unknown == sum(
                e.request_count for e in own if e.state in SENT - {EntryState.CHARGED}
            )
            assert cost.replayed == sum(
                e.request_count for e in own if e.state is EntryState.REPLAYED
            )


def test_executions_under_one_key_are_one_run_failed_ones_included(database: Database) -> None:
    booked = [
        charged("1", pipeline="p", run_id="first", run_key="k", step_id="s"),
        charged("2", pipeline="p", run_id="second", run_key="k", step_id="s"),
        charged("4", pipeline="p", run_id="third", run_key="k", step_id="s"),
        charged("8", pipeline="other", run_id="first", run_key="k", step_id="s"),
    ]
    fill(database, booked, [whole("second", "k"), whole("third", "k", 1)])
    [recorded] = history(database).values()
    assert recorded.steps["s"].usd == 7
    assert recorded.run.run_id == "third"


def test_a_run_that_did_not_end_well_is_no_history(database: Database) -> None:
    fill(database, [charged("1", pipeline="p", run_id="failed", step_id="s")], [])
    assert history(database) == {}


def test_the_last_runs_come_the_oldest_first(database: Database) -> None:
    booked = [charged(str(n), pipeline="p", run_id=f"r{n}", step_id="s") for n in range(1, 6)]
    fill(database, booked, [whole(f"r{n}", minutes=n) for n in (3, 1, 5, 2, 4)])
    found = history(database, most=3)
    assert [(name, recorded.steps["s"].usd) for name, recorded in found.items()] == [
        ("r3", 3),
        ("r4", 4),
        ("r5", 5),
    ]


async def test_archived_entries_still_say_what_a_run_cost(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with Ledger.open(url) as ledger:
        await ledger.append(charged("0.25", pipeline="p", run_id="old", step_id="s"))
        ledger._store.end_run(whole("old"))
        await ledger.archive(START + timedelta(days=1), tmp_path / "archive")
        assert await ledger.entries() == []
        [recorded] = await ledger.history("p")
    assert recorded.steps["s"].usd == charged("0.25").cost_usd
