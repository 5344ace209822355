"""The budgets of one run and of its steps, which its process keeps by itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from ..errors import CostBudgetExceededError
from ..ledger.entries import Attribution, LedgerEntry
from .account import Account, Charge, Kind, Verdict, charge_of, unheld
from .budget import Budget, counts
from .refusals import WAITS_FOR_ITSELF, refusal, why_refused
from .signals import BudgetSignal, emit, share_reached

logger = logging.getLogger("fastroai.usage")

_deciding = threading.Lock()
"""Held while accounts are read and changed: a request may be of several runs, one in another."""
_warned: set[tuple[str, str | None]] = set()
"""Budgets and models of which it was said that one does not see the other; of the process."""


class Limit:
    """One budget of a run or a step: its account, and who waits for it.

    Attributes:
        scope: Whose it is.
        owner: The step's id, or the pipeline's name.
    """

    def __init__(self, budget: Budget, scope: Literal["run", "step"], owner: str | None) -> None:
        self.budget = budget
        self.scope = scope
        self.owner = owner
        self.account = Account()
        self.queue: dict[_Waiter, None] = {}
        self._charges: dict[str, Charge] = {}
        self._holders: dict[str, object] = {}

    @property
    def name(self) -> str:
        """The budget's, or else whose it is."""
        return self.budget.name or self.owner or self.scope

    def charge(self, entry: LedgerEntry, charge: Charge | None) -> None:
        """Count an entry as it is now, instead of as it was before."""
        before = self._charges.pop(entry.id, None)
        self._holders.pop(entry.id, None)
        if before is not None:
            self.account.remove(before)
        if charge is not None:
            self._charges[entry.id] = charge
            self.account.add(charge)
            if charge.kind is Kind.HELD:
                self._holders[entry.id] = _current_task()

    def is_held_by(self, tasks: set[object]) -> bool:
        """Whether all that is held is by some tasks."""
        return tasks.issuperset(self._holders.values())

    def signal(
        self, kind: Literal["warning", "exceeded"], at: Attribution, share: Decimal | None = None
    ) -> BudgetSignal:
        """What listeners are told of it now."""
        account = self.account
        return BudgetSignal(
            kind=kind,
            scope=self.scope,
            budget=self.budget,
            name=self.name,
            spent=account.spent,
            held=account.held,
            unknown=account.unknown,
            share=share,
            at=at,
        )


@dataclass(frozen=True, slots=True)
class _Refused:
    limit: Limit
    reason: str | None = None


