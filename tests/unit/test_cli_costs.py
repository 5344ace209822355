"""`fastroai costs`: sums in groups, for people and for programs."""

from __future__ import annotations

import csv
import io
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from rich.cells import cell_len

from fastroai.cli.costs.keys import key_of
from fastroai.cli.costs.report import report
from fastroai.database.engine import Database, database_url
from fastroai.ledger.aggregation import GROUPINGS, totals_of
from fastroai.ledger.store.mapping import as_stored
from fastroai.pricing.money import EXACT
from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support import forked
from tests.support.command import Books, books
from tests.support.examples import examples
from tests.support.ledger_entries import START, charged, entries, fill

__all__ = ["books"]

NOW = datetime.now(UTC)


def some() -> list[LedgerEntry]:
    tokens = TokenCounts(input_tokens=1000, output_tokens=10)
    return [
        charged(
            "0.001",
            pipeline="small",
            run_id="r1",
            step_id="read",
            tokens=tokens,
            tags={"team": "search"},
        ),
        charged(
            "0.25",
            pipeline="large",
            run_id="r2",
            step_id="a/b",
            tokens=tokens,
            tags={"team": "ads", "env": "x"},
        ),
        charged(
            "0.000000000001",
            pipeline="large",
            run_id="r3",
            step_id="read",
            run_key="job",
            tokens=tokens,
        ),
    ]


def test_by_pipeline_unless_asked_otherwise_the_largest_first_and_a_total(books: Books) -> None:
    books.book(some())
    ran = books.costs()
    assert ran.code == 0
    assert ran.headings() == [
        "pipeline",
        "requests",
        "input tokens",
        "output tokens",
        "USD",
        "share",
    ]
    rows = ran.rows()
    assert list(rows) == ["large", "small", "total"]
    assert rows["large"][:5] == ["2", "2,000", "20", "0.250000000001", "99.6 %"]
    assert rows["small"][:5] == ["1", "1,000", "10", "0.001000000000", "0.4 %"]
    assert rows["total"] == ["3", "3,000", "30", "0.251000000001"]
    assert rows["large"][5].count("█") > 5 > len(rows["small"][5])


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("run", ["r2", "r1", "r3"]),
        ("run_key", ["(no run key)", "job"]),
        ("step", ["large/a/b", "small/read", "large/read"]),
        ("model", ["openai:gpt-5-mini"]),
        ("day", ["2026-03-01"]),
        ("tag", ["env=x", "team=ads", "team=search", "(no tag)"]),
        ("tag:team", ["ads", "search", "(no team)"]),
        ("agent", ["(no agent)"]),
        ("provider", ["(no provider)"]),
        ("deployment", ["(no deployment)"]),
    ],
)
def test_every_grouping(books: Books, by: str, keys: list[str]) -> None:
    books.book(some())
    assert list(books.costs("--by", by).rows()) == [*keys, "total"]


def test_several_dimensions_are_a_line_for_each_of_their_values_together(books: Books) -> None:
    later = charged("2", pipeline="large", sent_at=START + timedelta(days=1))
    books.book([*some(), later])
    ran = books.costs("--by", "pipeline, tag:team")
    assert ran.out.startswith("Costs by pipeline and tag team:")
    assert ran.headings()[:2] == ["pipeline", "team"]
    lines = [line.split()[:2] for line in ran.out.splitlines()[4:7]]
    assert lines == [["large", "(no"], ["large", "ads"], ["small", "search"]]
    found = books.costs("--by", "day,pipeline", "--json").json
    assert [(group["keys"], group["cost_usd"]) for group in found["groups"]] == [
        ({"day": "2026-03-01", "pipeline": "large"}, "0.250000000001"),
        ({"day": "2026-03-01", "pipeline": "small"}, "0.001"),
        ({"day": "2026-03-02", "pipeline": "large"}, "2"),
    ]


@pytest.mark.parametrize("by", ["day,day", "day,colour", ",", "day,"])
def test_dimensions_must_be_known_and_different(books: Books, by: str) -> None:
    ran = books.costs("--by", by)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1


