"""Ledger entries of every kind, for tests and as hypothesis strategies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from fastroai.database.engine import Database
from fastroai.database.statements import Insert
from fastroai.ledger.aggregation import deployment_key
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.filters import LedgerFilter
from fastroai.ledger.store.mapping import intent_row, outcome_row
from fastroai.ledger.store.schema import intents, outcomes
from fastroai.pricing.token_counts import TokenCounts

START = datetime(2026, 3, 1, 12, tzinfo=UTC)

_names = st.none() | st.sampled_from(["a", "b", "a/b"])
_texts = st.none() | st.text(max_size=8)
_whole_units = st.integers(0, 10**18).map(lambda units: Decimal(units).scaleb(-12))
_any_amount = st.decimals(0, 10**9, allow_nan=False, places=20)
_amounts = st.none() | _whole_units | _any_amount
_losses = st.integers(-(10**9), 0).map(lambda units: Decimal(units).scaleb(-12))
_counts = st.integers(0, 10**12)
_times = st.integers(0, 5 * 86_400 * 10**6).map(lambda us: START + timedelta(microseconds=us))
_tags = st.dictionaries(
    st.sampled_from(["team", "customer", 'a"b', "x,"]) | st.text(max_size=4), st.text(max_size=5)
)

attributions = st.builds(
    Attribution,
    run_id=_names,
    run_key=_names,
    pipeline=_names,
    step_id=_names,
    attempt=st.integers(1, 5),
    dispatch=st.integers(0, 5),
    tags=_tags,
    deployment=_names,
    flow_tags=st.lists(st.sampled_from(["nightly", "team", "ü"]), max_size=2).map(tuple),
)


@st.composite
def entries(draw: st.DrawFn) -> LedgerEntry:
    """Any entry: intended only, or settled in any state."""
    entry = draw(
        st.builds(
            LedgerEntry,
            attribution=attributions,
            agent=_names,
            model_asked=st.sampled_from([None, "openai:m1", "openai:m2"]),
            provider_host=_texts,
            service_tier=st.sampled_from([None, "flex"]),
            sent_at=_times,
            upper_bound_usd=_amounts,
            replay_of=_names,
            request_count=st.integers(1, 3),
            simulated=st.booleans(),
        )
    )
    state = draw(st.none() | st.sampled_from(EntryState))
    return entry if state is None else entry.settled(state, **draw(_outcomes))


_outcomes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "model_answered": st.sampled_from([None, "m1", "m2-2026-01-01"]),
        "provider": _names,
        "service_tier": st.sampled_from([None, "priority"]),
        "response_id": _texts,
        "tokens": st.builds(
            TokenCounts, input_tokens=_counts, output_tokens=_counts, cache_read_tokens=_counts
        ),
        "further_usage": st.dictionaries(
            st.sampled_from(["web_searches", "audio_seconds"]), st.floats(0, 1e6)
        ),
        "cost_usd": _amounts,
        "request_fees_usd": _amounts,
        "cache_saved_usd": _amounts | _losses,
        "price_source": _texts,
        "price_version": _texts,
        "error": _texts,
    }
)


selections = st.builds(
    LedgerFilter,
    run_id=st.none() | st.just("a"),
    run_key=st.none() | st.just("b"),
    pipeline=st.none() | st.just("a"),
    deployment=st.sampled_from([None, None, "a/b", "a"]),
    step_id=st.none() | st.just("b"),
    model=st.sampled_from([None, None, "m1", "openai:m2", "m2-2026-01-01"]),
    tag=st.sampled_from([None, None, "team", "nightly", "team=", 'a"b', "x,"]),
    since=st.none() | st.just(START + timedelta(days=1)),
    until=st.none() | st.just(START + timedelta(days=4)),
    state=st.none() | st.sampled_from(EntryState),
    simulated=st.none() | st.booleans(),
)


def fits(selection: LedgerFilter, entry: LedgerEntry) -> bool:
    """What the database is asked for, said again and plainly."""
    at = entry.attribution
    same = (
        (selection.id, entry.id),
        (selection.run_id, at.run_id),
        (selection.run_key, at.run_key),
        (selection.pipeline, at.pipeline),
        (selection.step_id, at.step_id),
        (selection.state, entry.state),
        (selection.simulated, entry.simulated),
    )
    asked = entry.model_asked or ""
    models = (None, asked, entry.model_answered, asked.partition(":")[2] or None)
    deployments = (None, at.deployment, deployment_key(at.pipeline, at.deployment))
    name, value = selection.tag_parts
    named = value is None and (name in at.tags or name in at.flow_tags)
    return (
        all(wanted is None or wanted == found for wanted, found in same)
        and (selection.since is None or entry.sent_at >= selection.since)
        and (selection.until is None or entry.sent_at < selection.until)
        and selection.deployment in deployments
        and (selection.model is None or selection.model in models)
        and (selection.tag is None or named or (value is not None and at.tags.get(name) == value))
    )


def fill(database: Database, booked: list[LedgerEntry]) -> None:
    """Make these the entries of a ledger."""

    def empty(connection: Any) -> None:
        for table in (intents, outcomes):
            connection.execute(table.delete())

    database.run(empty)
    settled = [entry for entry in booked if entry.settled_at is not None]
    database.insert(
        (Insert(intents), [intent_row(entry) for entry in booked]),
        (Insert(outcomes), [outcome_row(entry) for entry in settled]),
    )


def charged(cost: str = "0.001", **changes: Any) -> LedgerEntry:
    """An answered request; further arguments are fields of the entry, or of its attribution."""
    of_attribution = {
        name: changes.pop(name)
        for name in list(changes)
        if name in Attribution.__dataclass_fields__
    }
    sent_at = changes.pop("sent_at", START)
    intent = LedgerEntry(
        attribution=Attribution(**of_attribution), model_asked="openai:gpt-5-mini", sent_at=sent_at
    )
    return intent.settled(EntryState.CHARGED, cost_usd=Decimal(cost), **changes)
