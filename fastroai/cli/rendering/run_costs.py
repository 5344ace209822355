"""The cost table of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

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
        (step_id, model, *measures_of(group))
        for step_id, models in by_step_and_model(entries, steps).items()
        for model, group in models.items()
    ]
    print_table(out, _COLUMNS, rows, total=("total", "", *measures_of(entries)))
    for remarks_on in (
        remark_on_simulated,
        remark_on_unpriced,
        remark_on_share_priced,
        remark_on_refused,
        remarks_on_unsent,
    ):
        for remark in remarks_on(entries):
            out.print(Text(printable(remark)), soft_wrap=True)


Groups = dict[str, dict[str, list[LedgerEntry]]]


def by_step_and_model(entries: Iterable[LedgerEntry], steps: Iterable[str]) -> Groups:
    """Entries by step and model; a step without any has an empty group of model `-`."""
    groups: Groups = {step_id: {} for step_id in steps}
    for entry in entries:
        models = groups.setdefault(entry.attribution.step_id or "-", {})
        models.setdefault(answering_model(entry), []).append(entry)
    return {step_id: models or {"-": []} for step_id, models in groups.items()}


def answering_model(entry: LedgerEntry) -> str:
    """The model that answered, as far as it is known."""
    return entry.answering_model or "unknown"


def measures_of(entries: Sequence[LedgerEntry]) -> tuple[Cell, ...]:
    """The numbers of a row."""
    [totals] = totals_of(entries)
    tokens = totals.tokens
    more = with_unknown("", [entry for entry in entries if entry.is_spend])
    usd = None if more == "unknown" else Amount(totals.cost_usd, more)
    return totals.requests, totals.replayed, tokens.input_tokens, tokens.output_tokens, usd


def remark_on_simulated(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """What was answered offline."""
    simulated = [entry for entry in entries if entry.simulated]
    models = ", ".join(sorted(set(map(priced_as, simulated))))
    which = ""
    if len(simulated) < len(entries):
        which = f"{len(simulated)} of {len(entries)} requests: "
    if simulated:
        yield f"{which}SIMULATED by an offline model, priced as {models}; nothing was paid."


def remark_on_unpriced(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """What is not in the total."""
    unpriced = [entry for entry in entries if entry.is_spend and entry.cost_usd is None]
    unknown = sum(map(attrgetter("request_count"), unpriced))
    if unknown:
        yield (
            f"Not in the total: {unknown} request(s) whose cost is not known (no listed price, or "
            "no answer seen)."
        )


def remark_on_share_priced(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """How many of the requests that count as spend have a price, where not all have."""
    share = totals_of(entries)[0].share_priced
    if share is not None and share < 1:
        yield f"Priced: {percent(share)} of the requests."


def remark_on_refused(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """What providers refused."""
    refused = [entry for entry in entries if entry.state is EntryState.REFUSED]
    number = len(refused) - sum(map(was_not_sent, refused))
    if number:
        yield f"{number} request(s) were refused by the provider, which bills nothing for them."


def remarks_on_unsent(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """What was not sent, and which hosts could not be reached."""
    unsent = list(filter(was_not_sent, entries))
    if unsent:
        last = str(unsent[-1].error).removeprefix(NOT_SENT)
        yield f"{len(unsent)} request(s) were not sent: {last}"
    hosts = {entry.provider_host for entry in unsent if UNREACHABLE in str(entry.error)}
    names = ", ".join(sorted(filter(None, hosts)))
    if names:
        yield (
            f"Not reached: {names}. Check the network, a proxy that may be needed "
            "(HTTPS_PROXY), and the provider's URL where one is set (OPENAI_BASE_URL and the like)."
        )


def was_not_sent(entry: LedgerEntry) -> bool:
    """Whether it did not get as far as a provider."""
    return entry.state is EntryState.REFUSED and (entry.error or "").startswith(NOT_SENT)


def priced_as(entry: LedgerEntry) -> str:
    """`provider:model` as the price's source names it."""
    listed = re.search(r"([\w-]+)/(\S+?)(,|$)", entry.price_source or "")
    return f"{listed[1]}:{listed[2]}" if listed else entry.model_answered or "an unknown model"
