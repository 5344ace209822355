"""`fastroai run`: what it accepts, what it shows, how it fails."""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from fastroai.cli import main
from fastroai.cli.rendering.console import console
from fastroai.cli.rendering.run_costs import print_costs
from fastroai.cli.rendering.values import render
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry, total_usd
from fastroai.pricing.token_counts import TokenCounts
from tests.support import forked
from tests.support.cost_table import read_cost_table

JOBS = """
from pydantic import BaseModel

from fastroai import FastroAgent, Pipeline, PipelineConfig, step
from fastroai.testing import OfflineModel, ScriptedModel, fixed_prices


class Order(BaseModel):
    title: str = "none"
    numbers: list[int] = []
    urgent: bool = False


@step
def shown(context):
    return {name: context.get_input(name) for name in ("title", "numbers", "urgent")}


plain = Pipeline("plain", {"shown": shown}, input_type=Order)
free = Pipeline("free", {"shown": shown})

offline = FastroAgent(model=OfflineModel(), name="offline")


@step
async def asks(context):
    return (await context.run(offline, "Sum it up.\\n\\nThe mill turns. The miller sleeps.")).output


@step
async def asks_and_fails(context):
    await context.run(offline, "Sum it up.\\n\\nThe mill turns. The miller sleeps.")
    raise RuntimeError("the mill stands still")


simulated = Pipeline("simulated", {"asks": asks, "shown": shown}, {"shown": ["asks"]})
failing = Pipeline("failing", {"asks_and_fails": asks_and_fails})
limping = Pipeline(
    "limping",
    {"asks_and_fails": asks_and_fails, "after": shown, "shown": shown},
    {"after": ["asks_and_fails"]},
    output_step="shown",
    config=PipelineConfig(on_error="continue"),
)
model = ScriptedModel("a", repeat=True)
scripted = FastroAgent(model=model, cost_calculator=fixed_prices(), name="scripted")
steps = {"one": scripted.as_step("first prompt"), "two": scripted.as_step("another prompt")}
paid = Pipeline("paid", steps,
                {"two": ["one"]})
not_one = "a text"
"""


def cost_table(booked: list[LedgerEntry], steps: Sequence[str] = ()) -> str:
    """What a run shows of its costs where it is no terminal."""
    written = io.StringIO()
    print_costs(console(written), booked, steps)
    return written.getvalue()


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[object]:
    """Run the command in this process, in a folder with a module `jobs`."""
    (tmp_path / "jobs.py").write_text(JOBS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)

    def run(*arguments: str) -> Ran:
        try:
            code = main(["run", *arguments])
        except SystemExit as exit_:
            code = int(str(exit_.code))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    for name in [name for name in sys.modules if name.startswith(("jobs", "broken", "flows"))]:
        del sys.modules[name]
    sys.modules.update({name: before[name] for name in before if name.startswith("flows")})


def test_progress_goes_to_stderr_and_the_result_to_stdout(run):
    ran = run("jobs:plain", "title=Report")
    assert ran.code == 0
    assert re.search(r"start +shown\n +done +shown \(\d+\.\d s\)", ran.err)
    assert "title: Report" in ran.out
    assert "start" not in ran.out


def test_values_are_json_where_the_field_takes_it_and_text_otherwise(run):
    ran = run("jobs:plain", "title=2024", "numbers=[1, 2]", "urgent=true")
    assert ran.code == 0
    assert "title: 2024" in ran.out
    assert re.search(r"numbers:\n +- 1\n +- 2", ran.out)
    assert "urgent: yes" in ran.out


def test_a_value_may_contain_an_equals_sign_and_be_empty(run):
    assert "title: a=b" in run("jobs:plain", "title=a=b").out
    assert "title: (none)" in run("jobs:plain", "title=").out


def test_inputs_may_follow_options(run):
    ran = run("jobs:plain", "--executor", "memory", "title=late", "urgent=true")
    assert ran.code == 0
    assert "title: late" in ran.out


