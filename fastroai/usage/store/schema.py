"""The ledger's tables, and how older ones become these."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import insert as insert_into

from ...errors import LedgerUnavailableError

metadata = MetaData()

versions = Table(
    "fastroai_schema",
    metadata,
    Column("version", Integer, primary_key=True),
)

intents = Table(
    "fastroai_intents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run_id", Text),
    Column("run_key", Text),
    Column("pipeline", Text),
    Column("step_id", Text),
    Column("attempt", BigInteger, nullable=False),
    Column("dispatch", BigInteger, nullable=False),
    Column("tags", Text),  # a JSON object, keys sorted
    Column("deployment", Text),
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
    Column("exact", Text),  # a JSON object: amounts that are not a whole number of 1e-12 USD, as decimals
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
"""At most one final row per entry, and one before it that says why the outcome was unknown. Never changed."""

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
    Column("since", BigInteger, nullable=False),  # as intents.sent_at, like the next; by the clock of all who share it
    Column("renewed_at", BigInteger, nullable=False),
    Column("duration", BigInteger, nullable=False),  # microseconds
)
"""What somebody is at work on; whose last renewal is further away than the duration is dead. Deleted at the end."""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE fastroai_intents (
            id TEXT NOT NULL PRIMARY KEY, run_id TEXT, run_key TEXT, pipeline TEXT, step_id TEXT,
            attempt BIGINT NOT NULL, dispatch BIGINT NOT NULL, tags TEXT, agent TEXT, model_asked TEXT,
            provider_host TEXT, service_tier TEXT, sent_at BIGINT NOT NULL, request_count BIGINT NOT NULL,
            simulated BOOLEAN NOT NULL, replay_of TEXT, upper_bound BIGINT, exact TEXT)""",
        """CREATE TABLE fastroai_outcomes (
            entry_id TEXT NOT NULL, final SMALLINT NOT NULL, state TEXT NOT NULL, settled_at BIGINT NOT NULL,
            model_answered TEXT, provider TEXT, service_tier TEXT, response_id TEXT,
            input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL,
            cache_write_tokens BIGINT NOT NULL, input_audio_tokens BIGINT NOT NULL,
            output_audio_tokens BIGINT NOT NULL, cache_audio_read_tokens BIGINT NOT NULL, further_usage TEXT,
            cost BIGINT, request_fees BIGINT, upper_bound BIGINT, exact TEXT, price_source TEXT, price_version TEXT,
            error TEXT, PRIMARY KEY (entry_id, final))""",
    ),
    2: (
        "ALTER TABLE fastroai_intents ADD COLUMN deployment TEXT",
        "ALTER TABLE fastroai_intents ADD COLUMN flow_tags TEXT",
        "CREATE INDEX fastroai_intents_sent_at ON fastroai_intents (sent_at)",
        "CREATE INDEX fastroai_intents_run_key ON fastroai_intents (run_key) WHERE run_key IS NOT NULL",
    ),
    3: (
        """CREATE TABLE fastroai_leases (
            kind TEXT NOT NULL, name TEXT NOT NULL, token TEXT NOT NULL, host TEXT NOT NULL, pid BIGINT NOT NULL,
            pipeline TEXT, run_key TEXT, since BIGINT NOT NULL, renewed_at BIGINT NOT NULL, duration BIGINT NOT NULL,
            PRIMARY KEY (kind, name))""",
    ),
}
"""What makes each version out of the one before; 1 is made out of nothing. For SQLite and PostgreSQL alike.

What was published is never edited. A new version only adds, and what it adds may be left out by a writer, so that
processes of the version before can go on writing.
"""

CURRENT = max(MIGRATIONS)
_LOCK = 0x666173_74726F  # "fastro"; of all advisory locks on a server, ours


def version_of(connection: Connection) -> int:
    """The version of the tables that are there; 0 without any.

    Raises:
        LedgerUnavailableError: They are newer than this code.
    """
    if not inspect(connection).has_table(versions.name):
        return 0
    version = connection.scalar(select(func.max(versions.c.version))) or 0
    if version > CURRENT:
        raise LedgerUnavailableError(
            f"The ledger's tables have version {version}, written by a newer fastroai; this one knows up to {CURRENT}. "
            "Upgrade fastroai here, or use another FASTROAI_LEDGER_URL."
        )
    return version


def migrate(connection: Connection) -> None:
    """Bring the tables to the current version, within the caller's transaction; others wait meanwhile."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    versions.create(connection, checkfirst=True)
    for version in range(version_of(connection) + 1, CURRENT + 1):
        for statement in MIGRATIONS[version]:
            connection.execute(text(statement))
        connection.execute(insert_into(versions).values(version=version))
