"""A plan's steps as Prefect tasks, awaited in the flow's own event loop, with the plan's edges."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.filesystems import WritableFileSystem
from prefect.utilities.annotations import quote

from ...database.location import configured_url, default_url
from ...errors import ResultStorageError
from ...ledger.entries import LedgerEntry
from ...pipelines.config import expiration, retry_delay
from ...pipelines.plan import PlannedStep
from ..protocol import StepRecord
from ..session import RunSession
from ..step import may_retry, run_step
from ..step_codec import StepCodec
from .artifacts import ArtifactWriter, artifact_key, describe_costs, run_rows, step_rows
from .caching import (
    StepCachePolicy,
    StepIdentity,
    digest_of_input,
    digest_or_unique,
    former_identities,
    resolve_cache_policy,
)
from .error_texts import mask_secrets
from .journal import journal_of
from .options import PrefectOptions
from .results import (
    StepResultSerializer,
    StoredStep,
    decode_record,
    encode_record,
    unstorable_record,
)
from .run_scope import run_scope
from .run_storage import StepStorage

logger = logging.getLogger("fastroai.executors")

# Prefect accepts no more delays than this; the last one is repeated.
MAX_RETRY_DELAYS = 50


@dataclass(frozen=True, slots=True)
class StepTask:
    """What running a step as a task needs."""

    task: Task[[dict[str, Any]], Any]
    codec: StepCodec
    fingerprint: str


def _make_task(
    steps: StepTasks, node: PlannedStep, defaults: Mapping[str, Any], storage: WritableFileSystem
) -> Task[[dict[str, Any]], Any]:
    async def run_step_task(identity: dict[str, Any]) -> Any:
        return await steps.execute(node)

    # A plain function: Prefect turns retries off for any other callable.
    def step_may_be_tried_again(task: Any, task_run: Any, state: Any) -> bool:
        return steps.may_retry(node)

    config = node.config
    options: dict[str, Any] = {
        "retries": config.retries,
        "retry_delay_seconds": [
            retry_delay(config, n + 1) for n in range(min(config.retries, MAX_RETRY_DELAYS))
        ],
        "cache_policy": steps.cache_policy(config.cache_policy),
        "cache_expiration": expiration(config),
        "persist_result": config.persist_result is not False,
        "result_serializer": StepResultSerializer(),
        "retry_condition_fn": step_may_be_tried_again,
        "task_run_name": literal_name(node.step_id),
    }
    task: Task[[dict[str, Any]], Any] = Task(
        run_step_task, name=node.step_id, **(options | _defaults(steps, node, defaults))
    )
    if task.persist_result:
        # Assigned, because Task() refuses a block that was not saved to the server.
        task.result_storage = storage
    return task


def literal_name(name: str) -> str:
    """A name as Prefect takes it for a run: without parts to fill in."""
    return name.replace("{", "{{").replace("}", "}}")


_FIELD_OF_OPTION = {
    "retries": "retries",
    "retry_delay_seconds": "retry_delay",
    "cache_policy": "cache_policy",
    "cache_expiration": "cache_expiration",
    "persist_result": "persist_result",
}


def _defaults(steps: StepTasks, node: PlannedStep, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The executor's task options that the step's configuration does not give itself."""
    given: set[str] = node.config.__dict__.get("_given", set())
    options = {
        option: value
        for option, value in defaults.items()
        if _FIELD_OF_OPTION.get(option) not in given
    }
    # resolved and probed before the run, like every other storage
    options.pop("result_storage", None)
    if "cache_policy" in options:
        options["cache_policy"] = steps.cache_policy(options["cache_policy"])
    return options


