"""The cost table of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from ...ledger.aggregation import totals_of, with_unknown
from ...ledger.entries import NOT_SENT, EntryState, LedgerEntry
from .console import printable
from .tables import Amount, Cell, Column, percent, print_table

UNREACHABLE = "ConnectionError"
"""In the errors of requests to a host that could not be reached."""

_COLUMNS = (
    Column("step", shortest=12),
    Column("model", shortest=12),
    Column("requests"),
    Column("replayed"),
    Column("input tokens"),
    Column("output tokens"),
    Column("USD"),
)


def print_costs(out: Console, entries: Sequence[LedgerEntry], steps: Iterable[str] = ()) -> None:
    """Write a line for each step and model and their total, in exact USD, with what must be known
    to read them.

    Args:
        entries: A run's ledger entries.
        steps: Step ids in the order in which they are listed, also without requests.
    """
    rows = [
        (step_id, model, *_measures(group))
        for step_id, models in _grouped(entries, steps).items()
        for model, group in models.items()
    ]
    print_table(out, _COLUMNS, rows, total=("total", "", *_measures(entries)))
    for remarks_on in (_simulated, _unpriced, _refused):
        for remark in remarks_on(entries):
            out.print(Text(printable(remark)), soft_wrap=True)


Groups = dict[str, dict[str, list[LedgerEntry]]]


def _grouped(entries: Iterable[LedgerEntry], steps: Iterable[str]) -> Groups:
    """Entries by step and model; a step without any has an empty group of model `-`."""
    groups: Groups = {step_id: {} for step_id in steps}
    for entry in entries:
        model = entry.model_answered or entry.model_asked or "unknown"
        models = groups.setdefault(entry.attribution.step_id or "-", {})
        models.setdefault(model, []).append(entry)
    for models in groups.values():
        if not models:
            models["-"] = []
    return groups


def _measures(entries: Sequence[LedgerEntry]) -> tuple[Cell, ...]:
    [totals] = totals_of(entries)
    tokens = totals.tokens
    more = with_unknown("", [entry for entry in entries if entry.is_spend])
    usd = None if more == "unknown" else Amount(totals.cost_usd, more)
    return totals.requests, totals.replayed, tokens.input_tokens, tokens.output_tokens, usd


def _simulated(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    simulated = [entry for entry in entries if entry.simulated]
    if not simulated:
        return
    models = ", ".join(sorted({_priced_as(entry) for entry in simulated}))
    which = ""
    if len(simulated) < len(entries):
        which = f"{len(simulated)} of {len(entries)} requests: "
    yield f"{which}SIMULATED by an offline model, priced as {models}; nothing was paid."


def _unpriced(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    spend = [entry for entry in entries if entry.is_spend]
    unknown = sum(entry.request_count for entry in spend if entry.cost_usd is None)
    if unknown:
        yield (
            f"Not in the total: {unknown} request(s) whose cost is not known (no listed price, or "
            "no answer seen)."
        )
    share = totals_of(spend)[0].share_priced
    if share is not None and share < 1:
        yield f"Priced: {percent(share)} of the requests."


def _refused(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    refused = sum(entry.state is EntryState.REFUSED for entry in entries)
    unsent = [entry for entry in entries if _was_not_sent(entry)]
    if refused > len(unsent):
        yield (
            f"{refused - len(unsent)} request(s) were refused by the provider, which bills "
            "nothing for them."
        )
    if not unsent:
        return
    errors = [str(entry.error).removeprefix(NOT_SENT) for entry in unsent]
    yield f"{len(unsent)} request(s) were not sent: {errors[-1]}"
    unreached = zip(unsent, errors, strict=True)
    hosts = {entry.provider_host or "" for entry, error in unreached if UNREACHABLE in error}
    if any(hosts):
        yield (
            f"Not reached: {', '.join(sorted(filter(None, hosts)))}. Check the network, a proxy "
            "that may be needed (HTTPS_PROXY), and the provider's URL where one is set "
            "(OPENAI_BASE_URL and the like)."
        )


def _was_not_sent(entry: LedgerEntry) -> bool:
    return entry.state is EntryState.REFUSED and (entry.error or "").startswith(NOT_SENT)


def _priced_as(entry: LedgerEntry) -> str:
    """`provider:model` as the price's source names it."""
    listed = re.search(r"([\w-]+)/(\S+?)(,|$)", entry.price_source or "")
    return f"{listed[1]}:{listed[2]}" if listed else entry.model_answered or "an unknown model"
