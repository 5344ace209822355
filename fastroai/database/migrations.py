"""Versions of the tables, and the migrations between them."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import insert as insert_into

from ..errors import LedgerUnavailableError

metadata = MetaData()

versions = Table(
    "fastroai_schema",
    metadata,
    Column("version", Integer, primary_key=True),
)

_COUNTS_4 = """requests BIGINT NOT NULL, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT
            NULL, cache_read_tokens BIGINT NOT NULL, cache_write_tokens BIGINT NOT NULL,
            input_audio_tokens BIGINT NOT NULL, output_audio_tokens BIGINT NOT NULL,
            cache_audio_read_tokens BIGINT NOT NULL"""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE fastroai_intents (
            id TEXT NOT NULL PRIMARY KEY, run_id TEXT, run_key TEXT, pipeline TEXT, step_id TEXT,
            attempt BIGINT NOT NULL, dispatch BIGINT NOT NULL, tags TEXT, agent TEXT, model_asked
            TEXT, provider_host TEXT, service_tier TEXT, sent_at BIGINT NOT NULL, request_count
            BIGINT NOT NULL, simulated BOOLEAN NOT NULL, replay_of TEXT, upper_bound BIGINT,
            exact TEXT)""",
        """CREATE TABLE fastroai_outcomes (
            entry_id TEXT NOT NULL, final SMALLINT NOT NULL, state TEXT NOT NULL, settled_at
            BIGINT NOT NULL, model_answered TEXT, provider TEXT, service_tier TEXT, response_id
            TEXT, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens
            BIGINT NOT NULL, cache_write_tokens BIGINT NOT NULL, input_audio_tokens BIGINT NOT NULL,
            output_audio_tokens BIGINT NOT NULL, cache_audio_read_tokens BIGINT NOT NULL,
            further_usage TEXT, cost BIGINT, request_fees BIGINT, upper_bound BIGINT, exact TEXT,
            price_source TEXT, price_version TEXT, error TEXT, PRIMARY KEY (entry_id, final))""",
    ),
    2: (
        "ALTER TABLE fastroai_intents ADD COLUMN deployment TEXT",
        "ALTER TABLE fastroai_intents ADD COLUMN flow_tags TEXT",
        "CREATE INDEX fastroai_intents_sent_at ON fastroai_intents (sent_at)",
        "CREATE INDEX fastroai_intents_run_key ON fastroai_intents (run_key) WHERE run_key IS NOT "
        "NULL",
    ),
    3: (
        """CREATE TABLE fastroai_leases (
            kind TEXT NOT NULL, name TEXT NOT NULL, token TEXT NOT NULL, host TEXT NOT NULL, pid
            BIGINT NOT NULL, pipeline TEXT, run_key TEXT, since BIGINT NOT NULL, renewed_at
            BIGINT NOT NULL, duration BIGINT NOT NULL,
            PRIMARY KEY (kind, name))""",
    ),
    4: (
        "ALTER TABLE fastroai_intents ADD COLUMN created_by TEXT",
        "ALTER TABLE fastroai_intents ADD COLUMN summed SMALLINT",
        "CREATE INDEX fastroai_intents_not_summed ON fastroai_intents (sent_at) WHERE summed IS "
        "NULL",
        "CREATE INDEX fastroai_intents_open ON fastroai_intents (summed) WHERE summed < 1",
        """CREATE TABLE fastroai_groups (
            id BIGINT NOT NULL PRIMARY KEY, digest TEXT NOT NULL UNIQUE, pipeline TEXT, step_id
            TEXT, deployment TEXT, created_by TEXT, tags TEXT, flow_tags TEXT, agent TEXT,
            model_asked TEXT, model_answered TEXT, provider TEXT, state TEXT NOT NULL, simulated
            BOOLEAN NOT NULL)""",
        """CREATE TABLE fastroai_runs (
            id BIGINT NOT NULL PRIMARY KEY, digest TEXT NOT NULL UNIQUE, run_id TEXT, run_key
            TEXT)""",
        "CREATE INDEX fastroai_runs_run_id ON fastroai_runs (run_id)",
        "CREATE INDEX fastroai_runs_run_key ON fastroai_runs (run_key)",
        f"""CREATE TABLE fastroai_summed (
            sent_at BIGINT NOT NULL, digest BIGINT NOT NULL, run BIGINT NOT NULL, group_id BIGINT
            NOT NULL, {_COUNTS_4}, cost BIGINT NOT NULL, upper_bound BIGINT NOT NULL, exact TEXT,
            PRIMARY KEY (sent_at, digest))""",
        "CREATE INDEX fastroai_summed_run ON fastroai_summed (run)",
        f"""CREATE TABLE fastroai_sums (
            group_id BIGINT NOT NULL, day BIGINT NOT NULL, {_COUNTS_4}, cost_high BIGINT NOT NULL,
            cost_low BIGINT NOT NULL, upper_bound_high BIGINT NOT NULL, upper_bound_low BIGINT NOT
            NULL, entries BIGINT NOT NULL, exact TEXT, PRIMARY KEY (group_id, day))""",
        """CREATE TABLE fastroai_archives (
            name TEXT NOT NULL PRIMARY KEY, entries BIGINT NOT NULL, first_sent_at BIGINT NOT NULL,
            last_sent_at BIGINT NOT NULL, archived_at BIGINT NOT NULL)""",
    ),
    5: (
        # Under another name: a process of version 4 that still runs can go on booking, but what it
        # changed here, the sums of runs would not know.
        "ALTER TABLE fastroai_summed RENAME TO fastroai_summed_entries",
        "ALTER TABLE fastroai_groups ADD COLUMN part BIGINT",
        "CREATE INDEX fastroai_groups_without_part ON fastroai_groups (id) WHERE part IS NULL",
        f"""CREATE TABLE fastroai_run_sums (
            run BIGINT NOT NULL, group_id BIGINT NOT NULL, day BIGINT NOT NULL, {_COUNTS_4},
            cost_high BIGINT NOT NULL, cost_low BIGINT NOT NULL, upper_bound_high BIGINT NOT NULL,
            upper_bound_low BIGINT NOT NULL, entries BIGINT NOT NULL, exact TEXT,
            PRIMARY KEY (run, group_id, day))""",
        "ALTER TABLE fastroai_intents ADD COLUMN downgraded_from TEXT",
        """CREATE TABLE fastroai_budgets (
            name TEXT NOT NULL PRIMARY KEY, definition TEXT NOT NULL, changed_at BIGINT NOT
            NULL)""",
        """CREATE TABLE fastroai_budget_revisions (
            id SMALLINT NOT NULL PRIMARY KEY, revision BIGINT NOT NULL)""",
        "INSERT INTO fastroai_budget_revisions (id, revision) VALUES (1, 0)",
        """CREATE TABLE fastroai_budget_accounts (
            budget TEXT NOT NULL, since BIGINT NOT NULL, spent TEXT NOT NULL, held TEXT NOT NULL,
            unknown TEXT NOT NULL, PRIMARY KEY (budget, since))""",
        """CREATE TABLE fastroai_budget_charges (
            entry_id TEXT NOT NULL, budget TEXT NOT NULL, since BIGINT NOT NULL, kind SMALLINT NOT
            NULL, usd TEXT NOT NULL, holder TEXT NOT NULL, PRIMARY KEY (entry_id, budget))""",
        """CREATE TABLE fastroai_budget_holders (
            token TEXT NOT NULL PRIMARY KEY, beat BIGINT NOT NULL)""",
    ),
    6: (
        """CREATE TABLE fastroai_whole_runs (
            run_id TEXT NOT NULL PRIMARY KEY, run_key TEXT, pipeline TEXT NOT NULL, shape TEXT NOT
            NULL, ended_at BIGINT NOT NULL)""",
        "CREATE INDEX fastroai_whole_runs_ended ON fastroai_whole_runs (pipeline, ended_at)",
    ),
    7: ("ALTER TABLE fastroai_intents ADD COLUMN item TEXT",),
    8: (
        """CREATE TABLE fastroai_rate_pools (
            name TEXT NOT NULL PRIMARY KEY, requests BIGINT NOT NULL, tokens BIGINT NOT NULL,
            input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, blocked_until BIGINT NOT
            NULL)""",
        """CREATE TABLE fastroai_rate_holders (
            pool TEXT NOT NULL, token TEXT NOT NULL, beat BIGINT NOT NULL, asked_at BIGINT NOT NULL,
            slots BIGINT NOT NULL, waiting BIGINT NOT NULL, runs BIGINT NOT NULL, served BIGINT NOT
            NULL, PRIMARY KEY (pool, token))""",
    ),
    9: (
        """CREATE TABLE fastroai_run_ends (
            run_id TEXT NOT NULL, ended_at BIGINT NOT NULL, name TEXT, pipeline TEXT NOT NULL,
            deployment TEXT, outcome TEXT NOT NULL, PRIMARY KEY (run_id, ended_at))""",
        "CREATE INDEX fastroai_run_ends_at ON fastroai_run_ends (ended_at)",
        "CREATE INDEX fastroai_run_ends_of ON fastroai_run_ends (pipeline, ended_at)",
    ),
    10: (
        "ALTER TABLE fastroai_outcomes ADD COLUMN cache_saved BIGINT",
        *(
            f"ALTER TABLE fastroai_{table} ADD COLUMN {name} BIGINT NOT NULL DEFAULT 0"
            for table, names in (
                ("summed_entries", ("cache_priced", "cache_saved")),
                ("sums", ("cache_priced", "cache_saved_high", "cache_saved_low")),
                ("run_sums", ("cache_priced", "cache_saved_high", "cache_saved_low")),
            )
            for name in names
        ),
    ),
}
"""What makes each version out of the one before; 1 is made out of nothing. For SQLite and
PostgreSQL alike.

What was published is never edited. A new version only adds, and what it adds may be left out by a
writer, so that processes of the version before can go on writing.
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
            f"The ledger's tables have version {version}, written by a newer fastroai; this one "
            f"knows up to {CURRENT}. "
            "Upgrade fastroai here, or use another FASTROAI_LEDGER_URL."
        )
    return version


def migrate(connection: Connection) -> None:
    """Bring the tables to the current version, within the caller's transaction; others wait
    meanwhile.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    versions.create(connection, checkfirst=True)
    for version in range(version_of(connection) + 1, CURRENT + 1):
        for statement in MIGRATIONS[version]:
            connection.execute(text(statement))
        connection.execute(insert_into(versions).values(version=version))
