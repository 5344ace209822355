"""What costs of earlier runs let expect: exact, whatever their order."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.ledger.history import LAST_FORECASTS, Expectation, expectation

# More places than a float has, and amounts far apart.
costs = st.lists(
    st.integers(0, 10**30).map(lambda units: Decimal(units).scaleb(-18)), min_size=1, max_size=40
)


def expected(known: list[Decimal]) -> Expectation:
    found = expectation(known)
    assert found is not None
    return found


@given(costs, st.randoms())
def test_median_and_percentile_do_not_depend_on_the_order(known: list[Decimal], any_: Any) -> None:
    found = expected(known)
    any_.shuffle(known)
    again = expected(known)
    assert (found.median_usd, found.p90_usd, found.runs) == (
        again.median_usd,
        again.p90_usd,
        again.runs,
    )


@given(costs)
def test_the_median_is_exact(known: list[Decimal]) -> None:
    assert Fraction(expected(known).median_usd) == median(map(Fraction, known))


@given(costs)
def test_of_one_more_run_like_the_others_nine_of_ten_lie_within_the_percentile(
    known: list[Decimal],
) -> None:
    p90 = expected(known).p90_usd
    assert p90 in known
    within = sum(cost <= p90 for cost in known)
    assert 10 * within >= 9 * (len(known) + 1) or p90 == max(known)
    # And it is the least one of which that can be said.
    below = sum(cost < p90 for cost in known)
    assert 10 * below < 9 * (len(known) + 1)


@given(costs)
def test_each_of_the_last_runs_is_compared_with_what_those_before_it_let_expect(
    known: list[Decimal],
) -> None:
    found = expected(known)
    tested = range(max(1, len(known) - LAST_FORECASTS), len(known))
    before = [(known[number], expected(known[:number])) for number in tested]
    assert found.forecasts == len(before)
    assert found.within_p90 == sum(cost <= earlier.p90_usd for cost, earlier in before)
    off = [
        abs(Fraction(cost) - Fraction(e.median_usd)) / Fraction(e.median_usd)
        for cost, e in before
        if e.median_usd
    ]
    if off:
        assert found.off_by == pytest.approx(float(median(off)))
    else:
        assert found.off_by is None


def test_without_runs_nothing_is_expected_rather_than_0() -> None:
    assert expectation([]) is None


def test_the_first_run_is_compared_with_nothing() -> None:
    usd = Decimal("0.000000000001")
    assert expected([usd]) == Expectation(median_usd=usd, p90_usd=usd, runs=1)


def test_the_percentile_of_few_runs_is_the_highest_of_them() -> None:
    assert expected([Decimal(n) for n in range(1, 10)]).p90_usd == 9
    assert expected([Decimal(n) for n in range(1, 20)]).p90_usd == 18
    assert expected([Decimal(n) for n in range(1, 31)]).p90_usd == 28
