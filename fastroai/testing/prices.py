"""Fixed prices for tests."""

from __future__ import annotations

from ..pricing.calculator import CostCalculator


def fixed_prices(
    *models: str,
    input_per_mtok: float = 1.0,
    output_per_mtok: float = 2.0,
    cache_read_per_mtok: float | None = None,
) -> CostCalculator:
    """A calculator with the same rates, in USD per million tokens, for each of the models.

    Args:
        *models: Model names; default `gpt-5-mini`, the name under which this package's models
            answer.
        input_per_mtok: Rate of input tokens: at 1.0, a token is one microcent (1e-6 USD).
        output_per_mtok: Rate of output tokens.
        cache_read_per_mtok: Rate of cached input tokens; default a tenth of the input rate.
    """
    calculator = CostCalculator()
    for model in models or ("gpt-5-mini",):
        calculator.add_pricing_override(
            model, input_per_mtok, output_per_mtok, cache_read_per_mtok=cache_read_per_mtok
        )
    return calculator