def test_a_comma_in_the_name_of_a_tag_stays_there(books: Books) -> None:
    books.book([charged("1", tags={"a,b": "x"}, pipeline="p")])
    assert list(books.costs("--by", "tag:a,b").rows()) == ["x", "total"]
    assert books.costs("--by", "tag:a,b,pipeline").headings()[:2] == ["a,b", "pipeline"]


def test_a_limit_keeps_the_largest_and_adds_up_the_others(books: Books) -> None:
    books.book(some())
    ran = books.costs("--by", "run", "--limit", "1")
    rows = ran.rows()
    assert list(rows) == ["r2", "(2 others)", "total"]
    assert rows["(2 others)"] == ["2", "2,000", "20", "0.001000000001", "0.4 %"]
    assert rows["total"][3] == "0.251000000001"
    found = books.costs("--by", "run", "--limit", "1", "--json").json
    assert [group["key"] for group in found["groups"]] == ["r2"]
    assert (found["others"]["groups"], found["others"]["cost_usd"]) == (2, "0.001000000001")
    assert "others" not in books.costs("--limit", "3", "--json").json
    assert books.costs("--limit", "0").code == 2


def test_of_days_a_limit_keeps_the_last(books: Books) -> None:
    books.book([charged(str(9 - n), sent_at=START + timedelta(days=n)) for n in range(4)])
    rows = books.costs("--by", "day", "--limit", "2").rows()
    assert list(rows) == ["2026-03-03", "2026-03-04", "(2 others)", "total"]


def test_csv_has_exact_amounts_and_nothing_for_what_is_not_known(books: Books) -> None:
    lost = charged(pipeline='say "hi", you').settled(EntryState.REFUSED, cost_usd=None)
    books.book([*some(), lost])
    ran = books.costs("--by", "pipeline,tag:team", "--csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(row["pipeline"], row["tag:team"], row["paid_usd"]) for row in rows] == [
        ("large", "ads", "0.25"),
        ("small", "search", "0.001"),
        ("large", "", "0.000000000001"),
        ('say "hi", you', "", "0"),
    ]
    assert rows[0]["input_tokens"] == "1000"
    assert [row["share_priced"] for row in rows] == ["1.0", "1.0", "1.0", ""]
    assert books.costs("--csv", "--json").code == 2


