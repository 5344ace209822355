"""A plan's steps as Prefect tasks, awaited in the flow's own event loop, with the plan's edges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.utilities.annotations import quote

from ...budgets import BudgetState
from ...budgets.budget import is_in_flight
from ...errors import ResultStorageError
from ...pipelines.plan import PlannedStep
from ..protocol import StepRecord
from ..scheduler import is_left_out
from ..session import RunSession
from .artifacts import (
    ArtifactWriter,
    artifact_key,
    cost_line,
    counted,
    describe_budgets,
    describe_costs,
    failure_rows,
    item_rows,
    run_rows,
    step_rows,
    total_row,
)
from .caching import StepIdentity, digest_or_unique
from .events import RunEvents
from .map_task import MapTask
from .options import PrefectOptions
from .progress_artifact import ProgressArtifact
from .run_scope import run_scope
from .run_storage import StepStorage
from .step_task import RunOfTasks, StepTask

MOST_WITH_TABLES = 200
"""Steps of a run of which each has its table. To write one takes as long as all else of a step, and
nobody looks at so many; what a step cost is in the state of its task run, too.
"""


class StepTasks:
    """The steps of one run as tasks of the flow run that is active here.

    Args:
        ledger_url: Where the run's requests are booked.
    """

    def __init__(
        self,
        session: RunSession,
        storages: Mapping[str, StepStorage],
        options: PrefectOptions,
        artifacts: ArtifactWriter,
        events: RunEvents,
        flow_run_id: UUID,
        ledger_url: str,
    ) -> None:
        self._session = session
        self._artifacts = artifacts
        self._events = events
        self._flow_run_id = flow_run_id
        self._log = get_run_logger()
        self._inputs_digest = digest_or_unique(dict(session.inputs))
        scope = run_scope(session.name, self._inputs_digest, session.identity.run_key)
        run = RunOfTasks(session, scope, options.default_task_config, ledger_url)
        self._steps: dict[str, StepTask] = {}
        for step_id, node in session.plan.steps.items():
            made_of = MapTask if node.is_mapped else StepTask
            records_requests = (node.config.durable or options.durable) == "request"
            self._steps[step_id] = made_of(run, node, storages[step_id], records_requests)
        self._begun: list[StepTask] = []
        self._ended: dict[str, tuple[str, int]] = {}
        self._untold: list[StepTask] = []

    @property
    def all(self) -> list[StepTask]:
        """The steps, every one behind those it depends on."""
        return list(self._steps.values())

    @property
    def mapped(self) -> list[MapTask]:
        """The mapped steps."""
        return [step for step in self._steps.values() if isinstance(step, MapTask)]

    @property
    def task_run_ids(self) -> list[UUID]:
        """The task runs of the steps so far, in the order in which they began."""
        return [step.task_run_id for step in self._begun if step.task_run_id is not None]

    async def run_one(self, node: PlannedStep) -> StepRecord:
        """Run one step as a task; called by the scheduler.

        Raises:
            BaseException: What the step raised, the same object; a `TimeoutError` where its
                deadline passed.
        """
        step, state = self._steps[node.step_id], "cancelled"
        self._begun.append(step)
        try:
            if node.is_mapped:
                async with self._progress_of(step).followed():
                    record = await self._run_task(step)
            else:
                record = await self._run_task(step)
            state = "replayed" if record.replayed else "completed"
            return record
        except Exception as error:
            state = "skipped" if is_left_out(node, error) else "failed"
            raise
        finally:
            self._ended[node.step_id] = (state, 1 if state == "replayed" else step.attempts)
            if any(map(is_in_flight, self._session.recorder.of_step(node.step_id))):
                self._untold.append(step)  # its code has left it, which costs nevertheless
            else:
                self._tell_costs(step)
            if node.is_mapped:
                self._tell_failures(step)

    def _tell_costs(self, step: StepTask) -> None:
        """Write the table of a step that has ended, and emit its event."""
        step_id, recorder = step.node.step_id, self._session.recorder
        entries, unmetered = recorder.of_step(step_id), recorder.unmetered.get(step_id, {})
        # Of a step that asked nothing there is nothing to tell; its row is in the run's table.
        if not entries and not unmetered:
            return
        state, attempts = self._ended[step_id]
        if entries and not step.tells_costs_of(entries):
            self._log.info("Step %r %s: %s", step_id, state, cost_line(entries))
        if state != "replayed":
            self._events.step_ended(step_id, state, attempts, entries)
        if len(self._steps) > MOST_WITH_TABLES and self._is_told_elsewhere(step, state):
            return
        rows = step_rows(entries)
        told: int | None = attempts
        if step.node.is_mapped:
            shared, told = self._session.map_state(step_id), None
            rows = item_rows(entries, shared.outputs, shared.progress.started)
            state = f"{state}, {shared.progress.in_words()}"
        self._artifacts.add(
            artifact_key(self._session.name, step_id),
            rows,
            describe_costs(f"{step_id} ({state})", entries, told, unmetered=[unmetered]),
            flow_run_id=self._flow_run_id,
            task_run_id=step.task_run_id,
        )

    def _is_told_elsewhere(self, step: StepTask, state: str) -> bool:
        """Whether the state of a step's task run and its row in the run's table say all of it."""
        is_well = state in ("completed", "replayed") and not step.node.is_mapped
        return is_well and step.node.step_id not in self._session.recorder.unmetered

    def _tell_failures(self, step: StepTask) -> None:
        """List the items of a mapped step that failed, if some did."""
        step_id, name = step.node.step_id, self._session.name
        if errors := self._session.map_state(step_id).outputs.errors:
            self._artifacts.add(
                artifact_key(name, step_id, "failures"),
                failure_rows(errors),
                f"**{step_id}**: {counted(len(errors), 'item')} failed",
                flow_run_id=self._flow_run_id,
                task_run_id=step.task_run_id,
            )

    async def _run_task(self, step: StepTask) -> StepRecord:
        node, plan = step.node, self._session.plan
        digests: dict[str, str] = {}
        wait_for: list[State[Any] | None] = []
        for name in node.dependencies:
            dependency = self._steps[name]
            digests[name] = dependency.output_digest
            # Prefect would not run what waits for the task of an optional step that was left out.
            if name in self._session.outputs:
                wait_for.append(dependency.state)
        step.identity = StepIdentity(
            pipeline=self._session.name,
            step_id=node.step_id,
            fingerprint=plan.fingerprints[node.step_id],
            inputs=self._inputs_digest,
            dependencies=digests,
            scope=node.config.cache_scope,
        )
        if plan.is_renamed:
            await step.find_under_former_names()
        # Quoted, or Prefect would look for states in each field of it.
        parameter = quote(dict(vars(step.identity)))
        task: Any = step.task  # Prefect types the call of an async task as if it were not awaited
        while True:
            state: State[Any] = await task(parameter, wait_for=wait_for, return_state=True)
            step.state = state
            step.task_run_id = state.state_details.task_run_id or step.task_run_id
            if not state.is_completed():
                raise await step.failure(state)
            if step.record is not None:
                return step.record
            try:
                return step.replay(await state.aresult())
            except ResultStorageError:
                task = step.task_anew()  # what is stored can't be used, which is a miss

    def _progress_of(self, step: StepTask) -> ProgressArtifact:
        session, step_id = self._session, step.node.step_id
        key = artifact_key(session.name, step_id, "progress")
        progress = session.map_state(step_id).progress
        recorder = session.recorder
        return ProgressArtifact(self._artifacts, key, progress, recorder, self._flow_run_id, step)

    def report_run(
        self, not_stored: Collection[str] = (), standing: Collection[BudgetState] = ()
    ) -> None:
        """Tell what the whole run cost, and write its table: a row per step, also for those that
        were not run; it says what is not stored.

        Args:
            standing: The standing budgets that it counts in.
        """
        for step in self._untold:
            self._tell_costs(step)
        recorder = self._session.recorder
        rows = {}
        for step_id in self._session.plan.steps:
            state, attempts = self._ended.get(step_id, ("not run", 0))
            if step_id in not_stored:
                state += ", not stored"
            rows[step_id] = (state, attempts, recorder.of_step(step_id))
        losses = f" · **not stored**: {', '.join(not_stored)}" if not_stored else ""
        self._events.run_ended(recorder.entries)
        if recorder.entries:
            self._log.info("Run of %r: %s", self._session.name, cost_line(recorder.entries))
        unmetered = recorder.unmetered.values()
        costs = describe_costs(self._session.name, recorder.entries, unmetered=unmetered)
        self._artifacts.add(
            artifact_key(self._session.name),
            [*run_rows(rows), total_row(recorder.entries)],
            costs + losses + describe_budgets(self._session.all_limits(), standing),
            flow_run_id=self._flow_run_id,
        )
