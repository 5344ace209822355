"""`fastroai runs` from a ledger alone; with Prefect: tests/integration/test_dead_runs.py."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from fastroai.database.engine import Database, database_url
from fastroai.ledger.store.summing import sum_up
from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import START, charged

__all__ = ["books"]


@pytest.fixture(autouse=True)
def no_prefect(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """As on a machine where none was ever set up."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)


def two_runs() -> list[LedgerEntry]:
    daily = {"pipeline": "digest", "deployment": "digest/daily", "run_id": "0192-a"}
    at = START + timedelta(hours=1)
    lost = LedgerEntry(
        attribution=charged(**daily, step_id="write").attribution,
        model_asked="openai:gpt-5",
        sent_at=at + timedelta(seconds=90),
    )
    return [
        charged("0.5", pipeline="triage", deployment="triage/daily", run_id="0193-b", run_key="j"),
        charged("0.25", **daily, step_id="read", sent_at=at),
        charged("0.001", **daily, step_id="write", sent_at=at + timedelta(seconds=30)),
        lost,
        charged("9", pipeline="of no run"),
    ]


@pytest.mark.parametrize("is_summed", [False, True])
def test_the_last_runs_come_first_with_what_they_cost(books: Books, is_summed: bool) -> None:
    books.book(two_runs())
    if is_summed:
        database = Database(database_url(books.url), writes=True)
        sum_up(database)
        database.close()
    ran = books.run("runs", "--json")
    found = [
        (run["id"], run["pipeline"], run["deployment"], run["requests"], run["paid_usd"])
        for run in ran.json["runs"]
    ]
    assert found == [
        ("0192-a", "digest", "digest/daily", 3, "0.251"),
        ("0193-b", "triage", "triage/daily", 1, "0.5"),
    ]
    first, second = ran.json["runs"]
    assert (first["unsettled"], first["seconds"], first["url"]) == (1, 90.0, None)
    assert first["started_at"] == "2026-03-01T13:00:00+00:00"
    assert (second["run_key"], second["state"]) == ("j", None)
    rows = books.run("runs", "--limit", "1").rows()
    assert next(iter(rows)) == "0192-a"
    assert "0.251 + 1 unknown" in rows["0192-a"]
    assert "1 min 30 s" in rows["0192-a"]
    assert "0193-b" not in rows


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["--deployment", "digest/daily"], ["0192-a"]),
        (["--pipeline", "triage"], ["0193-b"]),
        (["--run-key", "j"], ["0193-b"]),
        (["--since", "2026-03-01T12:30"], ["0192-a"]),
        (["--until", "2026-03-01T12:30"], ["0193-b"]),
    ],
)
def test_filters_say_which_runs(books: Books, filters: list[str], found: list[str]) -> None:
    books.book(two_runs())
    assert [run["id"] for run in books.run("runs", "--json", *filters).json["runs"]] == found


def test_among_many_requests_of_one_run_the_others_are_found(books: Books) -> None:
    many = [
        charged("1", run_id="many", sent_at=START + timedelta(days=1, seconds=n))
        for n in range(120)
    ]
    books.book([*many, charged("2", run_id="few")])
    runs = books.run("runs", "--limit", "2", "--json").json["runs"]
    assert [(run["id"], run["requests"]) for run in runs] == [("many", 120), ("few", 1)]


@pytest.mark.parametrize("name", ["0192-a", "0192"])
def test_a_run_is_shown_with_its_steps(books: Books, name: str) -> None:
    books.book(two_runs())
    ran = books.run("runs", "show", name)
    assert ran.code == 0
    assert "deployment  digest/daily" in ran.out
    assert ran.headings() == [
        "step", "model", "state", "took", "requests", "replayed", "input tokens", "output tokens",
        "USD",
    ]  # fmt: skip
    found = books.run("runs", "show", name, "--json").json
    steps = [(s["step"], s["model"], s["requests"], s["paid_usd"]) for s in found["steps"]]
    assert steps == [
        ("read", "openai:gpt-5-mini", 1, "0.25"),
        ("write", "openai:gpt-5", 1, "0"),
        ("write", "openai:gpt-5-mini", 1, "0.001"),
    ]
    assert sum(Decimal(step["paid_usd"]) for step in found["steps"]) == Decimal(found["paid_usd"])


def test_what_only_unknown_requests_cost_is_unknown(books: Books) -> None:
    unpriced = replace(charged(run_id="u"), state=EntryState.UNPRICED, cost_usd=None)
    books.book([unpriced])
    assert "unknown" in books.run("runs").rows()["u"]


def test_what_was_simulated_is_said_below_the_runs(books: Books) -> None:
    books.book([*two_runs(), replace(charged("0.002", run_id="offline"), simulated=True)])
    out = " ".join(books.run("runs").out.split())
    assert "SIMULATED: 1 of 5 requests was answered by an offline model." in out
    assert "0.002 USD, was not paid" in out
    assert "SIMULATED" not in books.run("runs", "--pipeline", "digest").out


def test_a_run_key_names_its_last_run(books: Books) -> None:
    books.book(
        [*two_runs(), charged("3", run_id="later", run_key="j", sent_at=START + timedelta(days=3))]
    )
    assert books.run("runs", "show", "j", "--json").json["id"] == "later"


@pytest.mark.parametrize(("name", "said"), [("019", "matches 2 runs"), ("x", "No run in this")])
def test_a_name_must_mean_one_run(books: Books, name: str, said: str) -> None:
    books.book(two_runs())
    ran = books.run("runs", "show", name)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_without_a_ledger_there_are_no_runs(books: Books) -> None:
    assert books.run("runs").out == "No active or dead runs.\n"
    assert not books.path.exists()
    assert books.run("runs", "--ledger", books.url).code == 1
    books.book([])
    assert books.run("runs", "--json").json["runs"] == []
    assert books.run("runs", "--pipeline", "p").out == "No run matches: pipeline 'p'.\n"
