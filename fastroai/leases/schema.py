"""The table of leases."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text

from ..database.migrations import metadata

leases = Table(
    "fastroai_leases",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("token", Text, nullable=False),  # of one holding, never used again
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("pipeline", Text),
    Column("run_key", Text),
    # as intents.sent_at, like the next; by the wall clock of all who share it
    Column("since", BigInteger, nullable=False),
    Column("renewed_at", BigInteger, nullable=False),  # another value after each heartbeat
    Column("duration", BigInteger, nullable=False),  # microseconds
)
"""What somebody is at work on.

Deleted at the end. A flow run's row stays, as another kind that names the outcome, until that was
reported to Prefect's server.
"""
