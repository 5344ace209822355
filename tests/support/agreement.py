"""Whether a ledger and a provider's invoice agree: line by line, and in their sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from fastroai.usage import EntryState, LedgerEntry
from tests.support.invoice import InvoiceLine, Price, fixed_price, invoiced_usd

Pair = tuple[InvoiceLine, LedgerEntry]

STATES = {
    "answered": {EntryState.CHARGED},
    "left": {EntryState.UNSETTLED},
    "hung": {EntryState.UNSETTLED},
    "died": {EntryState.UNSETTLED},
    "refused": {EntryState.REFUSED},
    "expired": {EntryState.REFUSED},
    "withdrawn": {EntryState.UNSETTLED, EntryState.REFUSED},
}
"""What an entry may say of a request, by what became of it at the provider."""


def paired(lines: Iterable[InvoiceLine], entries: Iterable[LedgerEntry]) -> list[Pair]:
    """Each line with its entry, in the lines' order: by the answer's id, or else by who asked whom
    for what, and when.

    Where an entry is of a pipeline's step, its prompts must begin with its place and a colon.

    Raises:
        AssertionError: A line does not have exactly one entry, or an entry not exactly one line.
    """
    left = [entry for entry in entries if entry.state is not EntryState.REPLAYED]
    pairs: list[Pair] = []
    named = {entry.response_id: entry for entry in left if entry.response_id is not None}
    for line in lines:
        fitting = [entry for entry in left if fits(line, entry)]
        if line.batch is not None and len(fitting) > 1:
            # Those of one batch are received at once: the answered one by its id, others are alike.
            unnamed = (entry for entry in fitting if entry.response_id is None)
            fitting = [named.get(line.response_id) or next(unnamed)]
        assert len(fitting) == 1, f"{line}\nhas {len(fitting)} entries among\n{_listed(left)}"
        left.remove(fitting[0])
        pairs.append((line, fitting[0]))
    assert not left, f"Entries without a line:\n{_listed(left)}"
    return pairs


def place_in(step_id: str, item: str | None) -> str:
    """How a step, or an item of it, is named in prompts."""
    return step_id if item is None else f"{step_id}[{item}]"


def fits(line: InvoiceLine, entry: LedgerEntry) -> bool:
    """Whether a line and an entry can be of the same request: no fact of one says otherwise."""
    at = entry.attribution
    place = None if at.step_id is None else place_in(at.step_id, at.item)
    return (
        (entry.response_id is None or entry.response_id == line.response_id)
        and entry.provider_host == line.host
        and (entry.model_asked or "").partition(":")[2] == line.asked
        and (place is None or line.prompt.startswith(f"{place}:"))
        and entry.sent_at <= line.received
        and (entry.settled_at is None or line.received <= entry.settled_at)
    )


def assert_told_alike(line: InvoiceLine, entry: LedgerEntry, price: Price = fixed_price) -> None:
    """A line and its entry say the same of tokens, model, outcome and cost."""
    assert entry.state in STATES[line.became], f"{line}\n{entry}"
    if entry.state is EntryState.CHARGED:
        tokens = entry.tokens
        assert (entry.response_id, entry.model_answered) == (line.response_id, line.model)
        assert (tokens.input_tokens, tokens.output_tokens) == (
            line.input_tokens,
            line.output_tokens,
        )
        assert tokens.cache_read_tokens == line.cached_tokens
        assert entry.cost_usd == price(line)
    else:
        assert entry.cost_usd is None


def assert_agree(
    lines: Sequence[InvoiceLine], entries: Iterable[LedgerEntry], price: Price = fixed_price
) -> list[Pair]:
    """Each line has its one entry and each entry its one line; what was answered costs the same in
    both.
    """
    entries = list(entries)
    pairs = paired(lines, entries)
    for line, entry in pairs:
        assert_told_alike(line, entry, price)
    charged = sum(
        (entry.cost_usd or Decimal(0) for entry in entries if entry.state is EntryState.CHARGED),
        Decimal(0),
    )
    assert charged == invoiced_usd((line for line in lines if line.became == "answered"), price)
    return pairs


def _listed(entries: Iterable[LedgerEntry]) -> str:
    return "\n".join(map(repr, entries)) or "none"