@pytest.mark.parametrize("has_init", [True, False])
def test_a_folder_here_wins_over_an_installed_package_of_the_same_name(
    run, tmp_path: Path, has_init: bool
):
    import flows.document_digest

    assert flows.__file__ is not None
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "mine.py").write_text(JOBS)
    if has_init:
        (folder / "__init__.py").touch()
    assert "title: here" in run("flows.mine:plain", "title=here").out
    assert sys.modules["flows.mine"].__file__ == str(folder / "mine.py")


def test_an_installed_package_is_found_where_a_folder_here_only_has_its_name(run, tmp_path: Path):
    (tmp_path / "flows" / "data").mkdir(parents=True)
    assert run("flows.document_digest:absent").err.endswith("Its pipelines: pipeline.\n")


@pytest.mark.parametrize("name", ["jobs.py", "./jobs.py", "elsewhere/jobs_too.py"])
def test_a_pipeline_may_be_named_by_its_file(run, tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(JOBS)
    assert "title: T" in run(f"{name}:plain", "title=T").out
    assert "title: T" in run(f"{tmp_path / name}:plain", "title=T").out


def test_a_pipeline_without_an_input_model_takes_any_input(run):
    ran = run("jobs:free", "title={}", "other=1")
    assert ran.code == 0
    assert "title: (none)" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "MODULE:PIPELINE"),
        (["jobs"], "'jobs'"),
        (["nowhere:pipeline"], "'nowhere'"),
        (["nowhere.py:pipeline"], "'nowhere.py'"),
        (["jobs:absent"], r"'absent'.*plain"),
        (["jobs:not_one"], "'not_one'.*'a text'"),
        (["jobs:plain", "titel=x"], "'titel'.*'title'"),
        (["jobs:plain", "title"], "'title'"),
        (["jobs:plain", "--fast"], "--fast"),
        (["jobs:plain", "--executor", "cloud"], "cloud"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(run, arguments: list[str], said: str):
    ran = run(*arguments)
    assert ran.code == 2
    assert re.search(said, ran.err)
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_an_input_that_does_not_fit_is_one_message_and_starts_nothing(run):
    ran = run("jobs:plain", 'numbers=[1,"x"]')
    assert ran.code == 2
    assert "numbers.1" in ran.err
    assert "start" not in ran.err
    assert "Traceback" not in ran.err


def test_a_module_that_fails_when_it_is_imported_is_reported_by_its_cause(run, tmp_path: Path):
    (tmp_path / "broken.py").write_text("import a_package_nobody_has\n")
    ran = run("broken:pipeline")
    assert ran.code == 1
    assert "a_package_nobody_has" in ran.err
    assert "Traceback" not in ran.err


def test_a_bad_setting_is_one_message(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_EXECUTOR", "cloud")
    ran = run("jobs:plain")
    assert ran.code == 1
    assert ran.err.count("FASTROAI_EXECUTOR") == 1


def test_a_failed_step_is_one_message_with_what_was_spent_until_then(run):
    ran = run("jobs:failing")
    assert ran.code == 1
    assert ran.out == ""
    assert "failed  asks_and_fails" in ran.err
    assert ran.err.endswith("fastroai: Step 'asks_and_fails' failed: the mill stands still\n")
    assert "Traceback" not in ran.err
    table = read_cost_table(ran.err)
    assert table.usd > 0
    assert table.adds_up()


def test_an_input_that_names_what_is_not_there_is_wrong_usage(run, tmp_path: Path):
    pipeline = f"{Path(__file__).parents[2] / 'flows' / 'document_digest.py'}:pipeline"
    ran = run(pipeline, f"documents={tmp_path / 'missing.txt'}")
    assert ran.code == 2
    assert "missing.txt" in ran.err
    assert "Nothing: no request was sent." in ran.err


def test_debug_shows_the_traceback(run):
    assert "Traceback" in run("jobs:failing", "--debug").err


def test_a_run_that_goes_on_after_a_failure_shows_its_result_and_exits_with_1(run):
    ran = run("jobs:limping", "title=kept")
    assert ran.code == 1
    assert "title: kept" in ran.out
    assert "Not run, because a step they depend on failed: after." in ran.out
    assert "the mill stands still" in ran.err


def test_a_simulated_run_says_so_and_at_whose_prices(run):
    out = run("jobs:simulated").out
    assert "SIMULATED by an offline model, priced as openai:gpt-5-mini; nothing was paid." in out


def test_a_paid_run_does_not_say_it_was_simulated(run):
    out = run("jobs:paid").out
    assert "SIMULATED" not in out
    table = read_cost_table(out)
    assert list(table.lines) == ["one gpt-5-mini", "two gpt-5-mini"]
    assert table.adds_up()


def test_in_memory_mode_the_command_never_imports_prefect(tmp_path: Path):
    (tmp_path / "jobs.py").write_text(JOBS)
    code = (
        "import sys; from fastroai.cli import main; assert main(sys.argv[1:]) == 0; assert "
        "'prefect' not in sys.modules"
    )
    arguments = ["run", "jobs:simulated", "--executor", "memory"]
    command = [sys.executable, "-c", code, *arguments]
    done = forked.run(command, kind=forked.BARE, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_in_memory_points_to_no_server_even_where_prefect_is_loaded(run):
    import prefect  # noqa: F401

    ran = run("jobs:simulated", "--executor", "memory")
    assert "flow-run" not in ran.out
    assert "prefect" not in run("jobs:failing", "--executor", "memory").err


@pytest.mark.parametrize("text", ["1,2", "[1,2"])
def test_a_text_for_a_list_says_how_to_write_one_or_what_is_wrong(run, text: str):
    ran = run("jobs:plain", f"numbers={text}", "--executor", "memory")
    assert ran.code == 2
    if text == "1,2":
        assert """'numbers=["1", "2"]'""" in ran.err
    else:
        assert "numbers: Input should be a valid list" in ran.err
    assert ran.out == ""


def test_a_bad_variable_is_named_in_memory_too(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTROAI_RESULT_STORAGE", "ftp:/x/y")
    ran = run("jobs:plain", "--executor", "memory")
    assert ran.code == 1
    assert "FASTROAI_RESULT_STORAGE='ftp:/x/y'" in ran.err
    assert ran.out == ""


amounts = st.none() | st.decimals(min_value=0, max_value=1000, places=12)
entries = st.builds(
    LedgerEntry,
    state=st.sampled_from(EntryState),
    attribution=st.builds(Attribution, step_id=st.sampled_from(["read", "write", None])),
    model_answered=st.sampled_from(["small", "large"]),
    tokens=st.builds(
        TokenCounts, input_tokens=st.integers(0, 10**7), output_tokens=st.integers(0, 10**7)
    ),
    cost_usd=amounts,
    request_count=st.integers(1, 3),
)


@given(st.lists(entries, max_size=30))
def test_the_printed_lines_add_up_to_the_printed_total_and_the_total_is_the_ledgers(
    booked: list[LedgerEntry],
):
    table = read_cost_table("\n" + cost_table(booked, ["read", "idle"]))
    assert table.adds_up()
    assert table.usd == total_usd(booked)
    assert set(table.lines) >= {"idle -"}


def test_replayed_requests_are_counted_apart_and_cost_nothing():
    paid = LedgerEntry(
        state=EntryState.CHARGED, cost_usd=Decimal("0.1"), tokens=TokenCounts(input_tokens=5)
    )
    again = paid.replayed(Attribution(step_id="s"))
    [numbers] = read_cost_table("\n" + cost_table([again])).lines.values()
    assert numbers == (0, 1, 0, 0, 0)


def test_an_unknown_cost_is_said_and_not_shown_as_part_of_the_total():
    table = cost_table(
        [LedgerEntry(state=EntryState.UNSETTLED, attribution=Attribution(step_id="s"))]
    )
    assert "Not in the total: 1 request(s) whose cost is not known" in table


def test_a_cost_that_is_not_known_is_never_shown_as_an_amount():
    at = Attribution(step_id="s")
    unpriced = LedgerEntry(
        state=EntryState.UNPRICED, attribution=at, model_answered="mine", request_count=2
    )
    paid = LedgerEntry(
        state=EntryState.CHARGED, attribution=at, model_answered="gpt", cost_usd=Decimal("0.125")
    )
    lines = cost_table([unpriced, paid, replace(paid, model_answered="mine")]).splitlines()
    assert next(line for line in lines if " mine " in line).endswith(" 0.125 + 2 unknown")
    assert next(line for line in lines if " gpt " in line).rstrip().endswith(" 0.125")
    assert next(line for line in lines if line.startswith("total")).endswith(" 0.250 + 2 unknown")
    assert "Priced: 50.0 % of the requests." in lines

    lines = cost_table([unpriced]).splitlines()
    assert [line.split()[-1] for line in lines if " mine " in line or line.startswith("total")] == [
        "unknown"
    ] * 2
    assert not any(line.startswith("Priced") for line in cost_table([paid]).splitlines())


def test_requests_that_reached_no_provider_are_not_said_to_be_refused_by_one():
    error = "Not sent: ModelConnectionError: Connection error."
    unsent = LedgerEntry(state=EntryState.REFUSED, provider_host="api.example.com", error=error)
    table = cost_table([unsent])
    assert "1 request(s) were not sent: ModelConnectionError" in table
    assert "Not reached: api.example.com. Check the network" in table
    assert "refused by the provider" not in table


def test_refused_requests_are_said():
    table = cost_table(
        [LedgerEntry(state=EntryState.REFUSED, attribution=Attribution(step_id="s"))]
    )
    assert "1 request(s) were refused" in table


class Inner(BaseModel):
    name: str
    notes: list[str] = []


def test_a_result_is_rendered_by_field():
    @dataclass
    class Outer:
        title: str
        inner: Inner
        many: list[Inner]
        flags: dict[str, bool]

    outer = Outer("T", Inner(name="a"), [Inner(name="b", notes=["x", "y"])], {"on": True})
    assert render(outer) == textwrap.dedent("""\
        title: T
        inner:
          name: a
          notes: (none)
        many:
          - name: b
            notes:
              - x
              - y
        flags:
          on: yes""")


def test_plain_results_are_rendered_too():
    assert render("one\ntwo") == "one\n  two"
    assert render(None) == "(none)"
    assert render([1, [2, 3]]) == "- 1\n- - 2\n  - 3"
    assert render([]) == ""


def test_runs_in_memory_can_not_be_resumed(capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "resume", "0192"]) == 2
    written = capsys.readouterr()
    assert (written.out, written.err.count("\n")) == ("", 1)
    assert "FASTROAI_EXECUTOR=memory" in written.err


@pytest.mark.parametrize("command", [[], ["results"], ["rum"], ["runs", "resum"], ["--colour"]])
def test_a_command_that_is_missing_or_unknown_is_one_message(
    command: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(command) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("fastroai: ")
    assert len(written.err.splitlines()) == 1
    assert "".join(command[-1:]) in written.err


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["costs"], ["costs", "reconcile"], ["costs", "what-if"], ["runs"], ["results"]],
)
def test_help_is_plain_text_where_it_is_no_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main([*command, "--help"]) == 0
    written = capsys.readouterr()
    assert written.err == ""
    assert written.out.startswith(" ".join(["Usage: fastroai", *command]))
    assert "\x1b" not in written.out


def test_completion_is_installed_for_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", "--shell", "bash"]) == 0
    [script] = [path for path in tmp_path.rglob("*fastroai*") if path.is_file()]
    assert "what-if" in script.read_text()
