"""What a model request costs: price list, own rates, exact amounts."""
