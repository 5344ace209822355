"""Totals: whatever is grouped or selected, they are the sum of the entries, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fastroai.database.engine import Database, database_url
from fastroai.ledger.aggregation import GROUPINGS, Totals, totals_of
from fastroai.ledger.entries import DIMENSIONS, Attribution, changed, total_usd
from fastroai.ledger.filters import FilterFields, LedgerFilter
from fastroai.ledger.store.mapping import as_stored
from fastroai.ledger.store.queries import read_entries
from fastroai.ledger.store.totals import read_totals
from fastroai.usage import EntryState, LedgerEntry
from tests.support.examples import examples
from tests.support.ledger_entries import START, charged, entries, fill, fits, selections

by_any = st.sampled_from([None, *GROUPINGS, "tag:team", 'tag:a"b'])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    found = Database(
        database_url(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"), writes=True
    )
    found.prepare()
    yield found
    found.close()


@given(st.lists(entries(), max_size=6), selections, by_any)
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_totals_in_the_database_are_the_sums_of_the_entries(
    database: Database, booked: list[LedgerEntry], selection: LedgerFilter, by: str | None
) -> None:
    fill(database, booked)
    stored = sorted(map(as_stored, booked), key=lambda entry: (entry.sent_at, entry.id))
    found = database.run(lambda connection: read_entries(connection, selection))
    assert found == [entry for entry in stored if fits(selection, entry)]
    totals = database.run(lambda connection: read_totals(connection, selection, by))
    assert totals == totals_of(found, by)


@given(st.lists(entries(), max_size=8), st.sampled_from([g for g in GROUPINGS if g != "tag"]))
def test_groups_add_up_to_the_whole(booked: list[LedgerEntry], by: str) -> None:
    [whole] = totals_of(booked)
    groups = totals_of(booked, by)
    assert whole.cost_usd == total_usd(booked) == total_usd_of(groups)
    for name in (
        "requests",
        "charged",
        "unpriced",
        "unsettled",
        "refused",
        "replayed",
        "simulated",
    ):
        assert sum(getattr(group, name) for group in groups) == getattr(whole, name)


def total_usd_of(groups: tuple[Totals, ...]) -> Decimal:
    return total_usd(charged(str(group.cost_usd)) for group in groups)


def test_amounts_beyond_the_databases_integers_add_up(database: Database) -> None:
    fill(
        database,
        [charged("9000000") for _ in range(5)]
        + [charged("99999999999"), charged("0.000000000000001")],
    )
    [whole] = database.run(lambda connection: read_totals(connection, LedgerFilter(), None))
    assert whole.cost_usd == Decimal("100044999999.000000000000001")


def test_what_is_not_spend_is_told_apart() -> None:
    paid = charged("0.5")
    booked = [
        paid,
        paid.replayed(paid.attribution),
        charged("0.25", simulated=True),
        LedgerEntry(upper_bound_usd=Decimal("0.75")),
        LedgerEntry().settled(EntryState.REFUSED, cost_usd=Decimal(9)),
        LedgerEntry().settled(EntryState.UNPRICED),
    ]
    [whole] = totals_of(booked)
    assert (whole.requests, whole.charged, whole.replayed, whole.refused) == (5, 2, 1, 1)
    assert (whole.unsettled, whole.unpriced, whole.simulated) == (1, 1, 1)
    assert (whole.cost_usd, whole.simulated_usd) == (Decimal("0.75"), Decimal("0.25"))
    assert (whole.replayed_usd, whole.upper_bound_usd) == (Decimal("0.5"), Decimal("0.75"))
    assert whole.share_priced == 0.5


def test_nothing_adds_up_to_nothing() -> None:
    assert totals_of([]) == (Totals(),)
    assert totals_of([], "model") == ()
    assert Totals().share_priced is None


def test_an_unknown_grouping_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'team'.*run, run_key, pipeline.*tag:NAME"):
        totals_of([], "team")


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="since must be timezone-aware"):
        LedgerFilter(since=datetime(2026, 1, 1))


def test_entries_of_one_tag_value_are_a_group() -> None:
    booked = [
        charged("1", tags={"team": "a"}),
        charged("2", tags={"team": "b"}),
        charged("4", flow_tags=("nightly",)),
    ]
    assert {t.key: t.cost_usd for t in totals_of(booked, "tag:team")} == {"a": 1, "b": 2, None: 4}
    assert {t.key: t.cost_usd for t in totals_of(booked, "tag")} == {
        "team=a": 1,
        "team=b": 2,
        "nightly": 4,
    }


def test_the_keywords_of_a_filter_are_its_fields() -> None:
    assert get_type_hints(FilterFields) == get_type_hints(LedgerFilter)


def test_every_field_of_a_filter_selects(database: Database) -> None:
    """A field that is added must be a condition, too."""
    given: dict[str, Any] = {"since": START, "until": START, "state": EntryState.CHARGED}
    for field in fields(LedgerFilter):
        selection = LedgerFilter(**{field.name: given.get(field.name, "x")})
        database.run(lambda connection, wanted=selection: read_entries(connection, wanted))


def test_each_dimension_of_an_attribution_is_a_grouping() -> None:
    names = {"run_id": "run", "step_id": "step"}
    assert {names.get(name, name) for name in DIMENSIONS} <= set(GROUPINGS)


def test_an_attribution_of_a_step_has_all_that_its_run_has() -> None:
    whole = Attribution(**{name: name for name in DIMENSIONS}, tags={"a": "b"}, flow_tags=("c",))
    of_step = changed(whole, step_id="asked", attempt=2, dispatch=3)
    assert of_step == replace(whole, step_id="asked", attempt=2, dispatch=3)
    assert [f.name for f in fields(Attribution) if getattr(of_step, f.name) == f.default] == []


def test_deployments_of_one_name_in_two_flows_are_two_groups_that_earlier_entries_join() -> None:
    booked = [
        charged("1", pipeline="digest", deployment="digest/nightly"),
        charged("2", pipeline="digest", deployment="nightly"),
        charged("4", pipeline="triage", deployment="triage/nightly"),
        charged("8", deployment="nightly"),
        charged("16", pipeline="digest"),
    ]
    assert {t.key: t.cost_usd for t in totals_of(booked, "deployment")} == {
        "digest/nightly": 3,
        "triage/nightly": 4,
        "nightly": 8,
        None: 16,
    }
