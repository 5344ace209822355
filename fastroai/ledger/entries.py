"""Ledger entries: one for each model request that was sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import reduce
from typing import TypeVar
from uuid import uuid4

from ..pricing.money import EXACT
from ..pricing.token_counts import TokenCounts

ValueT = TypeVar("ValueT", "Attribution", "LedgerEntry")


class EntryState(StrEnum):
    """What is known of a request.

    `CHARGED`: answered and priced. `UNPRICED`: answered, its price is unknown. `UNSETTLED`: sent,
    its outcome unknown (crash, timeout, cancellation, aborted stream). `REFUSED`: the provider said
    no and bills nothing. `REPLAYED`: taken from a record instead of being sent; not spend.
    """

    CHARGED = "charged"
    UNPRICED = "unpriced"
    UNSETTLED = "unsettled"
    REFUSED = "refused"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Whom a request is booked to."""

    run_id: str | None = None
    run_key: str | None = None
    """What the caller named the run by, the same over all executions that carry one piece of work
    to its end.
    """
    pipeline: str | None = None
    step_id: str | None = None
    item: str | None = None
    """Key of the item, of a mapped step."""
    attempt: int = 1
    """Attempt of the step, from 1."""
    dispatch: int = 0
    """Number of the agent call within the attempt, from 1; 0 outside a step."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What the caller books by: team, customer, project."""
    deployment: str | None = None
    """The deployment that the run belongs to, as `flow/deployment`."""
    flow_tags: tuple[str, ...] = ()
    """Tags of the flow run."""
    created_by: str | None = None
    """Who or what started the run, where Prefect knows, as `kind:name`: `schedule:nightly`."""

    def is_same_run(self, other: Attribution) -> bool:
        """Whether both are of executions of one run: of one flow run, or under one key."""
        if self.run_key is not None and self.run_key == other.run_key:
            return self.pipeline == other.pipeline
        return self.run_id is not None and self.run_id == other.run_id


def changed(value: ValueT, **changes: object) -> ValueT:
    """As `dataclasses.replace`, in less than half of the time: every step and request makes some.

    Raises:
        AttributeError: There is no such field.
    """
    copy = object.__new__(type(value))
    for name in value.__slots__:
        _set(copy, name, getattr(value, name))
    for name, new in changes.items():
        _set(copy, name, new)
    return copy


_set = object.__setattr__  # the dataclasses are frozen

DIMENSIONS = tuple(field.name for field in fields(Attribution) if field.type == "str | None")
"""What entries are booked by, each a text column of a ledger's tables, by which they are grouped
too. One more needs its field here and a migration; to select by it, its field in `LedgerFilter`.
"""

_NO_TOKENS = TokenCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One model request.

    It is written as `UNSETTLED` before the send and replaced by its outcome afterwards.
    """

    id: str = field(default_factory=lambda: str(uuid4()))
    state: EntryState = EntryState.UNSETTLED
    attribution: Attribution = Attribution()
    agent: str | None = None
    model_asked: str | None = None
    """`provider:model` as it was asked for."""
    model_answered: str | None = None
    """The model name in the response, often a dated version."""
    provider: str | None = None
    """Who answered, under pydantic-ai's name."""
    provider_host: str | None = None
    service_tier: str | None = None
    """The tier of the answer, or the one asked for while there is none."""
    sent_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    settled_at: datetime | None = None
    tokens: TokenCounts = _NO_TOKENS
    further_usage: Mapping[str, float] = field(default_factory=dict)
    """What else is billed or counted, under genai-prices' names: `cache_write_1h_tokens`,
    `web_searches`, seconds.
    """
    cost_usd: Decimal | None = None
    """USD, exact, fees included. None: not known."""
    request_fees_usd: Decimal | None = None
    """The part of `cost_usd` that is charged per request or search and not per token.

    None: not told apart.
    """
    cache_saved_usd: Decimal | None = None
    """What its cached tokens cost less than they would have outside of the cache, at the prices
    of the request; below 0: more. None: there are none, or nobody can say.
    """
    upper_bound_usd: Decimal | None = None
    """What the request can have cost at most, as far as that can be said.

    For one whose outcome is unknown.
    """
    price_source: str | None = None
    """Data set, version and matched model of the price, or which override."""
    price_version: str | None = None
    """Version of the data set that the price is from."""
    response_id: str | None = None
    replay_of: str | None = None
    """The entry that paid, for a `REPLAYED` one."""
    downgraded_from: str | None = None
    """The model that was to be asked, where a budget had another one take the request."""
    request_count: int = 1
    """Requests it stands for: more than one only when an agent that can not be metered reports a
    sum.
    """
    simulated: bool = False
    """Answered by an offline model: priced like the real one, but nothing was sent or paid."""
    error: str | None = None
    """Why the request was refused or its outcome is unknown."""

    def settled(self, state: EntryState, **changes: object) -> LedgerEntry:
        """This entry with its outcome, settled now."""
        return changed(self, state=state, settled_at=datetime.now(UTC), **changes)

    def replayed(self, attribution: Attribution) -> LedgerEntry:
        """A new entry that says this one's answer was used again, for nothing, under another
        attribution.
        """
        now = datetime.now(UTC)
        return replace(
            self,
            id=str(uuid4()),
            state=EntryState.REPLAYED,
            attribution=attribution,
            sent_at=now,
            settled_at=now,
            replay_of=self.replay_of or self.id,
        )

    @property
    def is_spend(self) -> bool:
        """Whether the request's cost counts: it was sent, and it was not refused."""
        return self.state in SPEND

    @property
    def is_billed(self) -> bool:
        """Whether a provider bills the request."""
        return self.is_spend and not self.simulated

    @property
    def model(self) -> str | None:
        """The model it is booked under: the one asked for, which stays the same whatever became of
        the request.
        """
        return self.model_asked or self.model_answered

    @property
    def answering_model(self) -> str | None:
        """The model that answered, or while that is not known the one asked for."""
        return self.model_answered or self.model_asked

    @property
    def answering_provider(self) -> str | None:
        """Who answered, or while that is not known was asked."""
        return self.provider or (self.model_asked or "").partition(":")[0] or None


NOT_SENT = "Not sent: "
"""How the `error` of a refused entry begins that did not get as far as a provider."""

SPEND = frozenset({EntryState.CHARGED, EntryState.UNPRICED, EntryState.UNSETTLED})
"""The states whose cost counts."""

ZERO_USD = Decimal(0)


def total_usd(entries: Iterable[LedgerEntry]) -> Decimal:
    """Known spend of the entries in USD, exact.

    Replayed and refused ones are no spend; unknown costs add nothing.
    """
    return reduce(EXACT.add, map(spend_of, entries), ZERO_USD)


def replays(entries: Iterable[LedgerEntry], attribution: Attribution) -> Iterator[LedgerEntry]:
    """The entries that say a record's answers are used again: one for each request that was paid
    for.

    In the record one may have been a replay already, of an answer that its step was given before it
    was interrupted.
    """
    paid = {
        entry.replay_of or entry.id: entry
        for entry in entries
        if entry.is_spend or entry.replay_of is not None
    }
    return (entry.replayed(attribution) for entry in paid.values())


def spend_of(entry: LedgerEntry | None) -> Decimal:
    """What is known to have been spent on an entry; nothing without one."""
    if entry is None or entry.cost_usd is None or not entry.is_spend:
        return ZERO_USD
    return entry.cost_usd
