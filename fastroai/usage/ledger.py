"""The ledger: one entry for each model request that was really sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from enum import StrEnum
from functools import cached_property
from typing import Protocol
from uuid import uuid4

from ..errors import LedgerUnavailableError
from .units import EXACT


class EntryState(StrEnum):
    """What is known of a request.

    `CHARGED`: answered and priced. `UNPRICED`: answered, its price is unknown. `UNSETTLED`: sent, its outcome unknown
    (crash, timeout, cancellation, aborted stream). `REFUSED`: the provider said no and bills nothing. `REPLAYED`: taken
    from a record instead of being sent; not spend.
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
    """What the caller named the run by, the same over all executions that carry one piece of work to its end."""
    pipeline: str | None = None
    step_id: str | None = None
    attempt: int = 1
    """Attempt of the step, from 1."""
    dispatch: int = 0
    """Number of the agent call within the attempt, from 1; 0 outside a step."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """What the caller books by: team, customer, project."""
    deployment: str | None = None
    """Name of the deployment that the run belongs to."""
    flow_tags: tuple[str, ...] = ()
    """Tags of the flow run."""

    def is_same_run(self, other: Attribution) -> bool:
        """Whether both are of executions of one run: of one flow run, or under one key."""
        if self.run_key is not None and self.run_key == other.run_key:
            return self.pipeline == other.pipeline
        return self.run_id is not None and self.run_id == other.run_id

    def of_step(self, step_id: str, attempt: int, dispatch: int) -> Attribution:
        """The same run's, for a dispatch of one of its steps."""
        # Every step makes one: `replace` would take several times as long.
        return Attribution(
            run_id=self.run_id,
            run_key=self.run_key,
            pipeline=self.pipeline,
            step_id=step_id,
            attempt=attempt,
            dispatch=dispatch,
            tags=self.tags,
            deployment=self.deployment,
            flow_tags=self.flow_tags,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one request. `input_tokens` includes cached and audio ones, `output_tokens` includes audio ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_audio_read_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One model request. It is written as `UNSETTLED` before the send and replaced by its outcome afterwards."""

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
    tokens: TokenCounts = TokenCounts()
    further_usage: Mapping[str, float] = field(default_factory=dict)
    """What else is billed or counted, under genai-prices' names: `cache_write_1h_tokens`, `web_searches`, seconds."""
    cost_usd: Decimal | None = None
    """USD, exact, fees included. None: not known."""
    request_fees_usd: Decimal | None = None
    """The part of `cost_usd` that is charged per request or search and not per token. None: not told apart."""
    upper_bound_usd: Decimal | None = None
    """What the request can have cost at most, as far as that can be said. For one whose outcome is unknown."""
    price_source: str | None = None
    """Data set, version and matched model of the price, or which override."""
    price_version: str | None = None
    """Version of the data set that the price is from."""
    response_id: str | None = None
    replay_of: str | None = None
    """The entry that paid, for a `REPLAYED` one."""
    request_count: int = 1
    """Requests it stands for: more than one only when an agent that can not be metered reports a sum."""
    simulated: bool = False
    """Answered by an offline model: priced like the real one, but nothing was sent or paid."""
    error: str | None = None
    """Why the request was refused or its outcome is unknown."""

    def settled(self, state: EntryState, **changes: object) -> LedgerEntry:
        """This entry with its outcome, settled now."""
        return replace(self, state=state, settled_at=datetime.now(UTC), **changes)  # type: ignore[arg-type]  # kwargs of replace

    def not_sent(self, error: BaseException) -> LedgerEntry:
        """This entry when booking it failed, so that its request was not sent. The same whoever says so."""
        reason = f"{NOT_SENT}{type(error).__name__} while it was booked."
        return replace(self, state=EntryState.REFUSED, settled_at=self.sent_at, error=reason)

    def replayed(self, attribution: Attribution) -> LedgerEntry:
        """A new entry that says this one's answer was used again, for nothing, under another attribution."""
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
    def model(self) -> str | None:
        """The model it is booked under: the one asked for, which stays the same whatever became of the request."""
        return self.model_asked or self.model_answered


NOT_SENT = "Not sent: "
"""How the `error` of a refused entry begins that did not get as far as a provider."""

SPEND = frozenset({EntryState.CHARGED, EntryState.UNPRICED, EntryState.UNSETTLED})
"""The states whose cost counts."""


_NOTHING = Decimal(0)


def total_usd(entries: Iterable[LedgerEntry]) -> Decimal:
    """Known spend of the entries in USD, exact. Replayed and refused ones are no spend; unknown costs add nothing."""
    with localcontext(EXACT):
        return sum(map(_spent, entries), _NOTHING)


def replays(entries: Iterable[LedgerEntry], attribution: Attribution) -> Iterator[LedgerEntry]:
    """The entries that say a record's answers are used again: one for each request that was paid for.

    In the record one may have been a replay already, of an answer that its step was given before it was interrupted.
    """
    paid = {entry.replay_of or entry.id: entry for entry in entries if entry.is_spend or entry.replay_of is not None}
    return (entry.replayed(attribution) for entry in paid.values())


class DurableLedger(Protocol):
    """Where a run's entries outlive it; `LedgerStore` is one."""

    async def intend(self, entry: LedgerEntry) -> None: ...
    def settle(self, entry: LedgerEntry) -> None: ...
    async def flush(self) -> None: ...


class RunLedger:
    """The entries of one run, in the order in which they were sent. Recording an id again replaces its entry.

    Args:
        store: Where each entry is also written, the intent before its request is sent. None: nowhere.
    """

    def __init__(self, store: DurableLedger | None = None) -> None:
        self._store = store
        self._entries: dict[str, LedgerEntry] = {}
        self._by_step: dict[str | None, dict[str, None]] = {}
        self._by_dispatch: dict[tuple[str | None, int, int], list[str]] = {}
        self._step_usd: dict[str | None, Decimal] = {}
        self._usd = _NOTHING

    @property
    def is_durable(self) -> bool:
        """Whether entries outlive the process."""
        return self._store is not None

    @cached_property
    def refuses_unpriced(self) -> bool:
        """Whether `FASTROAI_UNPRICED` is `fail`, as it was when the run first asked.

        Raises:
            SettingsError: A variable has a value it may not have.
        """
        from ..settings import load_settings  # only here: pydantic-settings takes its time to import

        return load_settings().unpriced == "fail"

    async def intend(self, entry: LedgerEntry) -> None:
        """Book a request that is about to be sent. A store has it on disk when this returns.

        Raises:
            LedgerUnavailableError: It can't be booked, and it is required that it is. The request must not be sent.
        """
        self._note(entry)
        if self._store is None:
            return
        try:
            await self._store.intend(entry)
        except BaseException as error:
            # The store books the same, as soon as it can.
            self._note(entry.not_sent(error))
            raise

    def record(self, entry: LedgerEntry) -> None:
        """Add a settled entry, or settle the one with the same id.

        Synchronous, so that a request can be settled while its coroutine is being cancelled or closed.
        """
        self._note(entry)
        if self._store is not None:
            self._store.settle(entry)

    def restate(self, entries: Iterable[LedgerEntry]) -> None:
        """Have the store know what a record says of earlier requests: a crash may have come before they were settled.

        They are no entries of this run.
        """
        if self._store is not None:
            for entry in entries:
                self._store.settle(entry)

    async def flush(self) -> None:
        """Wait until the store has all entries, or keeps them to write later; its own warning then says so."""
        if self._store is not None:
            with suppress(LedgerUnavailableError):
                await self._store.flush()

    def _note(self, entry: LedgerEntry) -> None:
        step_id = entry.attribution.step_id
        before = self._entries.get(entry.id)
        delta = EXACT.subtract(_spent(entry), _spent(before))
        self._entries[entry.id] = entry
        if before is None:
            self._by_step.setdefault(step_id, {})[entry.id] = None
            self._by_dispatch.setdefault(_dispatch_key(entry.attribution), []).append(entry.id)
        self._step_usd[step_id] = EXACT.add(self._step_usd.get(step_id, _NOTHING), delta)
        self._usd = EXACT.add(self._usd, delta)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries so far."""
        return tuple(self._entries.values())

    def of_ids(self, ids: Iterable[str]) -> tuple[LedgerEntry, ...]:
        """What is known of some entries now."""
        return tuple(self._entries[id_] for id_ in ids)

    @property
    def step_ids(self) -> tuple[str, ...]:
        """The steps that have entries, in the order of their first ones."""
        return tuple(step_id for step_id in self._by_step if step_id is not None)

    def of_step(self, step_id: str | None) -> tuple[LedgerEntry, ...]:
        """The entries booked to one step."""
        return tuple(self._entries[id_] for id_ in self._by_step.get(step_id, ()))

    def of_dispatch(self, attribution: Attribution) -> tuple[LedgerEntry, ...]:
        """The entries booked to one agent call, those of agents that its tools called included."""
        return tuple(self._entries[id_] for id_ in self._by_dispatch.get(_dispatch_key(attribution), ()))

    def spent_usd(self, step_id: str | None = None) -> Decimal:
        """Known spend in USD, exact: of one step, or of the whole run when no step is named."""
        return self._usd if step_id is None else self._step_usd.get(step_id, _NOTHING)


def _spent(entry: LedgerEntry | None) -> Decimal:
    return entry.cost_usd if entry is not None and entry.is_spend and entry.cost_usd is not None else _NOTHING


def _dispatch_key(attribution: Attribution) -> tuple[str | None, int, int]:
    return attribution.step_id, attribution.attempt, attribution.dispatch
