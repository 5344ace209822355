"""What entries of a ledger add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC
from decimal import Decimal
from typing import Any

from ..pricing.money import EXACT
from ..pricing.token_counts import TokenCounts
from .entries import Attribution, EntryState, LedgerEntry

ZERO_USD = Decimal(0)
_NO_TOKENS = TokenCounts()
TOKEN_NAMES = tuple(field.name for field in fields(TokenCounts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sum of some entries. Counts are of requests; amounts are exact USD.

    Attributes:
        key: What the entries have in common: a run, a model, a day. None: they have none, or all
            were summed.
        requests: Requests that were sent, refused ones included, replayed ones not.
        charged: Answered and priced.
        unpriced: Answered at an unknown price.
        unsettled: Sent, outcome unknown, or still under way.
        refused: The provider said no; nothing is billed.
        replayed: Answered from a record; nothing was sent.
        simulated: Those of `requests` that an offline model answered.
        tokens: Of charged, unpriced and unsettled requests.
        cost_usd: Known spend; what unpriced and unsettled requests cost beyond that is not in it.
        simulated_usd: The part of `cost_usd` that nobody has to pay.
        upper_bound_usd: What unsettled requests can have cost at most, where that is known; what of
            it is known to have been spent is in `cost_usd` too.
        replayed_usd: What replayed requests cost when they were paid: saved now.
    """

    key: str | None = None
    requests: int = 0
    charged: int = 0
    unpriced: int = 0
    unsettled: int = 0
    refused: int = 0
    replayed: int = 0
    simulated: int = 0
    tokens: TokenCounts = _NO_TOKENS
    cost_usd: Decimal = ZERO_USD
    simulated_usd: Decimal = ZERO_USD
    upper_bound_usd: Decimal = ZERO_USD
    replayed_usd: Decimal = ZERO_USD

    @property
    def share_priced(self) -> float | None:
        """Share of the requests that count as spend whose cost is known in full.

        None: there are none.
        """
        spend = self.charged + self.unpriced + self.unsettled
        return self.charged / spend if spend else None


def with_unknown(amount: str, entries: Sequence[LedgerEntry]) -> str:
    """An amount as it is shown, told apart from what the rest of some paid or replayed entries
    cost.

    Args:
        amount: The sum of what is known.
    """
    open_ = sum(e.request_count for e in entries if e.cost_usd is None or e.state in _NOT_IN_FULL)
    if not open_:
        return amount
    return "unknown" if all(e.cost_usd is None for e in entries) else f"{amount} + {open_} unknown"


_NOT_IN_FULL = (EntryState.UNPRICED, EntryState.UNSETTLED)

COUNTS = ("requests", "charged", "unpriced", "unsettled", "refused", "replayed", "simulated")
AMOUNTS = ("cost_usd", "simulated_usd", "upper_bound_usd", "replayed_usd")


def totals_of(entries: Iterable[LedgerEntry], by: str | None = None) -> tuple[Totals, ...]:
    """Sum entries in groups, ordered by key; one sum of all when not grouped.

    Args:
        entries: Any entries, for example `PipelineResult.entries`.
        by: `run`, `run_key`, `pipeline`, `step` (as `pipeline/step`), `agent`, `model`, `provider`,
            `deployment`, `day` (UTC), `tag`, or `tag:NAME` for the values of one tag. By `tag`, an
            entry is in the group of each of its tags, so the groups add up to more than the whole.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    keys = grouping(by)
    sums = merged(_of_one(entry, key) for entry in entries for key in keys(entry))
    return sums or (() if by else (Totals(),))


def grouping(by: str | None) -> Callable[[LedgerEntry], Iterable[str | None]]:
    """The function from an entry to the keys of the groups that it is in.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    if by is None:
        return lambda entry: (None,)
    if by == "tag":
        return lambda entry: labels(entry.attribution)
    if by.startswith("tag:"):
        name = by.removeprefix("tag:")
        return lambda entry: (entry.attribution.tags.get(name),)
    if by not in _KEYS:
        raise ValueError(
            f"Entries can't be grouped by {by!r}. Allowed: {', '.join(_KEYS)}, tag, tag:NAME."
        )
    key = _KEYS[by]
    return lambda entry: (key(entry),)


def labels(at: Attribution) -> tuple[str | None, ...]:
    """The tags of an entry, each as `name=value`, and those of its flow run; (None,) without
    any.
    """
    return (
        *(f"{name}={value}" for name, value in at.tags.items()),
        *dict.fromkeys(at.flow_tags),
    ) or (None,)


def step_key(pipeline: str | None, step_id: str | None) -> str | None:
    """One name for a step among all pipelines."""
    return "/".join(part for part in (pipeline, step_id) if part is not None) or None


_KEYS: dict[str, Callable[[LedgerEntry], str | None]] = {
    "run": lambda e: e.attribution.run_id,
    "run_key": lambda e: e.attribution.run_key,
    "pipeline": lambda e: e.attribution.pipeline,
    "step": lambda e: step_key(e.attribution.pipeline, e.attribution.step_id),
    "agent": lambda e: e.agent,
    "model": lambda e: e.model,
    "provider": lambda e: e.provider,
    "deployment": lambda e: e.attribution.deployment,
    "day": lambda e: e.sent_at.astimezone(UTC).date().isoformat(),
}
GROUPINGS = (*_KEYS, "tag")


def merged(parts: Iterable[Totals]) -> tuple[Totals, ...]:
    """Sums of which some have the same key, added up and ordered by key; the one without a key
    comes last.
    """
    groups: dict[str | None, _Sum] = {}
    for part in parts:
        groups.setdefault(part.key, _Sum()).add(part)
    return tuple(
        groups[key].as_totals(key)
        for key in sorted(groups, key=lambda key: (key is None, key or ""))
    )


class _Sum:
    """Adds totals up, exactly."""

    def __init__(self) -> None:
        self._counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
        self._amounts: dict[str, Any] = dict.fromkeys(AMOUNTS, ZERO_USD)
        self._tokens = dict.fromkeys(TOKEN_NAMES, 0)

    def add(self, part: Totals) -> None:
        for name in COUNTS:
            self._counts[name] += getattr(part, name)
        for name in AMOUNTS:
            self._amounts[name] = EXACT.add(self._amounts[name], getattr(part, name))
        for name in TOKEN_NAMES:
            self._tokens[name] += getattr(part.tokens, name)

    def as_totals(self, key: str | None) -> Totals:
        sums = self._counts | self._amounts
        return Totals(key=key, tokens=TokenCounts(**self._tokens), **sums)


def _of_one(entry: LedgerEntry, key: str | None) -> Totals:
    count, replayed, cost = (
        entry.request_count,
        entry.state is EntryState.REPLAYED,
        entry.cost_usd or ZERO_USD,
    )
    spent = cost if entry.is_spend else ZERO_USD
    unsettled = entry.state is EntryState.UNSETTLED
    return Totals(
        key=key,
        requests=0 if replayed else count,
        simulated=count if entry.simulated and not replayed else 0,
        tokens=entry.tokens if entry.is_spend else _NO_TOKENS,
        cost_usd=spent,
        simulated_usd=spent if entry.simulated else ZERO_USD,
        upper_bound_usd=(entry.upper_bound_usd or ZERO_USD) if unsettled else ZERO_USD,
        replayed_usd=cost if replayed else ZERO_USD,
        **{entry.state.value: count},
    )
