"""The ledger's tables."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, Boolean, Column, SmallInteger, Table, Text

from ...database.migrations import metadata
from ..aggregation import TOKEN_NAMES
from ..entries import DIMENSIONS

RUN_DIMENSIONS = ("run_id", "run_key")
ITEM = "item"
"""No text of a group: nearly each entry would be one of its own."""
GROUP_TEXTS = (
    *(name for name in DIMENSIONS if name not in (*RUN_DIMENSIONS, ITEM)),
    "tags", "flow_tags", "agent", "model_asked", "model_answered", "provider",
)  # fmt: skip
TEXTS_OF_STEPS = ("step_id", "agent", "model_asked", "model_answered", "provider")
"""What entries of one run mostly differ in; the others of a group's texts they have in common."""
COUNTS = ("requests", *TOKEN_NAMES, "cache_priced")
AMOUNTS = ("cost", "upper_bound", "cache_saved")
HALVES = tuple(f"{name}_{half}" for name in AMOUNTS for half in ("high", "low"))
DAY = timedelta(days=1) // timedelta(microseconds=1)
HALF = 1_000_000
"""Sums are made of the two halves of each amount, so that none outgrows the database's integers."""

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
    Column("downgraded_from", Text),
    # which outcome the sums have it with: 1 or 0 as `final`, -1 without one; None: not in them yet
    Column("summed", SmallInteger, info={"written_later": True}),
)
"""One row per request, committed before it is sent. Never changed, but for `summed`."""

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
    Column("cache_saved", BigInteger),  # 1e-12 USD
)
"""At most one final row per entry, and one before it that says why the outcome was unknown.

Never changed.
"""

groups = Table(
    "fastroai_groups",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("digest", Text, nullable=False),
    *(Column(name, Text) for name in GROUP_TEXTS),
    Column("state", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("part", BigInteger),  # the group with the same texts but those of steps; perhaps itself
)
"""All that entries are selected and grouped by, but for their run and their time."""

runs = Table(
    "fastroai_runs",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("digest", Text, nullable=False),
    *(Column(name, Text) for name in RUN_DIMENSIONS),
)

summed = Table(
    "fastroai_summed_entries",
    metadata,
    Column("sent_at", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", BigInteger, primary_key=True, autoincrement=False),  # of the entry's id
    Column("run", BigInteger, nullable=False),
    Column("group_id", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in (*COUNTS, *AMOUNTS)),
    Column("exact", Text),  # as in intents
)
"""What the sums have of each entry. It stays when the entry is archived."""

sums = Table(
    "fastroai_sums",
    metadata,
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # since 1970, UTC
    *(Column(name, BigInteger, nullable=False) for name in (*COUNTS, *HALVES, "entries")),
    Column("exact", Text),  # as in intents: to be added to the amounts
)
"""What the entries of one group and one day add up to."""

run_sums = Table(
    "fastroai_run_sums",
    metadata,
    Column("run", BigInteger, primary_key=True, autoincrement=False),
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),  # without texts of steps
    Column("day", BigInteger, primary_key=True, autoincrement=False),
    *(Column(name, BigInteger, nullable=False) for name in (*COUNTS, *HALVES, "entries")),
    Column("exact", Text),  # as in sums
)
"""The same of one run: a ledger has many runs, and each few of these."""

whole_runs = Table(
    "fastroai_whole_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("run_key", Text),
    Column("pipeline", Text, nullable=False),
    Column("shape", Text, nullable=False),  # a digest of the ids of the pipeline's steps
    Column("ended_at", BigInteger, nullable=False),  # as intents.sent_at
)
"""The runs of which each step ended well. What they cost, their entries say."""

run_ends = Table(
    "fastroai_run_ends",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("ended_at", BigInteger, primary_key=True, autoincrement=False),  # as intents.sent_at
    Column("name", Text),
    Column("pipeline", Text, nullable=False),
    Column("deployment", Text),
    Column("outcome", Text, nullable=False),
)
"""How runs under Prefect ended that asked something; one that goes on later ends again."""

archives = Table(
    "fastroai_archives",
    metadata,
    Column("name", Text, primary_key=True),
    Column("entries", BigInteger, nullable=False),
    Column("first_sent_at", BigInteger, nullable=False),
    Column("last_sent_at", BigInteger, nullable=False),
    Column("archived_at", BigInteger, nullable=False),
)
"""Files that entries were moved to."""
