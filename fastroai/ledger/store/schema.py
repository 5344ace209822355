"""The ledger's tables."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, SmallInteger, Table, Text

from ...database.migrations import metadata
from ..entries import DIMENSIONS

intents = Table(
    "fastroai_intents",
    metadata,
    Column("id", Text, primary_key=True),
    *(Column(name, Text) for name in DIMENSIONS),
    Column("attempt", BigInteger, nullable=False),
    Column("dispatch", BigInteger, nullable=False),
    Column("tags", Text),  # a JSON object, keys sorted
    Column("flow_tags", Text),  # a JSON list
    Column("agent", Text),
    Column("model_asked", Text),
    Column("provider_host", Text),
    Column("service_tier", Text),  # as asked for
    Column("sent_at", BigInteger, nullable=False),  # microseconds since 1970, UTC
    Column("request_count", BigInteger, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("replay_of", Text),
    Column("upper_bound", BigInteger),  # 1e-12 USD
    # a JSON object: amounts that are not a whole number of 1e-12 USD, as decimals
    Column("exact", Text),
)
"""One row per request, committed before it is sent. Never changed."""

outcomes = Table(
    "fastroai_outcomes",
    metadata,
    Column("entry_id", Text, primary_key=True),
    Column("final", SmallInteger, primary_key=True),  # 0: nobody knows what became of it, yet
    Column("state", Text, nullable=False),
    Column("settled_at", BigInteger, nullable=False),
    Column("model_answered", Text),
    Column("provider", Text),
    Column("service_tier", Text),
    Column("response_id", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("input_audio_tokens", BigInteger, nullable=False),
    Column("output_audio_tokens", BigInteger, nullable=False),
    Column("cache_audio_read_tokens", BigInteger, nullable=False),
    Column("further_usage", Text),  # a JSON object
    Column("cost", BigInteger),  # 1e-12 USD
    Column("request_fees", BigInteger),  # 1e-12 USD
    Column("upper_bound", BigInteger),  # 1e-12 USD
    Column("exact", Text),  # as in intents
    Column("price_source", Text),
    Column("price_version", Text),
    Column("error", Text),
)
"""At most one final row per entry, and one before it that says why the outcome was unknown.

Never changed.
"""
