"""The ledger: one entry for each model request that was sent."""
