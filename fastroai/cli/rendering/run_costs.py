"""What a run cost, as a table that adds up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ...ledger.aggregation import totals_of, with_unknown
from ...ledger.entries import NOT_SENT, EntryState, LedgerEntry, total_usd
from .table import Column, amounts, percent, printable, table

UNREACHABLE = "ConnectionError"
"""In the errors of requests to a host that could not be reached."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """Requests of one step to one model, as a line of the table; `usd` is the exact sum of what is
    known.
    """

    step: str
    model: str
    requests: int
    replayed: int
    input_tokens: int
    output_tokens: int
    usd: Decimal
    spend: Sequence[LedgerEntry] = ()

    @classmethod
    def of(cls, step: str, model: str, entries: Sequence[LedgerEntry]) -> CostLine:
        """Sum entries: replayed requests are counted apart, and are neither tokens nor money."""
        spend = [e for e in entries if e.is_spend]
        return cls(
            step=step,
            model=model,
            requests=sum(e.request_count for e in entries if e.state is not EntryState.REPLAYED),
            replayed=sum(e.state is EntryState.REPLAYED for e in entries),
            input_tokens=sum(e.tokens.input_tokens for e in spend),
            output_tokens=sum(e.tokens.output_tokens for e in spend),
            usd=total_usd(spend),
            spend=spend,
        )


def cost_lines(entries: Iterable[LedgerEntry], steps: Iterable[str] = ()) -> list[CostLine]:
    """One line for each step and model; a step without requests has one of zeros.

    Args:
        entries: A run's ledger entries.
        steps: Step ids in the order in which they are listed.
    """
    groups: dict[str, dict[str, list[LedgerEntry]]] = {step_id: {} for step_id in steps}
    for entry in entries:
        model = entry.model_answered or entry.model_asked or "unknown"
        groups.setdefault(entry.attribution.step_id or "-", {}).setdefault(model, []).append(entry)
    return [
        CostLine.of(step_id, model, group)
        for step_id, models in groups.items()
        for model, group in (models or {"-": []}).items()
    ]


def cost_table(entries: Sequence[LedgerEntry], steps: Iterable[str] = ()) -> str:
    """The lines of `cost_lines` and their total, in exact USD, with what must be known to read
    them.
    """
    lines = cost_lines(entries, steps)
    total = CostLine.of("total", "", entries)
    told = zip(amounts([line.usd for line in (*lines, total)]), (*lines, total), strict=True)
    *costs, cost = [with_unknown(amount, line.spend) for amount, line in told]
    columns = [
        Column("step", [printable(line.step) for line in lines], total.step, left=True),
        Column("model", [printable(line.model) for line in lines], left=True),
        Column.of_counts("requests", [line.requests for line in lines], total.requests),
        Column.of_counts("replayed", [line.replayed for line in lines], total.replayed),
        Column.of_counts("input tokens", [line.input_tokens for line in lines], total.input_tokens),
        Column.of_counts(
            "output tokens", [line.output_tokens for line in lines], total.output_tokens
        ),
        Column("USD", costs, cost),
    ]
    shown, _ = table(columns)
    return "\n".join([*shown, *_remarks(entries)])


def _remarks(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    simulated = [e for e in entries if e.simulated]
    if simulated:
        models = ", ".join(sorted({_priced_as(e) for e in simulated}))
        which = (
            ""
            if len(simulated) == len(entries)
            else f"{len(simulated)} of {len(entries)} requests: "
        )
        yield f"{which}SIMULATED by an offline model, priced as {models}; nothing was paid."
    spend = [e for e in entries if e.is_spend]
    unknown = sum(e.request_count for e in spend if e.cost_usd is None)
    [totals] = totals_of(spend)
    if unknown:
        yield (
            f"Not in the total: {unknown} request(s) whose cost is not known (no listed price, or "
            "no answer seen)."
        )
    if totals.share_priced is not None and totals.share_priced < 1:
        yield f"Priced: {percent(totals.share_priced)} of the requests."
    refused = [e for e in entries if e.state is EntryState.REFUSED]
    unsent = [e for e in refused if (e.error or "").startswith(NOT_SENT)]
    if len(refused) > len(unsent):
        yield (
            f"{len(refused) - len(unsent)} request(s) were refused by the provider, which bills "
            "nothing for them."
        )
    if unsent:
        yield (
            f"{len(unsent)} request(s) were not sent: "
            f"{(unsent[-1].error or '').removeprefix(NOT_SENT)}"
        )
    hosts = sorted(
        {e.provider_host for e in unsent if e.provider_host and UNREACHABLE in (e.error or "")}
    )
    if hosts:
        yield (
            f"Not reached: {', '.join(hosts)}. Check the network, a proxy that may be needed "
            "(HTTPS_PROXY), and the provider's URL where one is set (OPENAI_BASE_URL and the like)."
        )


def _priced_as(entry: LedgerEntry) -> str:
    """`provider:model` as the price's source names it."""
    listed = re.search(r"([\w-]+)/(\S+?)(,|$)", entry.price_source or "")
    return f"{listed[1]}:{listed[2]}" if listed else entry.model_answered or "an unknown model"
