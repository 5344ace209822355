"""What cost artifacts say of costs that are not known."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from fastroai.ledger.entries import Attribution, EntryState, LedgerEntry
from fastroai.pipelines.schemas import PipelineUsage, StepUsage
from tests.integration.read_back import usd

UNPRICED = LedgerEntry(state=EntryState.UNPRICED, model_answered="mine")
LOST = replace(UNPRICED, state=EntryState.UNSETTLED)
PAID = LedgerEntry(state=EntryState.CHARGED, model_answered="mine", cost_usd=Decimal("0.125"))
REFUSED = replace(UNPRICED, state=EntryState.REFUSED)


@pytest.mark.parametrize(
    ("entries", "cost", "said"),
    [
        (
            [UNPRICED, LOST],
            "unknown",
            "**unknown** for 2 requests · 0 % of the requests are priced",
        ),
        (
            [PAID, LOST],
            "0.125 + 1 unknown",
            "**$0.125 + 1 unknown** for 2 requests · 50 % of the requests are priced",
        ),
        ([PAID, REFUSED], "0.125", "**$0.125** for 2 requests"),
        ([REFUSED], "0", "**$0** for 1 request"),
        (
            [UNPRICED.replayed(Attribution())],
            "0",
            "**$0** for 0 requests · 1 replayed, which saved unknown",
        ),
    ],
)
def test_no_amount_is_shown_where_none_is_known(
    entries: list[LedgerEntry], cost: str, said: str
) -> None:
    from fastroai.executors._prefect.artifacts import describe_costs, run_rows, step_rows

    [row] = run_rows({"s": ("completed", 1, tuple(entries))})
    assert row["cost_usd"] == cost
    assert describe_costs("s", entries).startswith(f"**s**: {said}")
    assert "$unknown" not in describe_costs("s", entries)
    known = sum((e.cost_usd or Decimal(0) for e in entries if e.is_spend), Decimal(0))
    assert usd(step_rows(entries)) == usd([row]) == known


def test_usage_says_which_share_of_the_requests_is_priced() -> None:
    usage = StepUsage.from_entries(
        [PAID, PAID, PAID, UNPRICED, REFUSED, PAID.replayed(Attribution())]
    )
    assert (usage.refused_count, usage.share_priced) == (1, 0.75)
    nothing = StepUsage.from_entries([REFUSED])
    assert nothing.share_priced is None
    total = PipelineUsage.from_step_usages(
        {"a": usage, "b": StepUsage.from_entries([LOST]) + nothing}
    )
    assert (total.total_refused_count, total.share_priced) == (2, 0.6)
