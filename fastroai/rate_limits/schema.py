"""The tables of rate limits."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text

from ..database.migrations import metadata

pools = Table(
    "fastroai_rate_pools",
    metadata,
    Column("name", Text, primary_key=True),
    # Microseconds since 1970, by the clock that all share; of `PoolState.free_at`, in its order.
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("blocked_until", BigInteger, nullable=False),
)
"""How much of each limit is used."""

holders = Table(
    "fastroai_rate_holders",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("token", Text, primary_key=True),  # of a process
    Column("beat", BigInteger, nullable=False),  # another number after each heartbeat
    Column("asked_at", BigInteger, nullable=False),  # as the times above
    Column("slots", BigInteger, nullable=False),  # requests under way
    Column("waiting", BigInteger, nullable=False),  # requests
    Column("runs", BigInteger, nullable=False),  # whose requests wait
    Column("served", BigInteger, nullable=False),  # thousandths of a request for each run
)
"""Processes with requests under way or waiting; deleted when there are none, or by others when the
process is dead.
"""