def test_a_report_that_is_watched_shows_what_comes_until_it_is_interrupted(books: Books) -> None:
    books.book([charged("1", pipeline="first")])
    command = [sys.executable, "-m", "fastroai", "costs", "--watch", "--every", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            lines = iter(watching.stdout.readline, "")
            assert any(line.startswith("first ") for line in lines)
            books.book([charged("2", pipeline="second")])
            assert any(line.startswith("second ") for line in lines)
        finally:
            watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait(30) == 0


def test_deployments_of_one_name_in_two_flows_are_two_lines_and_found_apart(books: Books) -> None:
    books.book(
        [
            charged("3", pipeline="digest", deployment="digest/daily"),
            charged("2", pipeline="triage", deployment="triage/daily"),
            charged("1", pipeline="triage", deployment="daily"),  # as it was booked earlier
        ]
    )
    rows = books.costs("--by", "deployment").rows()
    assert {name: cells[3] for name, cells in rows.items()} == {
        "digest/daily": "3.00",
        "triage/daily": "3.00",
        "total": "6.00",
    }
    for name in ("digest/daily", "triage/daily"):
        ran = books.costs("--deployment", name)
        assert ran.rows()["total"][-1] == "3.00"
        assert f"deployment {name!r}" in ran.out.splitlines()[0]


def test_the_help_names_every_grouping() -> None:
    assert report.__doc__ is not None
    assert [name for name in GROUPINGS if f" {name}" not in report.__doc__] == []


def test_days_are_those_of_utc_in_their_order(books: Books) -> None:
    tokyo = timezone(timedelta(hours=9))
    books.book(
        [
            charged("5", sent_at=datetime(2026, 3, 2, 8, 59, tzinfo=tokyo)),
            charged(
                "1", sent_at=datetime(2026, 2, 28, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
            ),
            charged("9", sent_at=datetime(2026, 3, 2, 9, tzinfo=tokyo)),
        ]
    )
    ran = books.costs("--by", "day")
    assert "day (UTC)" in ran.out
    assert {
        day: cells[-2 if day == "total" else 3]
        for day, cells in ran.rows().items()
        if day != "total"
    } == {
        "2026-03-01": "6.00",
        "2026-03-02": "9.00",
    }


def test_a_request_with_several_tags_is_said_to_be_in_several_lines(books: Books) -> None:
    books.book(some())
    ran = books.costs("--by", "tag")
    assert ran.rows()["total"][-1] == "0.251000000001"
    assert "lines may add up to more than the total" in ran.out


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["--pipeline", "large"], ["r2", "r3"]),
        (["--run", "r1"], ["r1"]),
        (["--run-key", "job"], ["r3"]),
        (["--step", "a/b"], ["r2"]),
        (["--tag", "team=search"], ["r1"]),
        (["--tag", "team"], ["r2", "r1"]),
        (["--model", "gpt-5-mini", "--pipeline", "small"], ["r1"]),
    ],
)
def test_filters_say_which_requests_and_are_named_in_the_title(
    books: Books, arguments: list[str], runs: list[str]
) -> None:
    books.book(some())
    ran = books.costs("--by", "run", *arguments)
    assert list(ran.rows()) == [*runs, "total"]
    assert all(repr(value) in ran.out.splitlines()[0] for value in arguments[1::2])


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--since", "7d"], ["hour", "days"]),
        (["--since", "2h"], ["hour"]),
        (["--since", "180m"], ["hour"]),
        (["--since", "2w", "--until", "24h"], ["days"]),
        (["--since", "2026-03-01"], ["hour", "days", "start", "before"]),
        (["--since", "2026-03-01T12:00Z"], ["hour", "days", "start"]),
        (["--since", "2026-03-01T12:00:00.000001Z"], ["hour", "days"]),
        (["--since", "2026-03-01T14:00+02:00", "--until", "2026-03-02"], ["start"]),
        (["--until", "2026-03-01T12:00"], ["before"]),
        (["--until", "now", "--since", "2026-03-02"], ["hour", "days"]),
    ],
)
def test_times_of_all_forms(books: Books, arguments: list[str], found: list[str]) -> None:
    books.book(
        [
            charged("4", pipeline="hour", sent_at=NOW - timedelta(hours=1)),
            charged("3", pipeline="days", sent_at=NOW - timedelta(days=3)),
            charged("2", pipeline="start", sent_at=START),
            charged("1", pipeline="before", sent_at=START - timedelta(microseconds=1)),
        ]
    )
    ran = books.costs(*arguments)
    assert list(ran.rows()) == [*found, "total"]
    assert "UTC" in ran.out.splitlines()[0]


