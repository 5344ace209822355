"""`fastroai estimate`: the table, the JSON, and what must be known to read them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.command import Books, Ran, books

__all__ = ["books"]

JOBS = """
from pydantic import BaseModel

from fastroai import FastroAgent, Pipeline, StepConfig, step
from fastroai.budgets import Budget
from fastroai.testing import OfflineModel, ScriptedModel, fixed_prices
from tests.support.models import counted_agent


class Order(BaseModel):
    times: int


agent, model = counted_agent(max_tokens=10)
offline = FastroAgent(model=OfflineModel(), name="offline")
unlisted = FastroAgent(model=ScriptedModel("x", model_name="unlisted", repeat=True))


def asks(agent):
    @step
    async def ask(context):
        for number in range(context.get_input("times")):
            await context.run(agent, f"question {number}")

    return ask


@step
async def rarely(context):
    if context.get_input("times") > 50:
        await context.run(agent, "question")


def pipeline(name, *steps, **options):
    named = {f"step-{number}": one for number, one in enumerate(steps)}
    return Pipeline(name, named, output_step="step-0", input_type=Order, **options)


plain = pipeline("plain", asks(agent))
two = pipeline("two", asks(agent), rarely, agent.as_step("x"))
bounded = pipeline("bounded", agent.as_step("x"), asks(agent),
    step_configs={"step-1": StepConfig(budget=Budget(usd="0.5", strength="reserved"))})
simulated = pipeline("simulated", asks(offline))
unpriced = pipeline("unpriced", asks(unlisted))
"""

Run = Callable[..., Ran]


@pytest.fixture
def run(books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command on a pipeline of `JOBS`."""
    (tmp_path / "estimated_jobs.py").write_text(JOBS)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(command: str, pipeline: str, *arguments: str) -> Ran:
        return books.run(command, f"estimated_jobs:{pipeline}", *arguments)

    yield run
    sys.modules.pop("estimated_jobs", None)


def test_without_runs_the_cost_is_not_known_and_no_ledger_is_made(run: Run, books: Books) -> None:
    ran = run("estimate", "plain", "times=1")
    assert (ran.code, ran.err) == (0, "")
    assert ran.rows()["run"] == ["0", "-", "-", "-", "unknown"]
    assert "NOT KNOWN: what the run is expected to cost; the ledger has no run" in ran.out
    assert not books.path.exists()
    found = run("estimate", "plain", "times=1", "--json").json
    assert (found["expected"], found["recorded_runs"]) == (None, 0)


def test_the_table_has_a_line_for_each_step_and_one_for_the_run(run: Run) -> None:
    for times in (1, 2, 3, 9):
        assert run("run", "two", f"times={times}").code == 0
    ran = run("estimate", "two", "times=1")
    rows = ran.rows()
    assert ran.headings() == ["step", "runs", "median USD", "90th percentile", "off by", "at most"]
    assert rows["step-0"] == ["4", "0.00050", "0.00180", "100.0 %", "unknown"]
    assert rows["step-1"] == ["0", "-", "-", "-", "unknown"]
    assert rows["step-2"][:4] == ["4", "0.00020", "0.00020", "0.0 %"]
    assert rows["run"][:4] == ["4", "0.00070", "0.00200", "60.0 %"]
    assert "NOT IN THE TOTAL: what 'step-1' will cost." in ran.out
    assert "FEW RUNS" in ran.out
    assert "EARLIER FORECASTS: of the last 3 runs, 0 cost no more" in ran.out
    assert "- 'step-0', 'step-1': its code decides what it sends." in ran.out


def test_with_more_runs_they_are_not_called_few(run: Run) -> None:
    for _ in range(9):
        run("run", "plain", "times=1")
    ran = run("estimate", "plain", "times=1")
    assert "FEW RUNS" not in ran.out
    assert "of the last 8 runs, 8 cost no more" in ran.out


def test_an_upper_bound_is_the_sum_of_those_of_the_steps(run: Run) -> None:
    rows = run("estimate", "bounded", "times=1").rows()
    first, second, whole = (Decimal(rows[name][-1]) for name in ("step-0", "step-1", "run"))
    assert second == Decimal("0.5")
    assert whole == first + second
    found = run("estimate", "bounded", "times=1", "--json").json
    assert Decimal(found["upper_bound_usd"]) == whole
    assert [one["no_upper_bound"] for one in found["steps"]] == [None, None]


def test_an_unknown_price_is_said_and_not_0(run: Run) -> None:
    run("run", "unpriced", "times=2")
    ran = run("estimate", "unpriced", "times=2")
    assert ran.rows()["run"] == ["0", "-", "-", "-", "unknown"]
    assert "none of the 1 recorded runs of this pipeline says it" in ran.out
    assert "Left out: 1 run that had requests whose cost is not known." in ran.out
    found = run("estimate", "unpriced", "times=2", "--json").json
    assert (found["expected"], found["left_out"]["unknown"]) == (None, 1)


def test_what_nobody_pays_is_called_simulated(run: Run) -> None:
    run("run", "simulated", "times=2")
    ran = run("estimate", "simulated", "times=2")
    assert "SIMULATED: an offline model answers, so nothing will be paid" in ran.out
    assert run("estimate", "simulated", "times=2", "--json").json["simulated"] is True
    limited = run("run", "simulated", "times=2", "--max-cost", "0.000000001")
    assert limited.code == 0
    assert "--max-cost has no effect: an offline model answers" in limited.err


def test_another_ledger_may_be_named(run: Run, tmp_path: Path) -> None:
    run("run", "plain", "times=1")
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    assert run("estimate", "plain", "times=1", "--json").json["recorded_runs"] == 1
    found = run("estimate", "plain", "times=1", "--json", "--ledger", elsewhere).json
    assert found["recorded_runs"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("estimate", "plain", "times=many"), "times"),
        (("estimate", "plain", "tmies=1"), "Did you mean 'times'?"),
        (("run", "plain", "times=1", "--max-cost", "much"), "--max-cost='much'"),
        (("run", "plain", "times=1", "--max-cost", "-1"), "--max-cost='-1'"),
        (("run", "plain", "times=many", "--estimate"), "times"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_wrong(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_a_ledger_that_can_not_be_read_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is no database, but long enough to look like one")
    ran = run("estimate", "plain", "times=1")
    assert (ran.code, ran.out) == (1, "")
    assert "ledger.db" in ran.err
