"""State that the attempts of one step share within a run: books, journal, limits."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Hashable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..agent.schemas import ChatResponse
from ..budgets import RunLimits
from ..ledger.entries import Attribution, EntryState, LedgerEntry, changed
from ..ledger.recorder import RequestRecorder
from ..metering.deadlines import Deadline
from ..metering.scope import (
    DispatchScope,
    current_scope,
    scope_outside_of_runs,
)
from ..pricing.token_counts import TOKEN_COUNTERS, TokenCounts
from ..rate_limits.turns import Waiting
from ..replay.journal import Journal
from .config import StepConfig, budgets_of
from .schemas import StepUsage

if TYPE_CHECKING:
    from .map_state import MapState

ErrorT = TypeVar("ErrorT", bound=BaseException)


_NOBODY = Attribution()


@dataclass(eq=False)
class RunBooks:
    """What all steps of a run share: whom its requests are booked to, and where.

    Attributes:
        identity: What all its entries have in common: run, pipeline, tags, deployment.
        recorder: Its entries.
        cheaper_model: What takes requests at the limit of a budget that says so.
        is_over: Whether it has ended, so that nothing more is of it.
        is_planned: Whether its steps, and so their budgets, are known from the start.
    """

    identity: Attribution = _NOBODY
    recorder: RequestRecorder = field(default_factory=RequestRecorder)
    cheaper_model: Any = None
    is_over: bool = False
    is_planned: bool = False
    limits: RunLimits | None = None
    """The budgets that hold for its requests; None: there are none."""
    waiting: dict[str | None, Waiting] = field(default_factory=dict)
    """By step, which requests wait for a rate limit now."""
    _states: dict[str, StepState] = field(default_factory=dict)

    def limit_step(self, step_id: str, config: StepConfig, *, of_items: bool = False) -> None:
        """Have a step's budgets hold for what it, or each item of it, has spent and will."""
        budgets = budgets_of(config)
        if not budgets:
            return
        if self.limits is None:
            limits = RunLimits()
            for entry in self.recorder.entries:
                limits.note(entry)
            self.recorder.limits = self.limits = limits
        limit = self.limits.limit_items if of_items else self.limits.limit_step
        limit(step_id, budgets)

    def step_state(self, step_id: str) -> StepState:
        """The state of one step, made when it is first asked for."""
        state = self._states.get(step_id)
        if state is None:
            # Of several threads that get here, the first one's counts.
            state = self._states.setdefault(step_id, StepState(step_id, self))
        return state


async def find_state(step_id: str) -> StepState:
    """The state for a `StepContext` that was given none: of the run that is under way here, else
    booked in the ledger of `FASTROAI_LEDGER_URL`, if that is set.

    Raises:
        LedgerUnavailableError: It can't be used, and must be.
    """
    scope = current_scope() or await scope_outside_of_runs()
    run = scope.run
    books = run if isinstance(run, RunBooks) else RunBooks(scope.attribution, scope.ledger)
    state = books.step_state(step_id)
    if state.journal is None:
        state.journal = scope.journal  # of a step around it, which may be tried again
    return state


@dataclass(frozen=True, slots=True)
class _Answered:
    agent: object  # held, so that its id stays its own
    response: ChatResponse[Any]
    entries: tuple[LedgerEntry, ...]


