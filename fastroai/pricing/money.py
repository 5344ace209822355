"""The money unit of the API, and the one place where an exact amount is rounded."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

MICROCENTS_PER_USD = 1_000_000
"""1 "microcent" is 1e-6 USD here.

The name is historic (a real microcent is 1e-8 USD) and kept for compatibility.
"""

EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)
"""For arithmetic with money: wide enough that no sum or product of prices is rounded, whatever the
caller set.
"""


def usd_to_microcents(usd: Decimal) -> int:
    """Round an amount to whole microcents, half to even. Sum exactly first and call this once, at
    the edge.

    Raises:
        ValueError: `usd` is not a finite number.
    """
    if not usd.is_finite():
        raise ValueError(f"An amount of money must be a finite number, got {usd!r}.")
    return int(EXACT.to_integral_value(EXACT.multiply(usd, MICROCENTS_PER_USD)))


def microcents_to_usd(microcents: int) -> Decimal:
    """The amount in USD, exact."""
    return EXACT.divide(Decimal(microcents), MICROCENTS_PER_USD)


def plain(usd: Decimal) -> Decimal:
    """The same amount without trailing zeros, and without an exponent."""
    usd = EXACT.normalize(usd)
    return usd if int(usd.as_tuple().exponent) <= 0 else EXACT.quantize(usd, Decimal(1))
