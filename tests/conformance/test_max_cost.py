"""`fastroai run --max-cost` and `--estimate` on every executor, against a provider that counts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.behaviours import Refuse
from tests.support.command import Books, Ran, books
from tests.support.invoice import fixed_price, invoiced_usd
from tests.support.provider_process import ProviderProcess

__all__ = ["books"]

pytestmark = pytest.mark.one_process("a command names no task runner")

USD = Decimal("0.00018")
"""What a request costs."""
BOUND = Decimal("0.002")
"""More than it can cost at most."""

JOBS = """
from fastroai import FastroAgent, Pipeline, PipelineConfig, step
from fastroai.testing import fixed_prices

agent = FastroAgent(model="openai-chat:gpt-5-mini", max_tokens=100, max_retries=0,
                    cost_calculator=fixed_prices())


@step
async def ask(context):
    for number in range(context.get_input("times")):
        await context.run(agent, f"question {number}")


once = agent.as_step("question")
asking = Pipeline("asking", {"ask": ask})
limping = Pipeline("limping", {"ask": ask, "once": once}, output_step="ask",
                   config=PipelineConfig(on_error="continue"))
single = Pipeline("single", {"once": once})
"""

Run = Callable[..., Ran]


@pytest.fixture
def run(
    executor: str,
    books: Books,
    provider: ProviderProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    (tmp_path / "asking_jobs.py").write_text(JOBS)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(pipeline: str, *arguments: str) -> Ran:
        return books.run("run", f"asking_jobs:{pipeline}", "--executor", executor, *arguments)

    yield run
    sys.modules.pop("asking_jobs", None)


def test_a_run_stops_before_the_request_that_may_not_fit(
    run: Run, provider: ProviderProcess
) -> None:
    limit = BOUND + 3 * USD
    ran = run("asking", "times=99", "--max-cost", str(limit))
    assert ran.code == 1
    spent = invoiced_usd(provider.lines, fixed_price)
    # No request was refused that would have fitted at its highest possible cost.
    assert limit - BOUND < spent <= limit
    last = ran.err.splitlines()[-1]
    assert last.startswith("fastroai: Step 'ask' failed: Cost budget exceeded in step 'ask'")
    assert f"run budget '--max-cost' of {limit} USD: {spent.normalize():f} spent" in last
    assert last.endswith(f"To raise it: --max-cost {2 * limit}")
    assert "Traceback" not in ran.err


@pytest.mark.same_under_prefect
def test_a_run_that_fits_ends_well_and_says_before_what_is_expected(
    run: Run, provider: ProviderProcess
) -> None:
    for _ in range(2):
        assert run("asking", "times=3").code == 0
    ran = run("asking", "times=3", "--max-cost", str(BOUND + 3 * USD))
    assert ran.code == 0
    assert (
        f"Expected to cost: {3 * USD} USD, in nine of ten cases at most {3 * USD} USD "
        "(by 2 recorded runs); no upper bound is known." in " ".join(ran.err.split())
    )
    assert "EXPENSIVE" not in ran.err
    assert len(provider.lines) == 9


@pytest.mark.same_under_prefect
def test_one_that_is_expected_to_cost_more_is_told_so_before_it_sends(
    run: Run, provider: ProviderProcess
) -> None:
    for times in (4, 4, 5):
        assert run("asking", f"times={times}").code == 0
    likely = run("asking", "times=1", "--max-cost", str(3 * USD))
    assert "LIKELY TOO EXPENSIVE" in likely.err
    may = run("asking", "times=1", "--max-cost", str(BOUND + 4 * USD), "--estimate")
    assert "EXPENSIVE" not in may.out
    may = run("asking", "times=1", "--max-cost", str(4 * USD), "--estimate")
    assert "MAY BE TOO EXPENSIVE" in may.out
    assert len(provider.lines) == 13  # 3 * USD is less than a request may cost, so none was sent


@pytest.mark.same_under_prefect
def test_nothing_is_sent_where_not_even_the_first_request_may_fit(
    run: Run, provider: ProviderProcess
) -> None:
    for limit in ("0", str(USD)):
        ran = run("asking", "times=1", "--max-cost", limit)
        assert ran.code == 1
        assert "Nothing: no request was sent." in ran.err
    assert provider.lines == []


@pytest.mark.same_under_prefect
def test_a_run_that_goes_on_after_a_failure_names_the_limit_too(
    run: Run, provider: ProviderProcess
) -> None:
    ran = run("limping", "times=99", "--max-cost", str(BOUND + USD))
    assert ran.code == 1
    assert "Step 'ask' failed: Cost budget exceeded" in ran.err
    assert f"To raise it: --max-cost {2 * (BOUND + USD)}" in ran.err
    assert invoiced_usd(provider.lines, fixed_price) <= BOUND + USD


@pytest.mark.same_under_prefect
def test_an_upper_bound_below_the_limit_is_said(run: Run, provider: ProviderProcess) -> None:
    ran = run("single", "--max-cost", "5")
    assert ran.code == 0
    assert "It can't reach --max-cost 5." in ran.err
    assert "Expected to cost: not known, at most 0.00" in ran.err
    assert len(provider.lines) == 1


class TestEstimate:
    @pytest.mark.same_under_prefect
    def test_nothing_is_sent_and_the_expected_cost_is_what_the_invoices_say(
        self, run: Run, books: Books, provider: ProviderProcess
    ) -> None:
        provider.script("question 6", Refuse(500))
        for times in (1, 2, 5):
            assert run("asking", f"times={times}").code == 0
        assert run("asking", "times=99").code == 1  # is no run that says what a run costs
        sent = len(provider.lines)
        ran = run("asking", "times=99", "--estimate")
        assert (ran.code, ran.err) == (0, "")
        assert ran.rows()["run"][:3] == ["3", f"{2 * USD:.5f}", f"{5 * USD:.5f}"]
        assert "NO UPPER BOUND" in ran.out
        found = books.run("estimate", "asking_jobs:asking", "times=99", "--json").json
        assert found["expected"] == {
            "median_usd": "0.00036",
            "p90_usd": "0.0009",
            "runs": 3,
            "forecasts": 2,
            "within_p90": 0,
            "off_by": pytest.approx((1 + 7 / 3) / 2),
        }
        assert (found["upper_bound_usd"], found["recorded_runs"]) == (None, 3)
        [step] = found["steps"]
        assert step["expected"] == found["expected"]
        assert step["no_upper_bound"] == "its code decides what it sends"
        assert len(provider.lines) == sent
