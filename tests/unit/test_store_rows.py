"""Entries as rows: nothing is lost, nothing is rounded, nothing is refused by a database."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastroai.database.values import microseconds, moment
from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.ledger.store.mapping import (
    as_stored,
    flow_tag_fragments,
    from_units,
    intent_row,
    outcome_row,
    tag_fragments,
    tags_json,
    to_units,
)
from fastroai.ledger.store.schema import intents, outcomes
from fastroai.pricing.token_counts import TokenCounts
from tests.support.ledger_entries import charged, entries

plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@given(entries())
def test_an_entry_comes_back_equal(entry: LedgerEntry) -> None:
    stored = as_stored(entry)
    if "\0" not in repr(entry) and "\\x00" not in repr(entry) and "\\ud" not in repr(entry):
        assert stored == entry
    assert as_stored(stored) == stored


def test_every_column_is_filled() -> None:
    names = {column.name for column in intents.columns}
    assert set(intent_row(charged())) == names - {"summed"}  # that is written later
    assert set(outcome_row(charged())) == {column.name for column in outcomes.columns}


def test_every_field_of_an_entry_is_kept() -> None:
    """A field that is added must be added to the tables too."""
    texts = {
        field.name: f"a {field.name}" for field in fields(LedgerEntry) if field.type == "str | None"
    }
    amounts = {
        field.name: Decimal("0.5")
        for field in fields(LedgerEntry)
        if field.type == "Decimal | None"
    }
    whom: dict[str, Any] = {
        field.name: field.name for field in fields(Attribution) if field.type == "str | None"
    }
    entry = replace(
        charged(),
        **texts,
        **amounts,
        attribution=Attribution(
            **whom, attempt=3, dispatch=4, tags={"team": "search"}, flow_tags=("nightly",)
        ),
        tokens=TokenCounts(
            **{field.name: number for number, field in enumerate(fields(TokenCounts), 1)}
        ),
        further_usage={"web_searches": 2, "audio_seconds": 1.5},
        request_count=2,
        simulated=True,
    )
    defaults = LedgerEntry(id=entry.id, sent_at=entry.sent_at)
    assert [f.name for f in fields(LedgerEntry) if f.name not in ("id", "sent_at")
            and getattr(entry, f.name) == getattr(defaults, f.name)] == []  # fmt: skip
    assert as_stored(entry) == entry


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_whole_units_of_money_are_exact(units: int) -> None:
    usd = from_units(units)
    assert to_units(usd) == units
    assert usd * 10**12 == units


@pytest.mark.parametrize(
    "usd", ["0.0000000000001", "10000000", "1e-40", "123456789.000000000000000001"]
)
def test_an_amount_that_fits_no_column_is_kept_as_it_is(usd: str) -> None:
    entry = charged(usd)
    row = outcome_row(entry)
    assert row["cost"] is None
    assert json.loads(row["exact"]) == {"cost": str(Decimal(usd))}
    assert as_stored(entry).cost_usd == Decimal(usd)


@pytest.mark.parametrize("cost", ["NaN", "Infinity"])
def test_what_is_no_amount_of_money_is_an_unknown_price(cost: str) -> None:
    stored = as_stored(charged(cost, upper_bound_usd=Decimal("NaN")))
    assert (stored.state, stored.cost_usd, stored.upper_bound_usd) == (
        EntryState.UNPRICED,
        None,
        None,
    )
    assert cost in str(stored.error)


def test_texts_that_databases_refuse_are_escaped() -> None:
    entry = charged(error="a\0b\ud800c", tags={"k\0": "v\ud800"})
    stored = as_stored(entry)
    assert stored.error == "a\\x00b\\ud800c"
    assert stored.attribution.tags == {"k\\x00": "v\\ud800"}


def test_a_time_is_exact_and_a_naive_one_is_utc() -> None:
    at = datetime(2026, 3, 1, 12, 0, 0, 1, timezone(timedelta(hours=5, minutes=30)))
    assert moment(microseconds(at)) == at
    assert moment(microseconds(datetime(2026, 3, 1))) == datetime(2026, 3, 1, tzinfo=UTC)


def test_counts_beyond_the_column_are_cut_to_it() -> None:
    entry = charged()
    huge = replace(entry, tokens=replace(entry.tokens, input_tokens=2**70))
    assert as_stored(huge).tokens.input_tokens == 2**63 - 1


@given(st.dictionaries(plain, plain, max_size=4), plain, plain)
def test_tags_are_found_in_their_text_exactly_when_they_are_there(
    tags: dict[str, str], name: str, value: str
) -> None:
    text = tags_json(tags) or ""
    assert any(part in text for part in tag_fragments(name, value)) == (tags.get(name) == value)
    assert any(part in text for part in tag_fragments(name, None)) == (name in tags)
    for name, value in tags.items():
        assert any(part in text for part in tag_fragments(name, value))


@given(st.lists(plain, max_size=4), plain)
def test_flow_tags_are_found_in_theirs(flow_tags: list[str], name: str) -> None:
    text = (
        intent_row(LedgerEntry(attribution=Attribution(flow_tags=tuple(flow_tags))))["flow_tags"]
        or ""
    )
    for wanted in (name, *flow_tags):
        assert any(part in text for part in flow_tag_fragments(wanted)) == (wanted in flow_tags)


def test_an_intent_keeps_its_bound_and_its_tier() -> None:
    intent = LedgerEntry(upper_bound_usd=Decimal("0.25"), service_tier="flex")
    assert as_stored(intent) == intent
