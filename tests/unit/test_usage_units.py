"""The money unit: exact, and rounded once."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.pricing.money import MICROCENTS_PER_USD, microcents_to_usd, usd_to_microcents

amounts = st.decimals(
    min_value=0, max_value=10**9, places=12, allow_nan=False, allow_infinity=False
)


@pytest.mark.parametrize(
    ("usd", "microcents"),
    [
        ("0.0000005", 0),
        ("0.0000015", 2),
        ("0.0000025", 2),
        ("0.00000250000000000000000000000000000001", 3),
        ("-0.0000015", -2),
        ("0.0075", 7500),
    ],
)
def test_halves_go_to_the_even_neighbour(usd: str, microcents: int) -> None:
    assert usd_to_microcents(Decimal(usd)) == microcents


@given(amounts)
def test_rounding_moves_an_amount_by_half_a_microcent_at_most(usd: Decimal) -> None:
    assert abs(microcents_to_usd(usd_to_microcents(usd)) - usd) * MICROCENTS_PER_USD <= Decimal(
        "0.5"
    )


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_whole_microcents_survive_the_way_to_usd_and_back(microcents: int) -> None:
    assert usd_to_microcents(microcents_to_usd(microcents)) == microcents


def test_the_callers_decimal_context_does_not_matter() -> None:
    with localcontext() as context:
        context.prec = 2
        assert usd_to_microcents(Decimal("1234.567891")) == 1_234_567_891
        assert microcents_to_usd(1_234_567_891) == Decimal("1234.567891")


@pytest.mark.parametrize("usd", ["NaN", "Infinity"])
def test_what_is_no_amount_is_refused(usd: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        usd_to_microcents(Decimal(usd))