def test_yesterday_ends_where_today_begins(books: Books) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    books.book(
        [
            charged("1", pipeline="today", sent_at=midnight),
            charged("1", pipeline="yesterday", sent_at=midnight - timedelta(microseconds=1)),
            charged("1", pipeline="before", sent_at=midnight - timedelta(days=1, microseconds=1)),
        ]
    )
    assert list(books.costs("--since", "yesterday", "--until", "today").rows()) == [
        "yesterday",
        "total",
    ]
    assert list(books.costs("--since", "today").rows()) == ["today", "total"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "soon"], "--since 'soon'"),
        (["--since", "999999999999d"], "--since '999999999999d'"),
        (["--until", "0001-01-01T00:00+14:00"], "--until '0001-01-01T00:00+14:00'"),
        (["--since", "1d", "--until", "2d"], "--since"),
        (["--by", "colour"], "'colour'"),
        (["--colour=red"], "--colour"),
        (["elsewhere"], "elsewhere"),
    ],
)
def test_wrong_usage_exits_with_2(books: Books, arguments: list[str], said: str) -> None:
    ran = books.costs(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_programs_get_exact_amounts_as_text(books: Books) -> None:
    huge = Decimal("123456789012345678.00000000000000000001")
    books.book([*some(), charged(str(huge), pipeline="huge")])
    found = books.costs("--json", "--since", "2026-03-01").json
    assert found["by"] == "pipeline"
    assert found["filters"] == {"since": "2026-03-01T00:00:00+00:00"}
    assert [group["key"] for group in found["groups"]] == ["huge", "large", "small"]
    assert [group["cost_usd"] for group in found["groups"]] == [
        f"{huge:f}",
        "0.250000000001",
        "0.001",
    ]
    assert found["total"]["paid_usd"] == "123456789012345678.25100000000100000001"
    assert found["total"]["requests"] == 4
    assert found["total"]["tokens"]["input_tokens"] == 3000
    assert found["total"]["upper_bound_usd"] == "0"


@given(
    st.lists(entries(), min_size=1, max_size=8),
    st.sampled_from([*GROUPINGS, "tag:team", "day,model", "deployment,step"]),
)
@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lines_are_the_ledgers_own_and_add_up_to_the_total(
    books: Books, booked: list[LedgerEntry], by: str
) -> None:
    books.book([])
    database = Database(database_url(books.url), writes=True)
    fill(database, booked)
    database.close()
    found = books.costs("--by", by, "--json").json
    expected = {key_of(totals): totals for totals in totals_of(map(as_stored, booked), by)}
    groups = {
        tuple(group["keys"].values()) if "keys" in group else group["key"]: group
        for group in found["groups"]
    }
    assert set(groups) == set(expected)
    for key, group in groups.items():
        assert Decimal(group["cost_usd"]) == expected[key].cost_usd
        assert group["requests"] == expected[key].requests
    if by != "tag":
        for name in ("cost_usd", "simulated_usd", "paid_usd", "upper_bound_usd", "replayed_usd"):
            with localcontext(EXACT):
                assert Decimal(found["total"][name]) == sum(
                    Decimal(group[name]) for group in found["groups"]
                )


def test_simulated_money_has_a_column_of_its_own(books: Books) -> None:
    books.book(
        [charged("2", pipeline="real"), replace(charged("5", pipeline="trial"), simulated=True)]
    )
    ran = books.costs()
    assert ran.headings()[-3:] == ["simulated USD", "USD", "share"]
    rows = ran.rows()
    assert list(rows) == ["real", "trial", "total"]
    assert (rows["trial"][3:5], rows["total"][3:5]) == (["5.00", "0.00"], ["5.00", "2.00"])
    assert "SIMULATED: 1 of 2 requests" in ran.out
    total = books.costs("--json").json["total"]
    assert (total["cost_usd"], total["simulated_usd"], total["paid_usd"]) == ("7", "5", "2")


def test_where_all_is_simulated_the_bars_compare_that(books: Books) -> None:
    books.book([replace(charged(cost, pipeline=cost), simulated=True) for cost in ("1", "3")])
    ran = books.costs()
    assert ran.headings()[-1] == "simulated share"
    assert list(ran.rows()) == ["3", "1", "total"]
    assert ran.rows()["3"][5] == "75.0 %"
    assert "█" in ran.out


def test_what_is_not_known_is_said_with_its_bound(books: Books) -> None:
    lost = LedgerEntry(
        model_asked="openai:gpt-5-mini", sent_at=START, upper_bound_usd=Decimal("0.03")
    )
    books.book(
        [charged("1"), charged("1"), charged().settled(EntryState.UNPRICED, cost_usd=None), lost]
    )
    ran = books.costs()
    assert ran.headings()[1:4] == ["requests", "unpriced", "unsettled"]
    assert ran.rows()["total"][:3] == ["4", "1", "1"]
    assert "PRICED: 50.0 % of the requests that count as spend." in ran.out
    assert "1 request answered by a model without a known price" in ran.out
    assert "At most 0.03 USD" in ran.out
    total = books.costs("--json").json["total"]
    assert (total["share_priced"], total["upper_bound_usd"]) == (0.5, "0.03")


def test_where_all_is_priced_nothing_is_said_of_it(books: Books) -> None:
    books.book([charged("1"), charged().settled(EntryState.REFUSED)])
    out = books.costs().out
    assert "PRICED" not in out
    assert "1 request refused by the provider" in out


def test_a_replay_shows_what_it_saved_and_is_no_spend(books: Books) -> None:
    first = charged("0.5", pipeline="p")
    books.book([first, first.replayed(first.attribution)])
    ran = books.costs()
    assert ran.rows()["total"] == ["1", "1", "0", "0", "0.50"]
    assert "0.5 USD saved" in ran.out


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["--json"],
        ["reprice", "--check"],
        ["what-if", "--tier", "flex"],
        ["archive", "--older-than", "1d", "--to", "archive"],
    ],
)
def test_a_ledger_that_is_not_there_is_an_error_and_stays_so(
    books: Books, command: list[str]
) -> None:
    ran = books.costs(*command)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"fastroai: There is no ledger in {books.url} yet.\n"
    assert not books.path.exists()


