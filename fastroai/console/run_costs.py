"""What a run cost, as a table that adds up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ..usage.ledger import EntryState, LedgerEntry, total_usd
from .table import Column, printable, table


@dataclass(frozen=True, slots=True)
class CostLine:
    """Requests of one step to one model, as a line of the table; `usd` is exact."""

    step: str
    model: str
    requests: int
    replayed: int
    input_tokens: int
    output_tokens: int
    usd: Decimal

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
    """The lines of `cost_lines` and their total, in exact USD, with what must be known to read them."""
    lines = cost_lines(entries, steps)
    total = CostLine.of("total", "", entries)
    columns = [
        Column("step", [printable(line.step) for line in lines], total.step, left=True),
        Column("model", [printable(line.model) for line in lines], left=True),
        Column.of_counts("requests", [line.requests for line in lines], total.requests),
        Column.of_counts("replayed", [line.replayed for line in lines], total.replayed),
        Column.of_counts("input tokens", [line.input_tokens for line in lines], total.input_tokens),
        Column.of_counts("output tokens", [line.output_tokens for line in lines], total.output_tokens),
        Column.of_amounts("USD", [line.usd for line in lines], total.usd),
    ]
    shown, _ = table(columns)
    return "\n".join([*shown, *_remarks(entries)])


def _remarks(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    simulated = [e for e in entries if e.simulated]
    if simulated:
        models = ", ".join(sorted({_priced_as(e) for e in simulated}))
        which = "" if len(simulated) == len(entries) else f"{len(simulated)} of {len(entries)} requests: "
        yield f"{which}SIMULATED by an offline model, priced as {models}; nothing was paid."
    unknown = sum(e.is_spend and e.cost_usd is None for e in entries)
    if unknown:
        yield f"Not in the total: {unknown} request(s) whose cost is not known (no listed price, or no answer seen)."
    refused = sum(e.state is EntryState.REFUSED for e in entries)
    if refused:
        yield f"{refused} request(s) were refused by the provider, which bills nothing for them."


def _priced_as(entry: LedgerEntry) -> str:
    """`provider:model` as the price's source names it."""
    listed = re.search(r"([\w-]+)/(\S+?)(,|$)", entry.price_source or "")
    return f"{listed[1]}:{listed[2]}" if listed else entry.model_answered or "an unknown model"
