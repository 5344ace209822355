"""The database that ledger and leases share."""
