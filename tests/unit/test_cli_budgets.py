"""`fastroai budgets`: standing budgets of a ledger, by command and by file."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from fastroai.budgets import Account, Budget, Budgets, BudgetState
from fastroai.budgets.burn_down import reached_at
from fastroai.budgets.refusals import refusal
from fastroai.database.engine import database_url, named_ledger
from fastroai.database.location import own_ledger
from tests.support.command import Books, books
from tests.support.ledger_entries import charged

__all__ = ["books"]

DOCUMENTED = Path(__file__).parents[2] / "docs" / "costs.md"
SINCE = datetime(2026, 3, 1, tzinfo=UTC)
NOON = SINCE + timedelta(hours=12)


def stored(books: Books) -> dict[str, Budget]:
    async def read() -> dict[str, Budget]:
        async with Budgets.open(books.url) as budgets:
            return {state.budget.name: state.budget for state in await budgets.list()}

    return asyncio.run(read())


def state(spent: str, unknown: str = "0", **fields: str) -> BudgetState:
    """Of a day with a limit of 10 USD."""
    return BudgetState(
        budget=Budget(**{"name": "all", "usd": "10", "window": "day"} | fields),
        since=SINCE,
        until=SINCE + timedelta(days=1),
        spent=Decimal(spent),
        held=Decimal(5),
        unknown=Decimal(unknown),
        left=Decimal(0),
    )


def test_each_option_is_stored_as_it_is_given(books: Books) -> None:
    ran = books.run(
        *("budgets", "set", "search", "2.50", "--window", "day", "--zone", "Europe/Oslo"),
        *("--pipeline", "digest", "--deployment", "flow/dep", "--tag", "team=search"),
        *("--model", "gpt-5-mini", "--strength", "reserved", "--at-limit", "skip"),
        *("--warn-at", "0.5", "--warn-at", "0.9", "--max-request-usd", "0.1"),
    )
    assert (ran.code, ran.err) == (0, "")
    assert stored(books) == {
        "search": Budget(
            name="search",
            usd="2.50",
            window="day",
            zone="Europe/Oslo",
            pipeline="digest",
            deployment="flow/dep",
            tag="team=search",
            model="gpt-5-mini",
            strength="reserved",
            at_limit="skip",
            warn_at=("0.5", "0.9"),
            max_request_usd="0.1",
        )
    }


def test_what_was_spent_before_is_listed_with_what_is_left(books: Books) -> None:
    books.book([charged("0.25", tags={"team": "search"}), charged("4")])
    books.run("budgets", "set", "search", "1", "--tag", "team=search")
    books.run("budgets", "set", "every", "3")
    rows = books.run("budgets", "list").rows()
    assert rows["search"] == [
        "tag team=search",
        "total",
        "settled",
        "fail",
        "1.00",
        "0.25",
        "0.00",
        "0.00",
        "0.75",
        "-",
    ]
    assert rows["every"][:6] == ["all", "total", "settled", "fail", "3.00", "4.25"]
    assert rows["every"][-1] == "reached"
    listed = {one["name"]: one for one in books.run("budgets", "list", "--json").json["budgets"]}
    assert (listed["search"]["spent"], listed["search"]["left"]) == ("0.25", "0.75")
    assert listed["search"]["reached_at"] is None
    assert listed["every"]["reached_at"] is not None


def test_deployments_of_one_name_in_two_flows_have_budgets_and_rows_of_their_own(
    books: Books,
) -> None:
    spent = {"digest/daily": "0.25", "triage/daily": "4"}
    # Both of one pipeline, so that nothing but the flow tells them apart.
    books.book([charged(usd, pipeline="p", deployment=name) for name, usd in spent.items()])
    for name in spent:
        books.run("budgets", "set", name.replace("/", "-"), "5", "--deployment", name)
    rows = books.run("budgets", "list").rows()
    assert {row[0]: row[5] for row in rows.values()} == {
        "deployment digest/daily": "0.25",
        "deployment triage/daily": "4.00",
    }


def test_a_budget_is_raised_and_keeps_all_else(books: Books) -> None:
    books.run("budgets", "set", "all", "1", "--window", "week", "--strength", "reserved")
    before = stored(books)["all"]
    assert books.run("budgets", "raise", "all", "7.5").code == 0
    assert stored(books)["all"] == replace(before, usd=Decimal("7.5"))


def test_a_budget_is_removed(books: Books) -> None:
    books.run("budgets", "set", "all", "1")
    assert books.run("budgets", "remove", "all").out == "Budget 'all' is removed.\n"
    assert books.run("budgets", "list").out.startswith("No budgets are set.")


def test_a_ledger_is_named_without_its_password_unless_it_is_the_users_own() -> None:
    there = database_url("postgresql://app:secret@db/books")
    assert named_ledger(there) == "postgresql://app@db/books"
    assert named_ledger(database_url(own_ledger())) is None
    assert named_ledger(database_url("memory://")) is None


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("name", ["all", "a team's", '"$HOME"', "-x", "--debug=1"])
def test_the_command_that_a_refusal_names_raises_the_budget(
    books: Books, name: str, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(name=name, usd="0.0000001")

    async def set_it() -> None:
        async with Budgets.open(books.url) as budgets:
            await budgets.set(budget)

    asyncio.run(set_it())
    ledger = named_ledger(database_url(books.url)) if is_named else None
    error = refusal(budget, "standing", name, Account(), None, ledger=ledger)
    if is_named:
        monkeypatch.delenv("FASTROAI_LEDGER_URL", raising=False)
    program, *command = shlex.split(str(error.raise_with))
    assert program == "fastroai"
    assert books.run(*command).code == 0
    assert stored(books)[name].usd == Decimal("0.0000002")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("set all much", "usd='much'"),
        ("set all -1", "usd='-1'"),
        ("set all 1 --window year", '"year" for --window'),
        ("set all 1 --zone Mars", "zone='Mars'"),
        ("set all 1 --deployment daily", "deployment='daily': give flow/deployment"),
        ("set all 1 --warn-at 80", "warn_at='80'"),
        ("set all 1 --max-request-usd x", "max_request_usd='x'"),
        ("set '' 1", "name is missing"),
        ("raise all nan", "usd='nan'"),
        ("apply missing.json", "missing.json"),
        ("", "fastroai budgets --help"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(books: Books, command: str, said: str) -> None:
    ran = books.run("budgets", *shlex.split(command))
    assert ran.code == 2
    assert said in ran.err
    assert not books.path.exists()


@pytest.mark.parametrize("command", ["list", "raise all 2", "remove all"])
def test_a_ledger_that_is_not_there_is_not_made(books: Books, command: str) -> None:
    ran = books.run("budgets", *command.split())
    assert (ran.code, ran.out) == (1, "")
    assert "no ledger" in ran.err
    assert not books.path.exists()


@pytest.mark.parametrize("command", ["raise other 2", "remove other"])
def test_an_unknown_name_is_answered_with_those_that_are_known(books: Books, command: str) -> None:
    books.run("budgets", "set", "all", "1")
    ran = books.run("budgets", *command.split())
    assert ran.code == 1
    assert "'other'" in ran.err
    assert "'all'" in ran.err


def test_the_documented_file_is_applied_once(books: Books, tmp_path: Path) -> None:
    found = re.findall(r"^```yaml\n(.*?)^```", DOCUMENTED.read_text(), re.DOTALL | re.MULTILINE)
    [text] = [one for one in found if one.startswith("- name: search")]
    file = tmp_path / "budgets.yaml"
    file.write_text(text)
    assert books.run("budgets", "apply", str(file)).out == "set 'search'\nset 'digest'\n"
    assert stored(books)["digest"].usd == Decimal("2.50")
    assert books.run("budgets", "apply", str(file)).out == "Nothing to change.\n"


def test_a_file_changes_what_differs_and_removes_others_only_when_asked(
    books: Books, tmp_path: Path
) -> None:
    books.run("budgets", "set", "all", "1")
    books.run("budgets", "set", "old", "1")
    file = tmp_path / "budgets.json"
    file.write_text('[{"name": "all", "usd": 2.1, "tag": null, "warn_at": [0.7]}]')
    ran = books.run("budgets", "apply", str(file))
    assert ran.out == "change 'all': usd 1 → 2.1; warn_at 0.8 → 0.7\n"
    assert set(stored(books)) == {"all", "old"}
    pruned = books.run("budgets", "apply", str(file), "--prune", "--json")
    assert pruned.json == {"changes": [{"action": "remove", "name": "old", "differences": []}]}
    assert stored(books) == {"all": Budget(name="all", usd="2.1", warn_at=("0.7",))}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Expecting"),
        ("{}", "expected a list"),
        ("[1]", "budget 1: expected fields"),
        ('[{"usd": 1}]', "budget 1: name is missing"),
        ('[{"name": "a"}]', "budget 1: usd is missing"),
        ('[{"name": 5, "usd": 1}]', "name=5: give a text"),
        ('[{"name": "a", "usd": 1, "colour": "x"}]', "no 'colour'"),
        ('[{"name": "a", "usd": 1, "warn_at": "0.8"}]', "warn_at='0.8': give a list"),
        ('[{"name": "a", "usd": 1}, {"name": "b", "usd": true}]', "budget 2: usd=True"),
        ('[{"name": "a", "usd": 1}, {"name": "a", "usd": 2}]', "'a' is given twice"),
    ],
)
def test_a_wrong_file_changes_nothing(
    books: Books, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "budgets.json"
    file.write_text(content)
    ran = books.run("budgets", "apply", str(file), "--prune")
    assert ran.code == 2
    assert said in ran.err
    assert not books.path.exists()


def test_commands_work_over_postgresql(books: Books, postgres_url: str, tmp_path: Path) -> None:
    file = tmp_path / "budgets.json"
    file.write_text(json.dumps([{"name": "all", "usd": "2", "window": "month"}]))
    ledger = ("--ledger", postgres_url)
    assert books.run("budgets", "apply", str(file), *ledger).out == "set 'all'\n"
    assert books.run("budgets", "raise", "all", "3", *ledger).code == 0
    [listed] = books.run("budgets", "list", "--json", *ledger).json["budgets"]
    assert (listed["usd"], listed["left"], listed["window"]) == ("3", "3", "month")
    assert books.run("budgets", "remove", "all", *ledger).code == 0
    assert books.run("budgets", "list", "--json", *ledger).json["budgets"] == []


@pytest.mark.parametrize(
    ("of", "hours"),
    [
        (state("6"), 20),
        (state("5", unknown="1"), 20),
        (state("10"), 12),
        (state("5"), None),
        (state("0"), None),
        (state("0", usd="0"), 12),
        (state("0.000000000000000001"), None),
        (state("6", window="total"), None),
    ],
)
def test_a_budget_is_reached_at_the_pace_of_its_window(of: BudgetState, hours: int | None) -> None:
    expected = None if hours is None else SINCE + timedelta(hours=hours)
    assert reached_at(of, NOON) == expected