def test_another_database_is_no_ledger_and_is_left_as_it_is(books: Books) -> None:
    with sqlite3.connect(books.path) as other:
        other.execute("CREATE TABLE theirs (a)")
    other.close()
    before = books.path.read_bytes()
    assert "There is no ledger" in books.costs().err
    assert books.path.read_bytes() == before
    assert list(books.path.parent.glob("ledger.db?*")) == []


def test_an_empty_ledger_is_one_sentence(books: Books) -> None:
    books.book([])
    assert books.costs().out == "The ledger has no entries yet.\n"


def test_a_ledger_in_memory_has_nothing_to_show_to_another_process() -> None:
    # The ledger in memory of this process is that of all its tests.
    command = [sys.executable, "-m", "fastroai", "costs", "--ledger", "memory://"]
    ran = forked.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "memory:// ends with the process" in ran.stdout


def test_a_filter_that_nothing_fits_is_one_sentence(books: Books) -> None:
    books.book(some())
    ran = books.costs("--pipeline", "elsewhere", "--tag", "team=x")
    assert ran.code == 0
    assert (
        ran.out
        == "No request matches: pipeline 'elsewhere', tag 'team=x'. The ledger has 3 others.\n"
    )


@pytest.mark.parametrize(
    "url", ["sqlite:////", "mysql://here/x", "postgresql://me:secret@127.0.0.1:1/x", "oops"]
)
def test_a_ledger_that_can_not_be_opened_is_one_message(books: Books, url: str) -> None:
    ran = books.costs("--ledger", url)
    assert (ran.code, ran.out) == (1, "")
    assert "secret" not in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_file_that_is_no_database_is_one_message(books: Books) -> None:
    books.path.write_text("a letter\n" * 100)
    ran = books.costs()
    assert (ran.code, ran.out) == (1, "")
    assert "file is not a database" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert "Traceback" in books.costs("--debug").err