@dataclass(slots=True, eq=False)
class StepState:
    """One step within a run: the attempt it is at, what it spent, and the agent calls that
    succeeded in it.

    What was answered in a failed attempt is not asked again in the next one. Model requests and
    tool calls are found in the step's journal. Calls of agents that send none of their own (fakes,
    other agents under our interface) are found as a whole: same agent, same message, in the same
    order among identical ones.

    Args:
        item: Key of the item whose state it is, of a mapped step.

    Attributes:
        journal: Where answers are recorded. None: the step is not tried again.
        reads: Keys of the run's input that the step has asked for.
        mapped: What a mapped step shares with its executor and its dependents.
    """

    step_id: str
    books: RunBooks
    attempt: int = 1
    item: str | None = None
    dispatches: int = 0
    started: float = field(default_factory=time.perf_counter)
    tool_calls: int = 0
    processing_time_ms: int = 0
    journal: Journal | None = None
    reads: set[str] = field(default_factory=set)
    mapped: MapState | None = None
    _answered: defaultdict[Hashable, list[_Answered]] | None = None
    _cursor: defaultdict[Hashable, int] | None = None
    _final: tuple[BaseException, ...] = ()
    # A step may call agents from several threads.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_attempt(self, attempt: int) -> None:
        """Start an attempt, counted from 1: the journal is read from its beginning."""
        self.attempt = attempt
        self.dispatches = 0
        # The answers of earlier attempts are handed out from the first one again.
        self._cursor = None
        if self.journal is not None:
            self.journal.begin_attempt()

    def next_attribution(self) -> Attribution:
        """Whom the next dispatch is booked to."""
        with self._lock:
            self.dispatches += 1
            dispatch = self.dispatches
        return self._attribution(self.attempt, dispatch)

    def add_work_of(self, item: StepState) -> None:
        """Add what an item of a mapped step did to what the step did."""
        self.add_work(item.tool_calls, item.processing_time_ms)

    def add_work(self, tool_calls: int, processing_time_ms: int) -> None:
        """Add what was done elsewhere for the step."""
        with self._lock:
            self.tool_calls += tool_calls
            self.processing_time_ms += processing_time_ms

    def scope_of(
        self, attribution: Attribution | None = None
    ) -> AbstractContextManager[DispatchScope]:
        """Books the requests of a dispatch, and records their answers.

        Without one: those that the step's code sends without `StepContext.run`, as dispatch 0.
        """
        whom = attribution or partial(self._attribution, self.attempt)
        return DispatchScope(self.books.recorder, whom, self.journal, self.books)

    @asynccontextmanager
    async def in_time(self, config: StepConfig) -> AsyncGenerator[None]:
        """Bound an attempt by its `timeout`, if there is one.

        Raises:
            TimeoutError: It took longer; says of what.
        """
        timeout = config.timeout
        if not timeout:
            yield
            return
        deadline = Deadline(timeout)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            whose = "Step" if self.item is None else f"Item {self.item!r} of step"
            raise TimeoutError(
                f"{whose} '{self.step_id}' timed out after {timeout}s (attempt {self.attempt}/"
                f"{config.retries + 1}). Its `timeout` bounds one attempt."
            ) from error

    def _attribution(self, attempt: int, dispatch: int = 0) -> Attribution:
        return changed(
            self.books.identity,
            step_id=self.step_id,
            item=self.item,
            attempt=attempt,
            dispatch=dispatch,
        )

    @property
    def waiting(self) -> Waiting | None:
        """Which of its requests wait for a rate limit now; None: none does."""
        return self.books.waiting.get(self.step_id)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The step's entries in the run's ledger, or the item's."""
        recorder = self.books.recorder
        if self.item is not None:
            return recorder.of_item(self.step_id, self.item)
        return recorder.of_step(self.step_id)

    @property
    def usage(self) -> StepUsage:
        """What the step has used so far, failed attempts included."""
        return StepUsage.from_entries(
            self.entries,
            tool_call_count=self.tool_calls,
            processing_time_ms=self.processing_time_ms,
        )

    def check_budgets(self, config: StepConfig) -> None:
        """Refuse the next dispatch where none of its requests could be sent: before a hook fires,
        and for agents whose requests nobody sees.

        Raises:
            CostBudgetExceededError: Carries the budget, what there is of it, and the step.
        """
        if not self.books.is_planned:
            self.books.limit_step(self.step_id, config, of_items=self.item is not None)
        if (limits := self.books.limits) is None:
            return
        # What was answered before costs nothing; what is not is refused when it is to be sent.
        is_replaying = self.journal is not None and self.journal.may_answer and not self._answered
        if not is_replaying:
            limits.require(self._attribution(self.attempt))

    def final(self, error: ErrorT) -> ErrorT:
        """Note that an error must not lead to another attempt of the step."""
        with self._lock:
            self._final += (error,)
        return error

    def is_final(self, error: BaseException) -> bool:
        """Whether this very error must not lead to another attempt."""
        # This very one: another call may have failed with an equal error that passes.
        return any(error is noted for noted in self._final)

    def replay(self, agent: object, message: object) -> ChatResponse[Any] | None:
        """The recorded answer to a call that succeeded in an earlier attempt, booked as replayed;
        None without one.
        """
        if self._answered is None or self.attempt == 1:
            return None
        key = _key(agent, message)
        with self._lock:
            if self._cursor is None:
                self._cursor = defaultdict(int)
            recorded = self._answered[key]
            position = self._cursor[key]
            self._cursor[key] += 1
        if position >= len(recorded):
            return None
        self.books.recorder.replay(recorded[position].entries, self.next_attribution())
        return recorded[position].response

    def book(
        self,
        agent: object,
        message: object,
        response: ChatResponse[Any],
        entries: tuple[LedgerEntry, ...],
        at: Attribution,
    ) -> None:
        """Book a call that succeeded: its counters, its answer in the journal, and itself where no
        meter saw it.
        """
        usage = StepUsage.from_chat_response(response)
        with self._lock:
            self.tool_calls += usage.tool_call_count
            self.processing_time_ms += usage.processing_time_ms
        if entries:
            return  # its requests are in the step's journal
        entries = (_reported(usage, at),)
        self.books.recorder.record(entries[0])
        key = _key(agent, message)
        with self._lock:
            if self._answered is None:
                self._answered = defaultdict(list)
            answered = self._answered[key]
            answered.append(_Answered(agent, response, entries))
            # What this attempt was just given is not handed out to it again.
            if self._cursor is not None:
                self._cursor[key] = len(answered)


def _key(agent: object, message: object) -> Hashable:
    return id(agent), message if isinstance(message, str) else repr(message)


def _reported(usage: StepUsage, attribution: Attribution) -> LedgerEntry:
    """An entry for a call that no meter saw, from what the agent says of it."""
    entry = LedgerEntry(
        attribution=attribution,
        model_answered=usage.model,
        tokens=TokenCounts(**{name: getattr(usage, name) for name in TOKEN_COUNTERS}),
        request_count=usage.request_count,
    )
    if usage.model is None and not usage.cost_usd:
        return entry.settled(EntryState.UNPRICED)
    cost, source = usage.cost_usd or Decimal(0), "reported by the agent"
    return entry.settled(EntryState.CHARGED, cost_usd=cost, price_source=source)
