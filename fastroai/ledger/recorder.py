"""The entries of one run, and the durable ledger behind them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from functools import cached_property
from operator import attrgetter
from typing import Protocol

from ..errors import CostBudgetExceededError, LedgerUnavailableError
from ..pricing.money import EXACT
from ..redaction import redact
from .entries import (
    NOT_SENT,
    ZERO_USD,
    Attribution,
    EntryState,
    LedgerEntry,
    replays,
    spend_of,
)
from .filters import LedgerFilter
from .history import WholeRun
from .telemetry import tell

_dispatch_of = attrgetter("step_id", "item", "attempt", "dispatch")


class DurableLedger(Protocol):
    """Where a run's entries outlive it; `LedgerStore` is one."""

    async def intend(self, entry: LedgerEntry) -> LedgerEntry: ...
    def settle(self, entry: LedgerEntry) -> None: ...
    async def flush(self) -> None: ...
    async def entries(self, selection: LedgerFilter) -> list[LedgerEntry]: ...
    def end_run(self, run: WholeRun) -> None: ...


class Nowhere:
    """Keeps nothing: the entries of such a run end with it."""

    async def intend(self, entry: LedgerEntry) -> LedgerEntry:
        return entry

    def settle(self, entry: LedgerEntry) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def entries(self, selection: LedgerFilter) -> list[LedgerEntry]:
        return []

    def end_run(self, run: WholeRun) -> None:
        pass


NOWHERE = Nowhere()


class Limits(Protocol):
    """Budgets that hold for a run; `RunLimits` is some."""

    async def admit(self, entry: LedgerEntry) -> LedgerEntry: ...
    def note(self, entry: LedgerEntry) -> None: ...
    def forget(self, entry: LedgerEntry) -> None: ...


