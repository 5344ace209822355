"""The identity that the executions of one run share, wherever in a flow the pipeline runs."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TaskRunContext

UNIDENTIFIED = "unidentified-"
"""How the digest of an input begins that can't be told from others."""

Try = tuple[UUID, int]
"""A flow run or task run, and which try of it, from 1."""


@dataclass(frozen=True, slots=True)
class RunScope:
    """Under what the results of one run are found again.

    Attributes:
        text: The same whenever the run is executed again, and another for each other run.
        may_have_results: Whether another execution may have left some; True when unsure.
        is_keyed: Whether the caller named the run, so that it may go on with another input.
    """

    text: str
    may_have_results: bool = True
    is_keyed: bool = False


def run_scope(pipeline: str, inputs: str, run_key: str | None) -> RunScope:
    """The scope of the flow run that is active here.

    With a key, the key. A flow run by itself is known by its id, which it keeps when it is retried.
    Within someone's flow or task, flow runs are made anew on each retry, and Prefect tells them
    apart by the order of calls. There a run is known by the outermost run, its pipeline and its
    input, and equal ones by a number: as they are interchangeable, their order does not matter.

    Args:
        inputs: Digest of the run's input.
    """
    if run_key is not None:
        return RunScope(f"key:{run_key}", is_keyed=True)
    flows, tasks = enclosing(FlowRunContext.get()), enclosing(TaskRunContext.get())
    outermost = outermost_of(flows, tasks) if tasks else flows[-1]
    if outermost is flows[0]:
        flow_run = flows[0].flow_run
        assert flow_run is not None, "called within a flow run"
        # Started by a deployment within another flow, the run is known by what stands for it there.
        started_by = flow_run.parent_task_run_id
        is_first = not was_run_before(flow_run) and started_by is None
        return RunScope(str(started_by or flow_run.id), may_have_results=not is_first)
    tries = frozenset([*map(try_of, flows), *map(try_of, tasks)])
    return scope_within(outermost, tries, pipeline, inputs)


def scope_within(
    outermost: RunContext, tries: frozenset[Try], pipeline: str, inputs: str
) -> RunScope:
    """The scope of a run within others: a number among those of its pipeline and input.

    Args:
        tries: Of all runs around it, and its own.
    """
    if inputs.startswith(UNIDENTIFIED):
        inputs = UNIDENTIFIED  # it is another text each time: all runs of such inputs are equal
    root = try_of(outermost)
    with _numbering:
        if root not in _numbers:
            _numbers[root] = _Numbers()
            weakref.finalize(outermost, _numbers.pop, root, None)
        number = _numbers[root].take(pipeline, inputs, tries)
    return RunScope(f"in:{root[0]}:{inputs}:{number}")


def outermost_of(flows: list[FlowRunContext], tasks: list[TaskRunContext]) -> RunContext:
    """The run around all others that can number the runs within it."""
    # A task that was sent to another process brings a copy of its flow's context. What else runs in
    # that flow is not known here, so nothing outside of the task can number its runs.
    sent: list[TaskRunContext] = tasks[-1:] if flows[-1].detached else []
    # Of several tasks outside of any flow the last is around all others.
    alone = [task for task in tasks if task.task_run.flow_run_id is None]
    candidates: list[RunContext] = [flows[-1], *sent, *alone]
    return candidates[-1]


def active_flow_run() -> FlowRun | None:
    """The flow run that is active here."""
    context = FlowRunContext.get()
    return None if context is None else context.flow_run


def is_first_try() -> bool:
    """Whether nothing around this place was tried before, or was started from somewhere else."""
    flows, tasks = enclosing(FlowRunContext.get()), enclosing(TaskRunContext.get())
    if not flows or flows[-1].flow_run is None or flows[-1].flow_run.parent_task_run_id is not None:
        return False
    return not any(map(was_run_before, [*map(run_of, flows), *map(run_of, tasks)]))


def was_run_before(run: FlowRun | TaskRun) -> bool:
    """Whether a run that is under way ran before, until it failed, died or was suspended."""
    # Prefect does not count it as another try that a suspended run is resumed. The time is that of
    # the tries that are over.
    return run.run_count > 1 or run.total_run_time > timedelta(0)


RunContext = FlowRunContext | TaskRunContext
RunContextT = TypeVar("RunContextT", FlowRunContext, TaskRunContext)


def enclosing(context: RunContextT | None) -> list[RunContextT]:
    """A context and those in which it was entered, from within. Prefect names only the innermost;
    the others are what the token that it keeps would restore.
    """
    found: list[RunContextT] = []
    while context is not None:
        found.append(context)
        token = getattr(context, "_token", None)
        outer = getattr(token, "old_value", None)
        context = outer if isinstance(outer, type(context)) else None
    return found


def run_of(context: RunContext) -> FlowRun | TaskRun:
    run = context.task_run if isinstance(context, TaskRunContext) else context.flow_run
    assert run is not None
    return run


def try_of(context: RunContext) -> Try:
    run = run_of(context)
    return run.id, run.run_count


@dataclass
class _Numbers:
    """Numbers of equal runs within one try of the outermost run."""

    taken: defaultdict[tuple[str, str], list[frozenset[Try]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    newest: dict[UUID, int] = field(default_factory=dict)

    def take(self, pipeline: str, inputs: str, tries: frozenset[Try]) -> int:
        """The lowest number that is free: one taken in a try that has failed since is free again,
        so that what is tried again finds the results of the try before.
        """
        for run_id, count in tries:
            self.newest[run_id] = max(count, self.newest.get(run_id, 0))
        holders = self.taken[pipeline, inputs]
        for number, held in enumerate(holders):
            if any(self.newest[run_id] > count for run_id, count in held):
                holders[number] = tries
                return number
        holders.append(tries)
        return len(holders) - 1


_numbers: dict[Try, _Numbers] = {}
"""Of each outermost run that is under way here, as it can't be handed down through user code."""
_numbering = threading.Lock()  # tasks that are submitted run in threads
