"""The right to execute a run, held in time by a heartbeat."""
