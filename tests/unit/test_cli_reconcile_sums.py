"""`fastroai costs reconcile` beside what providers export, in their columns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fastroai.pricing.token_counts import TokenCounts
from fastroai.usage import EntryState, LedgerEntry
from tests.support.command import Books, books
from tests.support.ledger_entries import charged

__all__ = ["books"]

Write = Callable[..., str]
DAY = datetime.fromisoformat("2026-03-01T00:00+00:00")

OPENAI_USAGE = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,"
    "api_key_id,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens,"
    "input_uncached_tokens"
)
OPENAI_COSTS = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,"
    "quantity_unit,line_item,user_id,api_key_id,project_id,organization_id"
)
ANTHROPIC_USAGE = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,"
    "usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,"
    "usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,"
    "web_search_count,inference_geo,speed"
)
ANTHROPIC_COSTS = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,"
    "list_price_usd,cost_type,inference_geo,speed"
)
OPENROUTER_GENERATIONS = (
    "generation_id,created_at,cost_total,cost_web_search,cost_cache,cost_file_processing,"
    "byok_usage_inference,tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,"
    "model_permaslug,provider_name,variant,cancelled,streamed"
)
OPENROUTER_DAYS = (
    "date,model,model_permaslug,endpoint_id,provider_name,usage,byok_usage_inference,requests,"
    "prompt_tokens,completion_tokens,reasoning_tokens"
)


@pytest.fixture
def export(tmp_path: Path) -> Write:
    def write(*lines: str) -> str:
        path = tmp_path / "export.csv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def sent(
    number: int,
    *,
    model: str = "gpt-5-mini-2025-08-07",
    provider: str = "openai",
    cost: str = "0.001",
    day: int = 0,
    **more: object,
) -> LedgerEntry:
    return charged(
        cost,
        id=f"e{number}",
        sent_at=DAY + timedelta(days=day, hours=9, minutes=number),
        model_answered=model,
        provider=provider,
        tokens=TokenCounts(input_tokens=1000, output_tokens=100, cache_read_tokens=200),
        response_id=f"r{number}",
        **more,
    )


def times(day: int = 0) -> str:
    span = [DAY + timedelta(days=day), DAY + timedelta(days=day + 1)]
    return ",".join([*(f"{at.timestamp():.0f}" for at in span), *(at.isoformat() for at in span)])


def usage(
    requests: int, model: str = "gpt-5-mini-2025-08-07", project: str = "a", day: int = 0
) -> str:
    tokens = f"{1000 * requests},{100 * requests},{200 * requests},{800 * requests}"
    return f"{times(day)},{project},{requests},,,{model},False,default,{tokens}"


def test_openais_usage_is_compared_by_day_and_model_over_projects(
    books: Books, export: Write
) -> None:
    books.book([sent(1), sent(2), sent(3, model="gpt-5-2025-08-07"), sent(4, day=1)])
    empty = f"{times(2)},,,,,,,,,,,"
    right = [usage(1), usage(1, project="b"), usage(1, "gpt-5-2025-08-07"), usage(1, day=1), empty]
    ran = books.costs("reconcile", export(OPENAI_USAGE, *right))
    assert (ran.code, ran.err) == (0, "")
    assert "3 sums of the export" in ran.out
    assert ran.out.endswith("The books balance.\n")
    wrong = books.costs("reconcile", export(OPENAI_USAGE, usage(3), *right[2:]), "--json")
    assert wrong.code == 3
    [one] = [one for one in wrong.json["sums"] if one["differences"]]
    assert [entry["id"] for entry in one["entries"]] == ["e1", "e2"]
    assert (one["model"], one["lines"]) == ("gpt-5-mini", [2])
    assert one["differences"][0] == "requests: 2 in the ledger, 3 in the export"


def test_a_difference_is_shown_with_the_entries_behind_it(books: Books, export: Write) -> None:
    books.book([sent(1), sent(2)])
    ran = books.costs("reconcile", export(OPENAI_USAGE, usage(1)))
    assert ran.code == 3
    assert "Sums that differ: 1" in ran.out
    assert "output_tokens: 200 in the ledger, 100 in the export" in ran.out
    assert {"e1", "e2"} <= set(ran.out.split())


def test_an_entry_of_which_no_line_is_does_not_balance(books: Books, export: Write) -> None:
    books.book([sent(1), sent(2, model="gpt-5-2025-08-07"), sent(3, day=5)])
    found = books.costs("reconcile", export(OPENAI_USAGE, usage(1)), "--json")
    assert (found.code, [e["id"] for e in found.json["entries_without_line"]]) == (3, ["e2"])


def test_a_request_of_unknown_outcome_may_be_billed_or_not(books: Books, export: Write) -> None:
    lost = LedgerEntry(
        id="lost",
        model_asked="openai:gpt-5-mini",
        sent_at=DAY + timedelta(hours=3),
    )
    books.book([sent(1), lost])
    assert books.costs("reconcile", export(OPENAI_USAGE, usage(1))).code == 0
    assert books.costs("reconcile", export(OPENAI_USAGE, usage(2))).code == 0
    assert books.costs("reconcile", export(OPENAI_USAGE, usage(3))).code == 3


def test_openais_costs_are_compared_by_model_and_a_day_with_another_item_as_a_whole(
    books: Books, export: Write
) -> None:
    def cost(usd: str, item: str, day: int = 0) -> str:
        return f'{times(day)},{usd},usd,,,"{item}",,,a,org'

    books.book([sent(1, cost="0.25"), sent(2, cost="0.5", day=1), sent(3, cost="0.01", day=1)])
    mini = "gpt-5-mini-2025-08-07"
    right = [
        cost("0.200000000000000000000000000000", f"{mini}, input"),
        cost("0.05", f"{mini}, output"),
        cost("0.5", f"{mini}, input", day=1),
        cost("0.01", "web search tool calls", day=1),
    ]
    ran = books.costs("reconcile", export(OPENAI_COSTS, *right))
    assert ran.code == 0
    assert "Ledger 0.76 USD, export 0.76" in ran.out
    assert books.costs("reconcile", export(OPENAI_COSTS, *right[:-1])).code == 3
    euros = books.costs("reconcile", export(OPENAI_COSTS, right[0].replace("usd", "eur")))
    assert (euros.code, "Line 2 of the export is in 'eur'" in euros.err) == (2, True)


def test_anthropics_usage_and_costs_name_models_in_two_ways(books: Books, export: Write) -> None:
    claude: Any = {"model": "claude-haiku-4-5-20251001", "provider": "anthropic"}
    books.book([sent(1, cost="0.024", **claude), sent(2, cost="0.0201", **claude), sent(3)])
    tokens = "2026-03-01,claude-haiku-4-5-20251001,key,Default,standard,≤ 200k,{},0,0,400,200,0,,"
    assert books.costs("reconcile", export(ANTHROPIC_USAGE, tokens.format(1600))).code == 0
    assert books.costs("reconcile", export(ANTHROPIC_USAGE, tokens.format(1601))).code == 3
    cost = "2026-03-01,Claude Haiku 4.5,Default,key,message,≤ 200k,{},{},{},token,,"
    parts = [cost.format("input_no_cache", "0.03", "0.03"), cost.format("output", "0.01", "0.01")]
    assert books.costs("reconcile", export(ANTHROPIC_COSTS, *parts)).code == 0
    parts[1] = cost.format("output", "0.03", "0.03")
    assert books.costs("reconcile", export(ANTHROPIC_COSTS, *parts)).code == 3


def test_anthropics_cost_report_is_in_cents(books: Books, export: Write) -> None:
    books.book([sent(1, cost="1.2345", model="claude-haiku-4-5", provider="anthropic")])
    header = "starting_at,ending_at,amount,currency,cost_type,model,token_type"
    line = "2026-03-01T00:00:00Z,2026-03-02T00:00:00Z,{},USD,tokens,claude-haiku-4-5,output_tokens"
    assert books.costs("reconcile", export(header, line.format("123.45"))).code == 0
    assert books.costs("reconcile", export(header, line.format("1.2345"))).code == 3


def test_openrouters_exports_are_by_generation_or_by_day(books: Books, export: Write) -> None:
    routed: Any = {"model": "openai/gpt-5-mini", "provider": "openrouter"}
    books.book([sent(1, **routed), sent(2, **routed)])
    by_one = [
        f"r{n},2026-03-01 09:0{n}:00,0.001,0,0,0,0,1000,100,0,200,openai/gpt-5-mini,x,,,"
        for n in (1, 2)
    ]
    ran = books.costs("reconcile", export(OPENROUTER_GENERATIONS, *by_one))
    assert (ran.code, "2 by response id" in ran.out) == (0, True)
    day = "2026-03-01,openai/gpt-5-mini,openai/gpt-5-mini,,OpenAI,{},0,2,2000,200,0"
    assert books.costs("reconcile", export(OPENROUTER_DAYS, day.format("0.002"))).code == 0
    assert books.costs("reconcile", export(OPENROUTER_DAYS, day.format("0.02"))).code == 3


def test_unpriced_requests_may_cost_more_than_is_known(books: Books, export: Write) -> None:
    unknown = LedgerEntry(id="u", model_asked="openai:gpt-5-mini", sent_at=DAY).settled(
        EntryState.UNPRICED, provider="openai", model_answered="gpt-5-mini"
    )
    books.book([sent(1, cost="0.25"), unknown])
    line = f'{times()},{{}},usd,,,"gpt-5-mini, input",,,a,org'
    assert books.costs("reconcile", export(OPENAI_COSTS, line.format("0.75"))).code == 0
    assert books.costs("reconcile", export(OPENAI_COSTS, line.format("0.2"))).code == 3
