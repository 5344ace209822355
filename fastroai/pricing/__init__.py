"""Prices of model requests: price list, custom rates, exact amounts."""