def test_another_ledger_can_be_named(
    books: Books, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = Books(tmp_path / "other", capsys)
    other.book([charged("7", pipeline="theirs")])
    assert list(books.costs("--ledger", other.url).rows()) == ["theirs", "total"]


@pytest.mark.parametrize("columns", [30, 50, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    books: Books, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    lost = replace(
        LedgerEntry(sent_at=START),
        attribution=charged(pipeline="決算レビュー", step_id="x/y/z").attribution,
    )
    run_id = "0f2e5ed0-31a5-4d1b-9d4d-9f0ad0c0ffee"
    trial = replace(
        charged("3", pipeline="a" * 60, step_id="b\x1b[2J", run_id=run_id), simulated=True
    )
    again = trial.replayed(trial.attribution)
    books.book(
        [
            *some(),
            lost,
            trial,
            again,
            charged("1", pipeline="契約書レビュー📄", step_id="größe", run_id=run_id),
        ]
    )
    monkeypatch.setenv("COLUMNS", str(columns))
    for by in ("pipeline", "step", "run", "tag"):
        ran = books.costs("--by", by)
        assert max(map(cell_len, ran.out.splitlines())) <= columns
        assert "\x1b" not in ran.out
        assert "No room here for" in ran.out or columns == 120
        assert "0.250000000001" in books.costs("--by", by, "--pipeline", "large").out


def test_without_a_terminal_nothing_is_shortened(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a" * 200
    books.book([charged("1", pipeline=long)])
    monkeypatch.delenv("COLUMNS")
    ran = books.costs()
    assert (ran.code, ran.err) == (0, "")
    assert long in ran.out


def test_the_command_never_imports_prefect(books: Books) -> None:
    books.book(some())
    code = (
        "import sys; from fastroai.cli import main; assert main(['costs']) == 0;"
        "assert main(['costs', 'what-if', '--model', 'openai:gpt-5-nano']) == 0;"
        "assert not {'prefect', 'prefect_aws', 'boto3'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = forked.run(command, kind=forked.BARE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_none_of_the_commands() -> None:
    code = (
        "import sys; from fastroai.cli import main; assert main(['--help']) == 0;"
        "loaded = {name for name in sys.modules if name.startswith('fastroai.cli.')};"
        "assert loaded == {'fastroai.cli.exit_codes', 'fastroai.cli.shutdown'}, loaded;"
        "assert not {'sqlalchemy', 'prefect', 'fastroai.ledger.ledger'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = forked.run(command, kind=forked.BARE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_enough_is_no_error(books: Books) -> None:
    books.book(some())
    command = [sys.executable, "-m", "fastroai.cli", "costs", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with forked.Popen(command, text=True, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_old_entries_are_moved_to_files_and_the_report_stays(books: Books, tmp_path: Path) -> None:
    books.book([charged("0.25", id="old"), charged("0.5", id="new", sent_at=datetime.now(UTC))])
    before = books.costs("--by", "model").out
    moved = books.costs("archive", "--older-than", "1d", "--to", str(tmp_path), "--json")
    [file] = moved.json["files"]
    assert (moved.code, moved.json["entries"], Path(file["path"]).exists()) == (0, 1, True)
    assert books.costs("--by", "model").out == before
    again = books.costs("archive", "--older-than", "1d", "--to", str(tmp_path))
    assert again.out.startswith("0 entries sent before")
    assert books.costs("archive", "--older-than", "soon", "--to", str(tmp_path)).code == 2


def test_a_folder_for_old_entries_has_to_be_named(books: Books) -> None:
    books.book([charged("0.25", id="old")])
    ran = books.costs("archive", "--older-than", "1d")
    assert (ran.code, ran.out) == (2, "")
    assert "--to" in ran.err
    assert books.costs("--json").json["total"]["requests"] == 1


def test_archived_entries_are_said_to_be_left_out(books: Books, tmp_path: Path) -> None:
    late = START + timedelta(hours=1)
    old = [charged("0.25", id="a"), charged("0.25", id="b", sent_at=late)]
    books.book([*old, charged("0.5", id="new", sent_at=NOW)])
    what_if, reprice = ["what-if", "--tier", "flex"], ["reprice", "--check"]
    invoice = tmp_path / "invoice.csv"
    invoice.write_text(f"id,model,time,cost\nr1,gpt-5-mini,{START.isoformat()},0.25\n")
    reconcile = ["reconcile", str(invoice)]
    for command in (what_if, reprice, reconcile):
        assert "ARCHIVED" not in books.costs(*command).out
        assert books.costs(*command, "--json").json["archived"] is None
    assert books.costs("archive", "--older-than", "1d", "--to", str(tmp_path)).code == 0
    for command in (what_if, reprice, reconcile):
        said = " ".join(books.costs(*command).out.split())
        assert "ARCHIVED: 2 entries, sent from 2026-03-01" in said
        assert "were moved to files, the last of them on 20" in said
        assert books.costs(*command, "--json").json["archived"] == {
            "entries": 2,
            "first_sent_at": START.isoformat(),
            "last_sent_at": late.isoformat(),
        }
    for command in (what_if, reprice):
        assert books.costs(*command, "--json", "--since", "1d").json["archived"] is None
        assert books.costs(*command, "--json", "--until", "2026-02-01").json["archived"] is None
