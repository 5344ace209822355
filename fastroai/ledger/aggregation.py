"""Sums of ledger entries, in total and in groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date
from decimal import Decimal, localcontext
from itertools import islice, product
from operator import attrgetter
from typing import Any

from ..pricing.money import EXACT, plain
from ..pricing.token_counts import TokenCounts
from .entries import DIMENSIONS, SPEND, ZERO_USD, EntryState, LedgerEntry

_NO_TOKENS = TokenCounts()
TOKEN_NAMES = tuple(field.name for field in fields(TokenCounts))

GroupKey = str | None | tuple[str | None, ...]
"""What the entries of a group have in common: one value, or one for each of several dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sum of some entries. Counts are of requests; amounts are exact USD.

    Attributes:
        key: What the entries have in common: a run, a model, a day. None: they have none, all
            were summed, or they are grouped by several dimensions.
        keys: By several dimensions: their values, in the order that was asked for.
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
        cache_saved_usd: What cached tokens cost less than they would have outside of the cache, as
            far as that is known; below 0: more.
        cache_priced_tokens: The cached tokens of which it is known.
    """

    key: str | None = None
    keys: tuple[str | None, ...] = ()
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
    cache_saved_usd: Decimal = ZERO_USD
    cache_priced_tokens: int = 0

    @property
    def cached_tokens(self) -> int:
        """Tokens that were read from a cache or written to it."""
        return self.tokens.cache_read_tokens + self.tokens.cache_write_tokens

    @property
    def sent(self) -> int:
        """Requests that count as spend."""
        return self.charged + self.unknown

    @property
    def unknown(self) -> int:
        """Those of them whose cost is not known, or not in full."""
        return self.unpriced + self.unsettled

    @property
    def share_priced(self) -> float | None:
        """Share of the requests that count as spend whose cost is known in full.

        None: there are none.
        """
        return self.charged / self.sent if self.sent else None


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
AMOUNTS = ("cost_usd", "simulated_usd", "upper_bound_usd", "replayed_usd", "cache_saved_usd")


@dataclass(frozen=True, slots=True)
class Measure:
    """What a field of `Totals` is the sum of: one number of the entries in some states.

    Attributes:
        number: `requests`, a count of tokens, `cost` or `upper_bound`.
        of_simulated: Whether only simulated entries count.
    """

    number: str
    states: frozenset[EntryState]
    of_simulated: bool = False


_SENT = frozenset(EntryState) - {EntryState.REPLAYED}
_OF_COUNTS = {
    "requests": Measure("requests", _SENT),
    **{state.value: Measure("requests", frozenset({state})) for state in EntryState},
    "simulated": Measure("requests", _SENT, of_simulated=True),
}
MEASURES: dict[str, Measure] = {
    **{name: _OF_COUNTS[name] for name in COUNTS},
    **{name: Measure(name, SPEND) for name in TOKEN_NAMES},
    "cache_priced_tokens": Measure("cache_priced", SPEND),
    "cost_usd": Measure("cost", SPEND),
    "simulated_usd": Measure("cost", SPEND, of_simulated=True),
    "upper_bound_usd": Measure("upper_bound", frozenset({EntryState.UNSETTLED})),
    "replayed_usd": Measure("cost", frozenset({EntryState.REPLAYED})),
    "cache_saved_usd": Measure("cache_saved", SPEND),
}
"""What each sum of `Totals` is made of: of `COUNTS`, `TOKEN_NAMES` and `AMOUNTS`, in this order.
The only place that says which state counts as what.
"""
AMOUNTS_AT = len(MEASURES) - len(AMOUNTS)
"""Where among these the amounts begin."""


def measures_with(state: EntryState, simulated: bool) -> Iterator[tuple[int, str]]:
    """The measures that entries of a state count in: their places, and the numbers they take."""
    for place, measure in enumerate(MEASURES.values()):
        if state in measure.states and (simulated or not measure.of_simulated):
            yield place, measure.number


_MEASURES_WITH = {
    (state, simulated): tuple(measures_with(state, simulated))
    for state in EntryState
    for simulated in (False, True)
}
_WITHOUT_TOKENS = (*COUNTS, "cache_priced_tokens", *AMOUNTS)
_NOTHING = [*[0] * AMOUNTS_AT, *[ZERO_USD] * len(AMOUNTS)]


def totals_from(key: GroupKey, sums: Sequence[Any]) -> Totals:
    """The sum of some entries out of what `MEASURES` has of it, in its order."""
    # A large ledger has tens of thousands of groups: as few calls for each as can be.
    tokens = dict(zip(TOKEN_NAMES, sums[len(COUNTS) :], strict=False))
    others = [*sums[: len(COUNTS)], *sums[AMOUNTS_AT - 1 :]]
    return Totals(
        key=None if isinstance(key, tuple) else key,
        keys=key if isinstance(key, tuple) else (),
        tokens=TokenCounts(**tokens),
        **dict(zip(_WITHOUT_TOKENS, others, strict=True)),
    )


def in_order(keys: Iterable[GroupKey]) -> list[GroupKey]:
    """Keys as groups are ordered by them; none at all comes last."""
    return sorted(keys, key=_by_value)


def _by_value(key: GroupKey) -> list[tuple[bool, str]]:
    values = key if isinstance(key, tuple) else (key,)
    return [(value is None, value or "") for value in values]


def totals_of(entries: Iterable[LedgerEntry], by: str | None = None) -> tuple[Totals, ...]:
    """Sum entries in groups, ordered by key; one sum of all when not grouped.

    Args:
        entries: Any entries, for example `PipelineResult.entries`.
        by: `run`, `run_key`, `pipeline`, `step` (as `pipeline/step`), `agent`, `model`, `provider`,
            `deployment`, `created_by`, `day` (UTC), `tag`, or `tag:NAME` for the values of one
            tag; or several of them, divided by commas. By `tag`, an entry is in the group of each
            of its tags, so the groups add up to more than the whole.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    keys, groups = grouping(by), dict[GroupKey, list[Any]]()
    with localcontext(EXACT):
        for entry in entries:
            numbers = _numbers_of(entry)
            for key in keys(entry):
                sums = groups.setdefault(key, _NOTHING.copy())
                for place, number in _MEASURES_WITH[entry.state, bool(entry.simulated)]:
                    sums[place] += numbers[number]
    if not groups and by is None:
        return (Totals(),)
    for sums in groups.values():
        sums[AMOUNTS_AT:] = map(plain, sums[AMOUNTS_AT:])
    return tuple(totals_from(key, groups[key]) for key in in_order(groups))


