"""The thread that writes a ledger: entries that arrive during a commit share the next one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from ...database.engine import Database
from ...database.statements import Insert, Outdated, Statements
from ...database.values import Row
from ...errors import CostBudgetExceededError, LedgerUnavailableError
from ...retries import Backoff
from ..entries import LedgerEntry
from .mapping import intent_row, outcome_row
from .numbers import Numbers
from .outbox import Outbox
from .schema import intents, outcomes, run_ends, whole_runs
from .summing import Pace, add_to_sums

logger = logging.getLogger("fastroai.usage")

COMPANY = 0.002
"""Seconds that outcomes wait for an intent to share a commit with: nobody waits for them, and one
is often near.
"""
BACKOFF = Backoff(0.5, longest=30.0)
_LARGEST_BATCH = 1000
_IDLE = 0.2
"""Seconds without anything to write, after which entries are added to the sums."""
_WORTH_SUMMING = 1000
_PACE = 0.03
"""Seconds for which entries are added at once: a request that is sent meanwhile waits for it."""


INTENTS, OUTCOMES = Insert(intents), Insert(outcomes)
RUNS, ENDS = Insert(whole_runs), Insert(run_ends)
Waiter = asyncio.Future["bool | datetime"]


@dataclass(slots=True, eq=False)  # not frozen, which takes longer: two are made for each request
class Write:
    """What to write of an entry: its intent, its outcome, or both.

    Without one: to hear when all else is written.

    Attributes:
        run: Instead of an entry: a run that ended well.
        end: Instead of an entry: how a run ended.
        waiter: Hears whether the database has it, and where the request had to wait, as of when; an
            error, that it never will.
    """

    entry: LedgerEntry | None = None
    intent: Row | None = None
    outcome: Row | None = None
    waiter: Waiter | None = None
    run: Row | None = None
    end: Row | None = None

    @classmethod
    def of(cls, entry: LedgerEntry, *, intent: bool, waiter: Waiter | None = None) -> Write:
        """What there is to write of an entry; its intent only if asked for.

        Raises:
            Exception: Something in it is not of the type it must be.
        """
        outcome = outcome_row(entry) if entry.settled_at is not None else None
        return cls(entry, intent_row(entry) if intent else None, outcome, waiter)

    @property
    def is_request(self) -> bool:
        """Whether it is of a request that is sent once it is written."""
        return self.waiter is not None and self.intent is not None and self.outcome is None

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.waiter is not None and self.waiter.done()


@dataclass(slots=True)
class Decided:
    """What is written of a batch, and answered once it is committed.

    Attributes:
        answers: To requests: None, they may be sent, or why not. Others wait.
        sent_at: Of those that had to wait: when they are sent.
    """

    intents: list[Row] = field(default_factory=list)
    outcomes: list[Row] = field(default_factory=list)
    answers: dict[Write, Exception | None] = field(default_factory=dict)
    sent_at: dict[Write, datetime] = field(default_factory=dict)

    @classmethod
    def all_of(cls, batch: Sequence[Write]) -> Decided:
        """Of a batch that no budget is asked about: all of it."""
        return cls(
            [write.intent for write in batch if write.intent is not None],
            [write.outcome for write in batch if write.outcome is not None],
            {write: None for write in batch if write.entry is not None},
        )


class Gate(Protocol):
    """What requests must pass; `BudgetGate` is one. It is asked by the writing thread only."""

    @property
    def has_budgets(self) -> bool: ...
    def is_needed(self, statements: Statements) -> bool: ...
    def write(self, statements: Statements, batch: Sequence[Write]) -> Decided: ...
    def doubt(self) -> None: ...
    def committed(self, decided: Decided) -> None: ...
    def timeout(self) -> float | None: ...
    def is_due(self, database: Database) -> bool: ...
    def give_up(self) -> list[Write]: ...
    def leave(self, database: Database) -> None: ...


class Writer:
    """Writes what it is handed, in as few commits as it can, and never gives anything up.

    Handing over works in any thread, also in code that the garbage collector runs. What can't be
    written goes into the outbox and is tried again until it is.

    Args:
        required: Whether an intent that can't be written fails its waiter, or is kept like all
            else.
        gate: What requests must pass.
        clock: Seconds that never go back, by which writing is tried again.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        *,
        required: bool,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._database = database
        self._outbox = outbox
        self._required = required
        self._gate = gate
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._ended = False
        self._prepared = False
        self._down = True
        self._error: LedgerUnavailableError | None = None
        self._failures = 0
        self._retry_at: float | None = None
        self._not_summed = 0
        self._pace = Pace(_PACE)
        self._thread = threading.Thread(target=self._run, name="fastroai-ledger", daemon=True)
        self._thread.start()

    @property
    def has_budgets(self) -> bool:
        """Whether what it wrote had to fit standing budgets."""
        return self._gate.has_budgets

    def hand_over(self, write: Write) -> bool:
        """Write this as soon as possible.

        Returns at once; whether it was in time, before this writer's end.
        """
        # In this order: the writer takes what is left only after it has said that it ended.
        self._queue.put(write)
        return not self._ended

    def stop(self, timeout: float | None = None) -> None:
        """Write all that was handed over, or leave it in the outbox, and end."""
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._next()
            if not going:
                # Who hands over from here on is told so; what came just before is still taken.
                self._ended = True
                batch += self._rest()
            try:
                self._handle(batch, last=not going)
            except Exception as error:  # a thread that died would take all later entries with it
                logger.exception(
                    "Writing to the ledger in %s failed; what was to be written is kept.",
                    self._name,
                )
                self._keep(batch)
                self._answer(dict.fromkeys(batch, error))
                self._plan_retry(after_a_try=True)
        with suppress(Exception):  # the others find it dead
            self._gate.leave(self._database)
        if len(self._outbox):
            where = self._outbox.path or "memory"
            logger.warning(
                "%d ledger entries for %s are left in %s.", len(self._outbox), self._name, where
            )
        self._outbox.close()
        self._database.close()

    def _next(self) -> tuple[list[Write], bool]:
        """What to write next, and whether to go on after it."""
        batch: list[Write] = []
        sums_up = self._not_summed >= _WORTH_SUMMING and not self._down
        timeout = self._timeout(sums_up)
        try:
            while len(batch) < _LARGEST_BATCH:
                write = self._queue.get(timeout=timeout)
                if write is None:
                    return batch, False
                batch.append(write)
                # Somebody waits: take what is there. Nobody does: something to share the commit
                # with may come.
                timeout = 0 if timeout == 0 or write.waiter else COMPANY
        except Empty:
            if sums_up and not batch:
                self._sum_up()
        return batch, True

    def _timeout(self, sums_up: bool) -> float | None:
        """Seconds until there is something to do that nobody hands over; None: there is nothing."""
        waits = [self._gate.timeout(), _IDLE if sums_up else None]
        if self._retry_at is not None:
            waits.append(max(0.0, self._retry_at - self._clock()))
        return min((wait for wait in waits if wait is not None), default=None)

    def _sum_up(self) -> None:
        """Add some entries to the sums; soon more, unless there is something to write."""
        most, started = self._pace.entries, time.thread_time()
        try:
            added = self._database.run(lambda c: add_to_sums(c, most, Numbers()))
            self._pace.took(added or 0, time.thread_time() - started)
            if not added:
                self._not_summed = 0
        except Exception as error:  # whoever asks for sums does it then
            self._not_summed = 0
            logger.info("The sums in %s are not up to date: %r", self._name, error)

    def _rest(self) -> Iterator[Write]:
        with suppress(Empty):
            while True:
                if (write := self._queue.get_nowait()) is not None:
                    yield write

    def _handle(self, batch: Sequence[Write], *, last: bool) -> None:
        due = last or self._is_retry_due()
        was_down = self._down
        markers = [write for write in batch if write.entry is None]
        tries = self._is_worth_a_try(batch, due=due)
        failed: Failures = dict.fromkeys(batch, self._error)
        if tries:
            failed = self._commit(batch)
        if last:
            failed |= dict.fromkeys(self._gate.give_up(), self._left())
        if failed:
            self._keep_and_answer(failed)

        # After those answers: who waits for this batch does not wait for what was kept before it.
        recovered = was_down and not self._down
        asked_for = (due or bool(markers)) and not failed
        if recovered or asked_for:
            self._write_kept()

        if markers:
            self._answer_markers(markers)
        self._plan_retry(after_a_try=tries)

    def _is_retry_due(self) -> bool:
        return self._retry_at is not None and self._clock() >= self._retry_at

    def _answer_markers(self, markers: Sequence[Write]) -> None:
        # They come last, because they ask for all that was handed over, also long ago.
        is_behind = len(self._outbox) or not self._prepared
        self._answer(dict.fromkeys(markers, self._error if is_behind else None))

    def _keep_and_answer(self, failed: Failures) -> None:
        """Put what could not be written into the outbox, then say so: never the other way round, or
        a crash in between would lose an entry that its request counts on.
        """
        # An intent whose request is refused for it is not kept: it is booked as refused instead.
        self._keep(write for write in failed if not (self._required and write.waiter))
        self._answer({write: error for write, error in failed.items() if write.entry is not None})

    def _is_worth_a_try(self, batch: Sequence[Write], *, due: bool) -> bool:
        """Whether to ask the database, or to keep a batch at once.

        Each try of one that is gone takes seconds, in which all others wait: while it is down,
        outcomes are only kept. Whoever waits for an answer gets one from the database, though.
        """
        if due or not self._down or self._error is None:
            return True
        return any(w.waiter is not None and (self._required or w.entry is None) for w in batch)

    def _plan_retry(self, *, after_a_try: bool) -> None:
        if not self._down and not len(self._outbox):
            self._retry_at, self._failures = None, 0
        elif after_a_try or self._retry_at is None:
            self._failures += 1
            self._retry_at = self._clock() + BACKOFF.after(self._failures)

    def _commit(self, batch: Sequence[Write]) -> Failures:
        """Write a batch in one transaction.

        To write anything again is harmless: what is there is left as it is.
        """
        for _ in range(2):  # the second time on a new connection
            try:
                if not self._prepared:
                    self._prepare()
                decided = self._write(batch)
                if decided.intents or decided.outcomes:
                    self._down = False
                    self._not_summed += len(decided.outcomes)
                self._answer(decided.answers, decided.sent_at)
                return {}
            except Exception as error:
                failure = error
                if not self._prepared:
                    break
                self._prepared = False  # the tables may be gone, with the file they were in
        self._missed(failure)
        return dict.fromkeys([*batch, *self._gate.give_up()], self._error)

    def _write(self, batch: Sequence[Write]) -> Decided:
        gate, database = self._gate, self._database
        is_asked = any(write.entry or write.run or write.end for write in batch)
        if not is_asked and not gate.is_due(database):
            return Decided()
        work = partial(self._write_admitted, batch=batch)
        try:
            decided = database.transact(work)
        except Outdated:
            gate.doubt()
            decided = database.transact(work)
        gate.committed(decided)
        return decided

    def _write_admitted(self, statements: Statements, batch: Sequence[Write]) -> Decided:
        # In one transaction: a process that dies must not leave a held amount without its intent.
        if of_runs := [write for write in batch if write.entry is None]:
            statements.insert(RUNS, [write.run for write in of_runs if write.run is not None])
            statements.insert(ENDS, [write.end for write in of_runs if write.end is not None])
        if self._gate.is_needed(statements):
            return self._gate.write(statements, batch)
        decided = Decided.all_of(batch)
        statements.insert(INTENTS, decided.intents)
        statements.insert(OUTCOMES, decided.outcomes)
        return decided

    def _left(self) -> LedgerUnavailableError:
        return LedgerUnavailableError(
            f"The ledger in {self._name} was closed while requests waited for a budget."
        )

    def _prepare(self) -> None:
        self._database.prepare()
        self._prepared = True
        if self._error is None:
            self._down = False  # nothing was tried before
        self._outbox.adopt()

    def _missed(self, error: Exception) -> None:
        reason = self._database.unavailable(error)
        if not self._down or self._error is None:
            logger.warning("%s", reason)
        self._down, self._error = True, reason

    def _keep(self, writes: Iterable[Write]) -> None:
        if entries := [write.entry for write in writes if write.entry is not None]:
            self._outbox.keep(entries)

    def _write_kept(self) -> None:
        entries = self._outbox.entries()
        left: list[LedgerEntry] = []
        for start in range(0, len(entries), _LARGEST_BATCH):
            end = start + _LARGEST_BATCH
            # With their intents, which may be missing; those that are there are left as they are.
            failed = self._commit([Write.of(entry, intent=True) for entry in entries[start:end]])
            left += [write.entry for write in failed if write.entry is not None]
            if self._down:  # each further try would take as long
                left += entries[end:]
                break
        written = len(entries) - len(left)
        if written:
            # Only now that they are committed: after a crash before it, they are written again.
            self._outbox.replace(left)
            logger.warning("%d ledger entries were written to %s late.", written, self._name)

    def _answer(
        self,
        results: Mapping[Write, Exception | None],
        sent_at: Mapping[Write, datetime] | None = None,
    ) -> None:
        """Tell those who wait, each in its own loop."""
        answers: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
        for write, error in results.items():
            if write.waiter is None:
                continue
            written: bool | datetime = error is None
            if sent_at and write in sent_at:
                written = sent_at[write]
            answer = write.waiter, written, error and self._refusal(error)
            answers.setdefault(write.waiter.get_loop(), []).append(answer)
        for loop, those in answers.items():
            with suppress(RuntimeError):  # the loop is closed, and with it whoever waited
                loop.call_soon_threadsafe(_resolve, those)

    def _refusal(self, error: Exception) -> Exception | None:
        """Why a request must not be sent; None: it may be, if not booked then kept."""
        if isinstance(error, CostBudgetExceededError):
            return error
        return self._database.unavailable(error) if self._required else None

    @property
    def _name(self) -> str:
        return self._database.name


Failures = dict[Write, Exception | None]
Answer = tuple[Waiter, "bool | datetime", Exception | None]


def _resolve(answers: Iterable[Answer]) -> None:
    for future, written, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(written)