Decision = _Refused | Verdict


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request that waits until it is decided."""

    entry: LedgerEntry
    limits: Sequence[Limit]
    future: asyncio.Future[Decision]
    task: object = field(default_factory=lambda: _current_task())

    def resolve(self, decision: Decision) -> None:
        """Let it go on in its own loop, or say why not."""
        loop = self.future.get_loop()
        loop.call_soon_threadsafe(_set_result, self.future, decision)


class RunLimits:
    """The budgets that hold for the requests of one run.

    They know the entries that they are told of by `note`, each counted once by its id. Works from
    any thread and event loop.

    Args:
        run: The run's own.
        name: The pipeline's name.
        around: Limits of a run in one of whose steps this one runs.
    """

    def __init__(
        self,
        run: Iterable[Budget] = (),
        *,
        name: str | None = None,
        around: Iterable[Limit] = (),
    ) -> None:
        self._common = (*(Limit(budget, "run", name) for budget in run), *around)
        self._steps: dict[str, tuple[Limit, ...]] = {}
        self._of_each_item: dict[str, tuple[Budget, ...]] = {}
        self._items: dict[tuple[str, str], tuple[Limit, ...]] = {}
        self._known: dict[str, LedgerEntry] = {}

    def limit_step(self, step_id: str, budgets: Iterable[Budget]) -> None:
        """Give a step budgets of its own, besides those that it has."""
        known = self._steps.get(step_id, ())
        have = {limit.budget for limit in known}
        new = tuple(Limit(budget, "step", step_id) for budget in budgets if budget not in have)
        if not new:
            return
        with _deciding:
            self._steps[step_id] = (*known, *new)
            for entry in self._known.values():
                if entry.attribution.step_id == step_id:
                    _charge(entry, new)

    def of_step(self, step_id: str | None) -> tuple[Limit, ...]:
        """All that hold for a step's requests: its own first, then the run's."""
        own = self._steps.get(step_id, ()) if step_id is not None else ()
        return (*own, *self._common)

    def limit_items(self, step_id: str, budgets: Iterable[Budget]) -> None:
        """Give each item of a mapped step budgets of its own."""
        self._of_each_item[step_id] = tuple(budgets)

    def of(self, at: Attribution) -> tuple[Limit, ...]:
        """All that hold for a request: of its item, its step, the run."""
        if at.item is None or at.step_id not in self._of_each_item:
            return self.of_step(at.step_id)
        of_item = self._items.get((at.step_id, at.item))
        if of_item is None:
            owner, budgets = f"{at.step_id}[{at.item}]", self._of_each_item[at.step_id]
            made = tuple(Limit(budget, "step", owner) for budget in budgets)
            of_item = self._items.setdefault((at.step_id, at.item), made)
        return (*of_item, *self.of_step(at.step_id))

    def require(self, at: Attribution) -> None:
        """Refuse a call of an agent before it begins, where no request of it could be sent.

        Raises:
            CostBudgetExceededError: What is spent or unknown has reached a limit.
        """
        for limit in self.of(at):
            is_hard = limit.budget.at_limit != "downgrade"
            if is_hard and limit.account.settled >= limit.budget.usd:
                raise _error(_Refused(limit), at)

    async def admit(self, entry: LedgerEntry) -> LedgerEntry:
        """Hold what a request can cost at most, or wait until that fits.

        Returns:
            Its entry; where it had to wait, as of now.

        Raises:
            CostBudgetExceededError: It does not fit, and never will.
        """
        limits = self.of(entry.attribution)
        if not limits or not counts(entry):
            return entry
        with _deciding:
            decision = _decide(entry, limits, None)
            if decision is Verdict.WAITS:
                waiter = _Waiter(entry, limits, asyncio.get_running_loop().create_future())
                decision = _enqueue(waiter)
        if decision is Verdict.WAITS:
            decision = await self._wait(waiter)
            # It is sent now, and not when it began to wait: by that it is priced and summed up.
            entry = replace(entry, sent_at=datetime.now(UTC))
        if isinstance(decision, _Refused):
            raise _error(decision, entry.attribution)
        return entry

    async def _wait(self, waiter: _Waiter) -> Decision:
        try:
            return await waiter.future
        except BaseException:
            # It may have been admitted in the moment in which it was cancelled: it holds nothing
            # then, and others may have it.
            with _deciding:
                _leave(waiter)
                _charge(waiter.entry, waiter.limits, forget=True)
                _advance(waiter.limits)
            raise

    def note(self, entry: LedgerEntry) -> None:
        """Count an entry as it is known now. Synchronous, as all booking is."""
        limits = self.of(entry.attribution)
        self._known[entry.id] = entry
        with _deciding:
            signals = _charge(entry, limits)
            _advance(limits)
        # Without the lock: a listener may send a request, which asks these budgets.
        for signal in signals:
            emit(signal)

    def note_earlier(self, entries: Iterable[LedgerEntry]) -> None:
        """Count what earlier executions of the run have booked. What has no outcome is unknown."""
        with _deciding:
            for entry in entries:
                if entry.id not in self._known:
                    self._known[entry.id] = entry
                    _charge(entry, self.of(entry.attribution), is_over=True)

    def forget(self, entry: LedgerEntry) -> None:
        """Count a request no longer that was not sent after all."""
        limits = self.of(entry.attribution)
        self._known.pop(entry.id, None)
        with _deciding:
            _charge(entry, limits, forget=True)
            _advance(limits)


def _charge(
    entry: LedgerEntry, limits: Sequence[Limit], *, forget: bool = False, is_over: bool = False
) -> list[BudgetSignal]:
    """Count an entry in some accounts; what that makes worth telling.

    Args:
        forget: Count it no longer.
        is_over: Whoever sent it is gone.
    """
    signals = []
    for limit in limits:
        before = limit.account.settled
        charge = None if forget else charge_of(entry, limit.budget)
        if is_over:
            charge = unheld(charge)
        limit.charge(entry, charge)
        share = share_reached(limit.budget, before, limit.account)
        if share is not None:
            signals.append(limit.signal("warning", entry.attribution, share))
        if charge is not None and charge.kind is Kind.UNKNOWN:
            _warn_of_unseen(limit, entry)
    return signals


def _warn_of_unseen(limit: Limit, entry: LedgerEntry) -> None:
    if limit.budget.bound_of(entry) is not None or entry.cost_usd is not None:
        return
    if (limit.name, entry.model) not in _warned:
        _warned.add((limit.name, entry.model))
        logger.warning(
            "The budget of %s %r does not see what requests to %r cost: %s. Set their price "
            "(FASTROAI_PRICES), or the budget's max_request_usd, or FASTROAI_UNPRICED=fail to "
            "refuse them.",
            limit.scope,
            limit.name,
            entry.model,
            entry.error or "it is unknown",
        )


def _decide(entry: LedgerEntry, limits: Sequence[Limit], waiter: _Waiter | None) -> Decision:
    """What becomes of a request now; if it is admitted, its amount is held."""
    waits = False
    for limit in limits:
        budget = limit.budget
        if budget.has_downgraded(entry):
            continue
        verdict = limit.account.verdict(budget, budget.bound_of(entry))
        if verdict is Verdict.REFUSED:
            return _Refused(limit, why_refused(budget, budget.bound_of(entry)))
        # Who fits, but came later than one that waits, must not take its room again and again.
        is_behind = next(iter(limit.queue), waiter) is not waiter
        waits |= verdict is Verdict.WAITS or (is_behind and budget.strength == "reserved")
    if waits:
        return Verdict.WAITS
    # Only once all let it pass: what one of them refuses must not be held by another.
    for limit in limits:
        limit.charge(entry, charge_of(entry, limit.budget))
    return Verdict.ADMITTED


def _enqueue(waiter: _Waiter) -> Decision:
    """Have a request wait, unless all that it would wait for waits itself."""
    for limit in waiter.limits:
        tasks = {waiter.task, *(other.task for other in limit.queue)}
        verdict = limit.account.verdict(limit.budget, limit.budget.bound_of(waiter.entry))
        if verdict is Verdict.WAITS and limit.is_held_by(tasks):
            return _Refused(limit, WAITS_FOR_ITSELF)
    for limit in waiter.limits:
        limit.queue[waiter] = None
    return Verdict.WAITS


def _leave(waiter: _Waiter) -> None:
    for limit in waiter.limits:
        limit.queue.pop(waiter, None)


def _advance(limits: Iterable[Limit]) -> None:
    """Decide those who wait for some limits, in their order, as far as can be decided now."""
    changed = [limit for limit in limits if limit.queue]
    while changed:
        for waiter in _heads(changed.pop()):
            if not waiter.future.done():
                decision = _decide(waiter.entry, waiter.limits, waiter)
                if decision is Verdict.WAITS:
                    break
                waiter.resolve(decision)
            _leave(waiter)
            # Where it was the first, too, there is another one now.
            changed += [limit for limit in waiter.limits if limit.queue and limit not in changed]


def _heads(limit: Limit) -> Iterator[_Waiter]:
    while limit.queue:
        yield next(iter(limit.queue))


def _error(refused: _Refused, at: Attribution) -> CostBudgetExceededError:
    limit = refused.limit
    emit(limit.signal("exceeded", at))
    return refusal(
        limit.budget, limit.scope, limit.name, limit.account, at.step_id, reason=refused.reason
    )


def _set_result(future: asyncio.Future[Decision], decision: Decision) -> None:
    if not future.done():
        future.set_result(decision)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