class StepTasks:
    """The steps of one run as tasks of the flow run that is active here."""

    def __init__(
        self,
        session: RunSession,
        storages: Mapping[str, WritableFileSystem],
        options: PrefectOptions,
        artifacts: ArtifactWriter,
        flow_run_id: UUID,
    ) -> None:
        self._session = session
        self._durable = options.durable
        self._artifacts = artifacts
        self._flow_run_id = flow_run_id
        self._inputs_digest = digest_or_unique(dict(session.inputs))
        self.scope = run_scope(session.name, self._inputs_digest, session.identity.run_key)
        self._found_under: dict[str, str] = {}
        self._tasks = {
            step_id: StepTask(
                _make_task(self, node, options.default_task_config, storages[step_id]),
                StepCodec.of(step_id, node.step),
                session.plan.fingerprints[step_id],
            )
            for step_id, node in session.plan.steps.items()
        }
        self._states: dict[str, State[Any]] = {}
        self._output_digests: dict[str, str] = {}
        self._task_run_ids: dict[str, UUID] = {}
        self._attempts: dict[str, int] = {}
        self._live: dict[str, StepRecord] = {}
        self._errors: dict[str, BaseException] = {}
        self._ended: dict[str, tuple[str, int, tuple[LedgerEntry, ...]]] = {}

    def cache_policy(self, choice: Any) -> CachePolicy:
        """When results of a step may be reused, by its choice."""
        policy = resolve_cache_policy(choice, self._session.settings.cache_policy, self.scope)
        if isinstance(policy, StepCachePolicy):
            policy.found_under = self._found_under
        return policy

    @property
    def task_run_ids(self) -> tuple[UUID, ...]:
        """The task runs of the steps so far, in the order in which they began."""
        return tuple(self._task_run_ids.values())

    async def run_one(self, node: PlannedStep) -> StepRecord:
        """Run one step as a task; called by the scheduler.

        Raises:
            BaseException: What the step raised, the same object; a `TimeoutError` where its
                deadline passed.
        """
        state = "cancelled"
        try:
            record = await self._run_task(node, self._tasks[node.step_id].task)
            state = "replayed" if record.replayed else "completed"
            return record
        except Exception:
            state = "failed"
            raise
        finally:
            self._write_artifact(node, state)

    async def _run_task(self, node: PlannedStep, task: Task[[dict[str, Any]], Any]) -> StepRecord:
        step_id = node.step_id
        identity = self._identity(node)
        await self._find_under_former_names(node, identity)
        wait_for = [self._states[dependency] for dependency in node.dependencies]
        run_task: Any = task  # Prefect types the call of an async task as if it were not awaited
        # Quoted, or Prefect would look for states in each field of it.
        parameter = quote(identity.as_parameter())
        state: State[Any] = await run_task(parameter, wait_for=wait_for, return_state=True)
        self._states[step_id] = state
        if state.state_details.task_run_id is not None:
            self._task_run_ids[step_id] = state.state_details.task_run_id
        if not state.is_completed():
            raise await self._error_of(node, state)
        if step_id in self._live:
            return self._live[step_id]
        try:
            stored = await state.aresult()
            return self._replay(node, stored)
        except ResultStorageError:
            # The record is damaged, or of another shape than the code declares now: that is a miss.
            # Copied, because with_options() refuses a storage that was not saved to the server.
            refreshed = copy.copy(task)
            refreshed.refresh_cache = True
            self._found_under.pop(step_id, None)
            return await self._run_task(node, refreshed)

    async def _find_under_former_names(self, node: PlannedStep, identity: StepIdentity) -> None:
        """Have Prefect look under an earlier name where only that has a result."""
        if not self._session.plan.is_renamed:
            return
        task = self._tasks[node.step_id].task
        policy, storage = task.cache_policy, task.result_storage
        former = list(former_identities(identity, self._session.plan))
        if not former or not task.persist_result or not isinstance(policy, StepCachePolicy):
            return
        own, *others = (policy.key_of(one.as_parameter()).digest() for one in (identity, *former))
        assert isinstance(storage, StepStorage)
        if await storage.has(own):
            return
        for key in others:
            if await storage.has(key):
                self._found_under[node.step_id] = key
                return

    async def execute(self, node: PlannedStep) -> Any:
        """The body of a step's task: run the step, and give what is to be stored."""
        step_id = node.step_id
        context = TaskRunContext.get()
        if context is not None:
            self._task_run_ids[step_id] = context.task_run.id
        self._attempts[step_id] = self._attempts.get(step_id, 0) + 1
        self._open_journal(node)
        try:
            with _results_of_the_flow(context):
                record = await run_step(self._session, node, self._attempts[step_id])
            stored, identified = self._stored_form(node, record)
        except BaseException as error:
            mask_secrets(error)
            self._errors[step_id] = error
            raise
        self._live[step_id] = record
        self._output_digests[step_id] = identified
        return StoredStep(stored) if self._tasks[step_id].task.persist_result else None

    def _open_journal(self, node: PlannedStep) -> None:
        """Have the step's answers recorded: beside its result if that may be used again, else in
        process.
        """
        state, task = self._session.step_state(node.step_id), self._tasks[node.step_id].task
        if state.journal is not None or (node.config.durable or self._durable) != "request":
            return
        reusable = task.persist_result and task.cache_policy is not NO_CACHE
        storage: Any = task.result_storage
        state.journal = journal_of(
            self.scope,
            self._session.name,
            node.step_id,
            node.config.cache_scope,
            storage.store if reusable else None,
            configured_url(self._session.settings) or default_url(),
        )

    def _stored_form(self, node: PlannedStep, record: StepRecord) -> tuple[dict[str, Any], str]:
        """What is stored of a finished step, and what identifies its output in the keys of its
        dependents.

        Raises:
            ResultStorageError: The output can't be stored, and the step's configuration asks for
                it.
        """
        step_task = self._tasks[node.step_id]
        try:
            policy, key = step_task.task.cache_policy, None
            if isinstance(policy, StepCachePolicy):
                key = policy.key_of(self._identity(node).as_parameter()).as_json()
            stored = encode_record(record, step_task.codec, self._reads(node), key)
        except ResultStorageError as error:
            if _asks_for_storage(node):
                raise
            if step_task.task.persist_result:
                logger.warning(
                    "%s The run goes on; were it tried again, this step would run again.", error
                )
            return unstorable_record(record), digest_or_unique(object())
        return stored, digest_or_unique(stored["output"])

    def _reads(self, node: PlannedStep) -> dict[str, str]:
        inputs = self._session.inputs
        return {
            key: digest_of_input(inputs, key)
            for key in sorted(self._session.step_state(node.step_id).reads)
        }

    def may_retry(self, node: PlannedStep) -> bool:
        """Whether the step's last failure may be followed by another attempt."""
        error = self._errors.get(node.step_id)
        if error is None or isinstance(error, asyncio.CancelledError):  # Prefect's own timeout
            return True
        return may_retry(self._session, node, error)

    def _identity(self, node: PlannedStep) -> StepIdentity:
        return StepIdentity(
            pipeline=self._session.name,
            step_id=node.step_id,
            fingerprint=self._tasks[node.step_id].fingerprint,
            inputs=self._inputs_digest,
            dependencies={step_id: self._output_digests[step_id] for step_id in node.dependencies},
            scope=node.config.cache_scope,
        )

    def _replay(self, node: PlannedStep, stored: StoredStep) -> StepRecord:
        """Take a stored record instead of running the step; its requests are booked as replayed."""
        record = decode_record(stored, self._tasks[node.step_id].codec, node.config.formerly)
        step_state = self._session.step_state(node.step_id)
        if record.entries:
            self._session.recorder.replay(record.entries, step_state.next_attribution())
        self._session.outputs[node.step_id] = record.output
        self._output_digests[node.step_id] = digest_or_unique(stored.content["output"])
        return StepRecord(
            step_id=node.step_id,
            output=record.output,
            entries=step_state.entries,
            usage=step_state.usage if step_state.entries else None,
            attempts=record.attempts,
            replayed=True,
        )

    async def _error_of(self, node: PlannedStep, state: State[Any]) -> BaseException:
        error = self._errors.get(node.step_id)
        if state.name == "TimedOut" and isinstance(error, asyncio.CancelledError):
            # of default_task_config's timeout_seconds
            return TimeoutError(f"Step '{node.step_id}': {state.message}")
        if error is not None:
            return error
        result = await state.aresult(raise_on_failure=False)
        return (
            result
            if isinstance(result, BaseException)
            else RuntimeError(f"Prefect ended the task as {state!r}")
        )

    def _write_artifact(self, node: PlannedStep, state: str) -> None:
        step_id = node.step_id
        entries = self._session.step_state(step_id).entries
        attempts = self._attempts.get(step_id, 1 if state == "replayed" else 0)
        self._ended[step_id] = (state, attempts, entries)
        self._artifacts.add(
            artifact_key(self._session.name, step_id),
            step_rows(entries),
            describe_costs(f"{step_id} ({state})", entries, attempts),
            flow_run_id=self._flow_run_id,
            task_run_id=self._task_run_ids.get(step_id),
        )

    def write_run_artifact(self, not_stored: Collection[str] = ()) -> None:
        """The table of the whole run: a row per step, also for those that were not run; it says
        what is not stored.
        """
        rows = {
            step_id: self._ended.get(step_id, ("not run", 0, ()))
            for step_id in self._session.plan.steps
        }
        for step_id in not_stored:
            state, attempts, entries = rows[step_id]
            rows[step_id] = (f"{state}, not stored", attempts, entries)
        losses = f" · **not stored**: {', '.join(not_stored)}" if not_stored else ""
        self._artifacts.add(
            artifact_key(self._session.name),
            run_rows(rows),
            describe_costs(self._session.name, self._session.recorder.entries) + losses,
            flow_run_id=self._flow_run_id,
        )


def _asks_for_storage(node: PlannedStep) -> bool:
    """Whether a step's configuration says that its result is to be kept, so that going on without
    would be wrong.
    """
    config = node.config
    return (
        bool(config.persist_result)
        or config.result_storage is not None
        or config.cache_policy not in (None, "off")
    )


def _results_of_the_flow(context: TaskRunContext | None) -> AbstractContextManager[Any]:
    """Keep the results of a user's own tasks within a step where the flow keeps them, not as
    results of steps.
    """
    flow_context = FlowRunContext.get()
    if context is None or flow_context is None:
        return nullcontext()
    own: AbstractContextManager[Any] = context.model_copy(
        update={
            "result_store": flow_context.result_store,
            "persist_result": flow_context.persist_result,
        }
    )
    return own