class RequestRecorder:
    """The entries of one run, in the order in which they were sent. Recording an id again replaces
    its entry.

    Args:
        store: Where each entry is also written, the intent before its request is sent. None:
            nowhere.
        refuses_unpriced: Whether `FASTROAI_UNPRICED` is `fail`. None, for one made by
            hand: as it is when first asked.
    """

    def __init__(
        self, store: DurableLedger | None = None, *, refuses_unpriced: bool | None = None
    ) -> None:
        self._store = NOWHERE if store is None else store
        self.ledger_url: str | None = getattr(store, "url", None)
        self.is_durable = self._store is not NOWHERE
        """Whether entries outlive the process."""
        self.limits: Limits | None = None
        """What its requests must fit, and is told of each entry."""
        if refuses_unpriced is not None:
            self.refuses_unpriced = refuses_unpriced
        self._entries: dict[str, LedgerEntry] = {}
        self._by_step: dict[str | None, dict[str, None]] = {}
        self._by_item: dict[tuple[str | None, str], dict[str, None]] = {}
        self._by_dispatch: dict[tuple[str | None, str | None, int, int], list[str]] = {}
        self._step_usd: dict[str | None, Decimal] = {}
        self._usd = ZERO_USD
        self._noting = threading.Lock()
        self.unmetered: dict[str, dict[str, int]] = {}
        """By step and host, requests that were sent past all meters; `""` for no step."""

    @cached_property
    def refuses_unpriced(self) -> bool:
        """Whether a request without a known price is refused before it is sent.

        Raises:
            SettingsError: A variable has a value it may not have.
        """
        # A run hands it down; nothing did for a recorder that is made by hand.
        from ..settings import load_settings

        return load_settings().unpriced == "fail"

    def outside_of_run(self) -> RequestRecorder:
        """A recorder of the same store, for requests that are of no run."""
        return RequestRecorder(self._store, refuses_unpriced=self.refuses_unpriced)

    async def intend(self, entry: LedgerEntry) -> LedgerEntry:
        """Book a request that is about to be sent. A store has it on disk when this returns.

        When this raises, the request must not be sent, and it is booked as refused.

        Returns:
            Its entry; where it had to wait for a budget, as of now.

        Raises:
            CostBudgetExceededError: It does not fit a budget. It is not booked at all.
            LedgerUnavailableError: It can't be booked, and it is required that it is.
        """
        if self.limits is not None:
            entry = await self.limits.admit(entry)
        # Before the store has it: a run that is cancelled meanwhile tells of it all the same.
        self._note(entry)
        if not self.is_durable:
            return entry
        try:
            booked = await self._store.intend(entry)
        except CostBudgetExceededError:
            # A standing budget: the store did not book it, and it was not sent.
            self._forget(entry)
            raise
        except BaseException as error:
            # The one place that books so, whatever the store and its guards raise. A cancellation,
            # too: it may come after the intent was written, which then has its outcome.
            reason = f"{NOT_SENT}{type(error).__name__} while it was booked."
            state, settled_at = EntryState.REFUSED, entry.sent_at
            self.record(replace(entry, state=state, settled_at=settled_at, error=reason))
            raise
        if booked is not entry:  # it had to wait, and is sent later than was noted
            self._note(booked)
        return booked

    def record(self, entry: LedgerEntry) -> None:
        """Add a settled entry, or settle the one with the same id.

        Synchronous, so that a request can be settled while its coroutine is being cancelled or
        closed.
        """
        if entry.error is not None:
            entry = replace(entry, error=redact(entry.error))
        before = self._note(entry)
        self._store.settle(entry)
        tell(entry, before)

    def restate(self, entries: Iterable[LedgerEntry]) -> None:
        """Have the store know what a record says of earlier requests: a crash may have come before
        they were settled.

        They are no entries of this run.
        """
        for entry in entries:
            if self.limits is not None:
                self.limits.note(entry)
            self._store.settle(entry)

    def replay(
        self, entries: Sequence[LedgerEntry], attribution: Attribution
    ) -> tuple[LedgerEntry, ...]:
        """Book that what earlier requests paid for is used again: no new spend.

        Returns:
            The entries that say so, one for each request that was paid for.
        """
        if not entries:
            return ()
        self.restate(entry for entry in entries if entry.attribution.is_same_run(attribution))
        again = tuple(replays(entries, attribution))
        for entry in again:
            self.record(entry)
        return again

    def adopt(self, entries: Iterable[LedgerEntry]) -> None:
        """Count entries as this run's that another process has booked for it; the store has
        them.
        """
        for entry in entries:
            self._note(entry)

    async def flush(self) -> None:
        """Wait until the store has all entries, or keeps them to write later; its own warning then
        says so.
        """
        with suppress(LedgerUnavailableError):
            await self._store.flush()

    def notice(self, step_id: str | None, host: str) -> int:
        """Count a request that was sent past all meters.

        Returns:
            How many there are now of this step to this host.
        """
        with self._noting:
            hosts = self.unmetered.setdefault(step_id or "", {})
            hosts[host] = hosts.get(host, 0) + 1
            return hosts[host]

    def end_run(self, run: WholeRun) -> None:
        """Note that a run has ended whose steps all ended well."""
        self._store.end_run(run)

    async def stored(self, where: LedgerFilter) -> list[LedgerEntry]:
        """What the store has, of other runs too; nothing where there is none.

        Raises:
            LedgerUnavailableError: It can't be read.
        """
        return await self._store.entries(where)

    def _note(self, entry: LedgerEntry) -> LedgerEntry | None:
        """Have the entry as it is now; returns it as it was before."""
        step_id, item = entry.attribution.step_id, entry.attribution.item
        with self._noting:  # an executor may run its steps in threads
            before = self._entries.get(entry.id)
            self._entries[entry.id] = entry
            if before is None:
                self._by_step.setdefault(step_id, {})[entry.id] = None
                if item is not None:
                    self._by_item.setdefault((step_id, item), {})[entry.id] = None
                self._by_dispatch.setdefault(_dispatch_of(entry.attribution), []).append(entry.id)
            elif before.attribution is not entry.attribution:
                self._move(entry.id, before.attribution, entry.attribution)
            is_about_to_be_sent = entry.cost_usd is None and before is None
            if not is_about_to_be_sent and (
                more := EXACT.subtract(spend_of(entry), spend_of(before))
            ):
                self._step_usd[step_id] = EXACT.add(self._step_usd.get(step_id, ZERO_USD), more)
                self._usd = EXACT.add(self._usd, more)
        if self.limits is not None:
            self.limits.note(entry)
        return before

    def _forget(self, entry: LedgerEntry) -> None:
        """Have no entry of a request that was not sent."""
        at = entry.attribution
        with self._noting:
            del self._entries[entry.id]
            del self._by_step[at.step_id][entry.id]
            if at.item is not None:
                del self._by_item[at.step_id, at.item][entry.id]
            self._by_dispatch[_dispatch_of(at)].remove(entry.id)
        if self.limits is not None:
            self.limits.forget(entry)

    def _move(self, entry_id: str, before: Attribution, now: Attribution) -> None:
        """A later attempt of a step waits for what an earlier one sent."""
        if _dispatch_of(before) != _dispatch_of(now):
            self._by_dispatch[_dispatch_of(before)].remove(entry_id)
            self._by_dispatch.setdefault(_dispatch_of(now), []).append(entry_id)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """All entries so far."""
        return tuple(self._entries.values())

    def of_ids(self, ids: Iterable[str]) -> tuple[LedgerEntry, ...]:
        """What is known of some entries now."""
        return tuple(map(self._entries.__getitem__, ids))

    @property
    def step_ids(self) -> tuple[str, ...]:
        """The steps that have entries, in the order of their first ones."""
        step_ids = tuple(self._by_step)  # at once: another thread may add one
        return tuple(step_id for step_id in step_ids if step_id is not None)

    def of_step(self, step_id: str | None) -> tuple[LedgerEntry, ...]:
        """The entries booked to one step."""
        ids = self._by_step.get(step_id)
        return self.of_ids(tuple(ids)) if ids else ()

    def of_item(self, step_id: str, item: str) -> tuple[LedgerEntry, ...]:
        """The entries booked to one item of a mapped step."""
        return tuple(map(self._entries.__getitem__, tuple(self._by_item.get((step_id, item), ()))))

    def of_dispatch(self, attribution: Attribution) -> tuple[LedgerEntry, ...]:
        """The entries booked to one agent call, those of agents that its tools called included."""
        ids = self._by_dispatch.get(_dispatch_of(attribution), ())
        return tuple(map(self._entries.__getitem__, ids))

    def spent_usd(self, step_id: str | None = None) -> Decimal:
        """Known spend in USD, exact: of one step, or of the whole run when no step is named."""
        return self._usd if step_id is None else self._step_usd.get(step_id, ZERO_USD)