def _numbers_of(entry: LedgerEntry) -> dict[str, Any]:
    """What measures take of an entry."""
    tokens = {name: getattr(entry.tokens, name) for name in TOKEN_NAMES}
    is_known = entry.cache_saved_usd is not None
    tokens["cache_priced"] = (
        entry.tokens.cache_read_tokens + entry.tokens.cache_write_tokens if is_known else 0
    )
    amounts = {
        "cache_saved": entry.cache_saved_usd or ZERO_USD,
        "cost": entry.cost_usd or ZERO_USD,
        "upper_bound": entry.upper_bound_usd or ZERO_USD,
    }
    return {"requests": entry.request_count, **tokens, **amounts}


@dataclass(frozen=True, slots=True)
class Grouping:
    """How entries are grouped.

    Attributes:
        parts: Names of what the keys are made of: a dimension, a column of the ledger, or a part
            of `part_of`.
        keys: From the values of these, the keys of the groups that an entry is in.
    """

    parts: tuple[str, ...]
    keys: Callable[..., tuple[GroupKey, ...]]

    def __call__(self, entry: LedgerEntry) -> tuple[GroupKey, ...]:
        return self.keys(*(part_of(entry, name) for name in self.parts))


def part_of(entry: LedgerEntry, name: str) -> Any:
    """One value of an entry that keys are made of."""
    if name == "day":
        return entry.sent_at.astimezone(UTC).date()
    holder = entry if hasattr(entry, name) else entry.attribution
    return getattr(holder, name)


def grouping(by: str | Grouping | None) -> Grouping:
    """How entries are grouped by a name, or by several with commas; by None, all are one group.

    Raises:
        ValueError: Entries can't be grouped so.
    """
    if isinstance(by, Grouping):
        return by
    if by is None:
        return Grouping((), lambda: (None,))
    names = dimensions_of(by)
    if len(set(names)) < len(names):
        raise ValueError(f"Entries can't be grouped by {by!r}: it names one dimension twice.")
    found = list(map(_grouping_by, names))
    return found[0] if len(found) == 1 else _combined(found)


def dimensions_of(by: str) -> tuple[str, ...]:
    """The names that are divided by commas. A comma that no known name follows belongs to a tag's
    name.
    """
    names: list[str] = []
    for part in by.split(","):
        name = part.strip()
        is_known = name in GROUPINGS or name.startswith("tag:")
        if not is_known and names and names[-1].startswith("tag:"):
            names[-1] += f",{part}"
        else:
            names.append(name)
    return tuple(names)


def _grouping_by(name: str) -> Grouping:
    if name.startswith("tag:"):
        tag = name.removeprefix("tag:")
        return Grouping(("tags",), lambda tags: (tags.get(tag),))
    if name not in GROUPINGS:
        raise ValueError(
            f"Entries can't be grouped by {name!r}. Allowed: {', '.join(GROUPINGS)}, tag:NAME."
        )
    return GROUPINGS[name]


def _combined(groupings: Sequence[Grouping]) -> Grouping:
    """By several dimensions: the keys have a value of each."""

    def keys(*values: Any) -> tuple[GroupKey, ...]:
        rest = iter(values)
        of_each = (each.keys(*islice(rest, len(each.parts))) for each in groupings)
        return tuple(product(*of_each))  # type: ignore[arg-type]  # each is of one dimension

    return Grouping(tuple(part for each in groupings for part in each.parts), keys)


def _one_key(value: str | None) -> tuple[GroupKey, ...]:
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


def whole_of(groups: Collection[Totals]) -> Totals:
    """What groups add up to."""
    counts = (*COUNTS, "cache_priced_tokens")
    sums: dict[str, Any] = {name: sum(map(attrgetter(name), groups)) for name in counts}
    with localcontext(EXACT):
        for name in AMOUNTS:
            sums[name] = plain(sum(map(attrgetter(name), groups), ZERO_USD))
    tokens = {name: sum(map(attrgetter(f"tokens.{name}"), groups)) for name in TOKEN_NAMES}
    return Totals(tokens=TokenCounts(**tokens), **sums)
