"""The published path of `CostCalculator`; it lives in `fastroai.pricing`."""

from ..pricing.calculator import CostCalculator

__all__ = ["CostCalculator"]
