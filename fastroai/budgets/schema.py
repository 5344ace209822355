"""The tables of standing budgets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, SmallInteger, Table, Text

from ..database.migrations import metadata

budgets = Table(
    "fastroai_budgets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("definition", Text, nullable=False),  # the `Budget` as JSON
    Column("changed_at", BigInteger, nullable=False),  # as intents.sent_at
)
"""The limits that are set."""

revisions = Table(
    "fastroai_budget_revisions",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),  # 1, the only one
    Column("revision", BigInteger, nullable=False),  # another one after each change of a limit
)
"""By which whoever knows the limits finds that they were changed."""

accounts = Table(
    "fastroai_budget_accounts",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True, autoincrement=False),  # as intents.sent_at
    Column("spent", Text, nullable=False),  # USD as a decimal, exact, like the next
    Column("held", Text, nullable=False),
    Column("unknown", Text, nullable=False),
)
"""What the entries of a budget's window amount to.

Changed in the transactions that write these entries, and made of them where it is missing.
"""

charges = Table(
    "fastroai_budget_charges",
    metadata,
    Column("entry_id", Text, primary_key=True),
    Column("budget", Text, primary_key=True),
    Column("since", BigInteger, nullable=False),  # of the account
    Column("kind", SmallInteger, nullable=False),  # of `Kind`: held or unknown
    Column("usd", Text, nullable=False),
    Column("holder", Text, nullable=False),  # who sent it
)
"""What the accounts have of entries without a final outcome."""

holders = Table(
    "fastroai_budget_holders",
    metadata,
    Column("token", Text, primary_key=True),
    Column("beat", BigInteger, nullable=False),  # another number after each heartbeat
)
"""Processes that send requests under budgets; what the dead have held becomes unknown."""
