"""The ready queue: a step starts as soon as its own dependencies are done.

One scheduler for all executors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..errors import SourceStepError, is_pause, refusal_in
from ..pipelines.plan import ExecutionPlan, PlannedStep
from ..pipelines.schemas import ConversationState, ConversationStatus
from .protocol import StepRecord

RunOne = Callable[[PlannedStep], Awaitable[StepRecord]]


@dataclass(slots=True)
class Outcome:
    """What came of each step, each dict in the order in which its steps ended."""

    records: dict[str, StepRecord] = field(default_factory=dict)
    failures: dict[str, BaseException] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    skipped: tuple[str, ...] = ()
    stopped_early: bool = False


async def run_plan(plan: ExecutionPlan, run_one: RunOne) -> Outcome:
    """Run every step of a plan that can run.

    `run_one` says how one step is run; it raises when the step has failed for good. On a failure
    with `on_error="fail"`, and when the caller is cancelled, running steps are cancelled and
    awaited. After an incomplete conversation state, and at a budget that pauses, nothing further
    starts, and what runs is awaited.

    Raises:
        BaseException: One that is no `Exception` (a `KeyboardInterrupt`, a test's own) and came out
            of a step.
        asyncio.CancelledError: The caller was cancelled.
    """
    schedule = _Schedule(plan, run_one)
    schedule.start_ready()
    try:
        await schedule.idle
    except asyncio.CancelledError:
        await schedule.cancel()
        raise
    if schedule.fatal is not None:
        raise schedule.fatal
    outcome = schedule.outcome
    outcome.skipped = tuple(outcome.left_out)
    if outcome.failures:
        outcome.skipped += schedule.unreachable()
    return outcome


def is_left_out(node: PlannedStep, error: BaseException) -> bool:
    """Whether a run goes on without a step that failed: it is optional, and a budget says so."""
    refusal = refusal_in(error)
    return node.config.optional and refusal is not None and refusal.at_limit == "skip"


class _Schedule:
    """Which steps of a plan are ready, run, or have ended.

    Attributes:
        idle: Done when nothing runs and nothing more is to be started.
        fatal: What ended the run that is no failure of a step.
    """

    def __init__(self, plan: ExecutionPlan, run_one: RunOne) -> None:
        self._plan = plan
        self._run_one = run_one
        self._limit = plan.config.max_concurrency
        self._go_on = plan.config.on_error == "continue"
        self._missing: dict[str, int] = {}
        self._ready: deque[PlannedStep] = deque()
        self._sourceless: set[str] = set()
        for step_id, node in plan.steps.items():
            self._missing[step_id] = len(node.dependencies)
            if not node.dependencies:
                self._ready.append(node)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._cancelled = False
        self.fatal: BaseException | None = None
        self.outcome = Outcome()
        self._loop = asyncio.get_running_loop()
        self.idle: asyncio.Future[None] = self._loop.create_future()

    async def cancel(self) -> None:
        """Cancel what runs, and wait for its end."""
        self._cancel_running()
        if self._running:
            await asyncio.wait(self._running)

    def start_ready(self) -> None:
        """Start what is ready, as far as the limit allows."""
        while (
            self._ready
            and not self._stopping
            and (self._limit is None or len(self._running) < self._limit)
        ):
            node = self._ready.popleft()
            if node.is_mapped:
                self._open_streams(node)
            self._running.add(self._loop.create_task(self._run(node), name=node.step_id))
        if not self._running and not self.idle.done():
            self.idle.set_result(None)

    async def _run(self, node: PlannedStep) -> None:
        try:
            record = await self._run_one(node)
        except BaseException as error:
            self._failed(node, error)
        else:
            self._finished(node, record)
        task = asyncio.current_task()
        assert task is not None
        self._sign_off(task)

    def _sign_off(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.start_ready()

    def _finished(self, node: PlannedStep, record: StepRecord | None) -> None:
        """Note what became of a step, None if it was left out, and have its dependents start."""
        output = None
        if record is None:
            self.outcome.left_out.append(node.step_id)
        else:
            self.outcome.records[node.step_id] = record
            output = record.output
        if isinstance(output, ConversationState) and output.status is ConversationStatus.INCOMPLETE:
            self._stopping = self.outcome.stopped_early = True
        missing = self._missing
        for step_id in self._plan.dependents[node.step_id]:
            dependent = self._plan.steps[step_id]
            if dependent.streams_from != node.step_id:
                missing[step_id] -= 1
                if not missing[step_id]:
                    self._ready.append(dependent)
            elif step_id in self._sourceless:
                self._finished(dependent, None)

    def _open_streams(self, node: PlannedStep) -> None:
        """A step that begins gives its outputs one by one to those that are mapped over it."""
        for step_id in self._plan.dependents[node.step_id]:
            dependent = self._plan.steps[step_id]
            if dependent.streams_from == node.step_id:
                self._missing[step_id] -= 1
                if not self._missing[step_id]:
                    self._ready.append(dependent)

    def _failed(self, node: PlannedStep, error: BaseException) -> None:
        if self._cancelled and isinstance(error, asyncio.CancelledError):
            return
        if node.streams_from in self.outcome.failures:
            return  # it has nothing to be mapped over any more
        source_is_left_out = node.streams_from in self.outcome.left_out
        is_sources = isinstance(error, SourceStepError) and error.step_id == node.streams_from
        if is_sources and not source_is_left_out:
            self._sourceless.add(node.step_id)  # its source's failure may be told after this one
            return
        if source_is_left_out or is_left_out(node, error):
            self._finished(node, None)
            return
        if isinstance(error, Exception | asyncio.CancelledError):
            self.outcome.failures[node.step_id] = error
            if self._go_on:
                return
            if is_pause(error):
                # What runs is let finish: cancelled, it would be paid for now and once more later.
                self._stopping = True
                return
        elif self.fatal is None:
            self.fatal = error
        self._cancel_running()

    def _cancel_running(self) -> None:
        self._stopping = self._cancelled = True
        current = asyncio.current_task()
        for task in self._running:
            if task is not current:
                # A task that is cancelled before it began runs none of its code, so it can't sign
                # off itself.
                task.add_done_callback(self._sign_off)
                task.cancel()

    def unreachable(self) -> tuple[str, ...]:
        """Steps that depend, however far, on one that failed."""
        failed = self.outcome.failures.keys()
        lost = set(failed)
        # A plan has each step behind those that it depends on.
        for step_id, node in self._plan.steps.items():
            if not lost.isdisjoint(node.dependencies):
                lost.add(step_id)
        return tuple(filter((lost - failed).__contains__, self._plan.steps))
