"""Sums of ledger entries, in total and in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date
from decimal import Decimal
from typing import Any

from ..pricing.money import EXACT, plain
from ..pricing.token_counts import TokenCounts
from .entries import DIMENSIONS, SPEND, ZERO_USD, EntryState, LedgerEntry

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
            `deployment`, `created_by`, `day` (UTC), `tag`, or `tag:NAME` for the values of one
            tag. By `tag`, an entry is in the group of each of its tags, so the groups add up to
            more than the whole.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    keys, sums = grouping(by), Sums()
    for entry in entries:
        tokens = [getattr(entry.tokens, name) for name in TOKEN_NAMES]
        for key in keys(entry):
            sums.add(
                key,
                entry.state,
                simulated=entry.simulated,
                count=entry.request_count,
                tokens=tokens,
                cost_usd=entry.cost_usd or ZERO_USD,
                upper_bound_usd=entry.upper_bound_usd or ZERO_USD,
            )
    return sums.totals() or (() if by else (Totals(),))


@dataclass(frozen=True, slots=True)
class Grouping:
    """How entries are grouped.

    Attributes:
        parts: Names of what the keys are made of: a dimension, a column of the ledger, or a part
            of `part_of`.
        keys: From the values of these, the keys of the groups that an entry is in.
    """

    parts: tuple[str, ...]
    keys: Callable[..., tuple[str | None, ...]]

    def __call__(self, entry: LedgerEntry) -> tuple[str | None, ...]:
        return self.keys(*(part_of(entry, name) for name in self.parts))


def part_of(entry: LedgerEntry, name: str) -> Any:
    """One value of an entry that keys are made of."""
    if name == "day":
        return entry.sent_at.astimezone(UTC).date()
    holder = entry if hasattr(entry, name) else entry.attribution
    return getattr(holder, name)


def grouping(by: str | None) -> Grouping:
    """How entries are grouped by a name; by None, all are one group.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    if by is None:
        return Grouping((), lambda: (None,))
    if by.startswith("tag:"):
        name = by.removeprefix("tag:")
        return Grouping(("tags",), lambda tags: (tags.get(name),))
    if by not in GROUPINGS:
        raise ValueError(
            f"Entries can't be grouped by {by!r}. Allowed: {', '.join(GROUPINGS)}, tag:NAME."
        )
    return GROUPINGS[by]


def _one_key(value: str | None) -> tuple[str | None, ...]:
    return (value,)


def step_key(pipeline: str | None, step_id: str | None) -> str | None:
    """One name for a step among all pipelines."""
    return "/".join(part for part in (pipeline, step_id) if part is not None) or None


def deployment_key(pipeline: str | None, deployment: str | None) -> str | None:
    """A deployment as `flow/deployment`.

    Earlier entries have its name alone; their flow most likely has the name of the pipeline.
    """
    if deployment is None or pipeline is None or "/" in deployment:
        return deployment
    return f"{pipeline}/{deployment}"


def _day_key(day: date) -> tuple[str | None, ...]:
    return (day.isoformat(),)


def _tag_keys(tags: Mapping[str, str], flow_tags: tuple[str, ...]) -> tuple[str | None, ...]:
    """Each tag as `name=value`, and those of the flow run; (None,) without any."""
    own = (f"{name}={value}" for name, value in tags.items())
    return (*own, *dict.fromkeys(flow_tags)) or (None,)


_OF_ATTRIBUTION = {
    {"run_id": "run", "step_id": "step"}.get(name, name): Grouping((name,), _one_key)
    for name in DIMENSIONS
}
GROUPINGS: dict[str, Grouping] = {
    **_OF_ATTRIBUTION,
    "deployment": Grouping(("pipeline", "deployment"), lambda *parts: (deployment_key(*parts),)),
    "step": Grouping(("pipeline", "step_id"), lambda *parts: (step_key(*parts),)),
    "agent": Grouping(("agent",), _one_key),
    "model": Grouping(("model",), _one_key),
    "provider": Grouping(("provider",), _one_key),
    "day": Grouping(("day",), _day_key),
    "tag": Grouping(("tags", "flow_tags"), _tag_keys),
}
"""By name; each dimension of an attribution is one."""


class Sums:
    """Adds up what requests of one key and state amount to: the only place that says which state
    counts as what.
    """

    def __init__(self) -> None:
        self._groups: dict[str | None, _Sum] = {}

    def add(
        self,
        key: str | None,
        state: EntryState,
        *,
        simulated: bool,
        count: int,
        tokens: Sequence[int],
        cost_usd: Decimal,
        upper_bound_usd: Decimal,
    ) -> None:
        """Add requests, or with negative numbers take them away.

        Args:
            count: Of the requests, all of this state, all simulated or none.
            tokens: Theirs, like the amounts; in the order of `TOKEN_NAMES`.
        """
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Sum()
        group.counts[state] += count
        if state is EntryState.REPLAYED:
            group.replayed_usd = EXACT.add(group.replayed_usd, cost_usd)
            return
        group.requests += count
        group.simulated += count if simulated else 0
        if state not in SPEND:
            return
        group.tokens = list(map(int.__add__, group.tokens, tokens))
        group.cost_usd = EXACT.add(group.cost_usd, cost_usd)
        if simulated:
            group.simulated_usd = EXACT.add(group.simulated_usd, cost_usd)
        if state is EntryState.UNSETTLED:
            group.upper_bound_usd = EXACT.add(group.upper_bound_usd, upper_bound_usd)

    def totals(self) -> tuple[Totals, ...]:
        """The sums ordered by key; the one without a key comes last."""
        keys = sorted(self._groups, key=lambda key: (key is None, key or ""))
        return tuple(self._groups[key].totals(key) for key in keys)


class _Sum:
    """Of one key."""

    __slots__ = ("counts", "requests", "simulated", "tokens", *AMOUNTS)

    def __init__(self) -> None:
        self.counts = dict.fromkeys(EntryState, 0)
        self.requests = self.simulated = 0
        self.tokens = [0] * len(TOKEN_NAMES)
        self.cost_usd = self.simulated_usd = self.upper_bound_usd = self.replayed_usd = ZERO_USD

    def totals(self, key: str | None) -> Totals:
        return Totals(
            key=key,
            requests=self.requests,
            simulated=self.simulated,
            tokens=TokenCounts(**dict(zip(TOKEN_NAMES, self.tokens, strict=True))),
            cost_usd=plain(self.cost_usd),
            simulated_usd=plain(self.simulated_usd),
            upper_bound_usd=plain(self.upper_bound_usd),
            replayed_usd=plain(self.replayed_usd),
            **self.counts,
        )


def whole_of(groups: Iterable[Totals]) -> Totals:
    """What groups add up to."""
    counts: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    amounts = dict.fromkeys(AMOUNTS, ZERO_USD)
    tokens = dict.fromkeys(TOKEN_NAMES, 0)
    for group in groups:
        for name in COUNTS:
            counts[name] += getattr(group, name)
        for name in AMOUNTS:
            amounts[name] = EXACT.add(amounts[name], getattr(group, name))
        for name in TOKEN_NAMES:
            tokens[name] += getattr(group.tokens, name)
    counts |= {name: plain(usd) for name, usd in amounts.items()}
    return Totals(tokens=TokenCounts(**tokens), **counts)
