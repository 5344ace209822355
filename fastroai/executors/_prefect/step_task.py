"""One step of a run as a Prefect task: what it is made of, and what became of it."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed

from ...budgets.budget import is_in_flight
from ...errors import ResultStorageError
from ...ledger.entries import LedgerEntry
from ...pipelines.config import expiration, retry_delay
from ...pipelines.plan import PlannedStep
from ...replay.journal import Journal
from ...serialization.canonical_json import digest
from ..protocol import StepRecord
from ..session import RunSession
from ..step import may_retry, run_step
from ..step_codec import StepCodec
from .artifacts import cost_line
from .caching import (
    StepCachePolicy,
    StepIdentity,
    digest_of_input,
    digest_or_unique,
    former_identities,
    resolve_cache_policy,
)
from .error_texts import mask_secrets
from .journal import StoredJournal
from .results import (
    StepResultSerializer,
    StoredStep,
    decode_record,
    encode_record,
    unstorable_record,
)
from .run_scope import RunScope
from .run_storage import StepStorage

logger = logging.getLogger("fastroai.executors")

# Prefect accepts no more delays than this; the last one is repeated.
MAX_RETRY_DELAYS = 50

FIELD_OF_OPTION = {
    "retries": "retries",
    "retry_delay_seconds": "retry_delay",
    "cache_policy": "cache_policy",
    "cache_expiration": "cache_expiration",
    "persist_result": "persist_result",
}
"""Which field of a step's configuration wins over an option of `prefect.task`."""


@dataclass(frozen=True, slots=True)
class RunOfTasks:
    """What all tasks of a run have in common.

    Attributes:
        scope: Under what their results are found again.
        defaults: The executor's task options, which hold where a step gives none itself.
        ledger_url: Where the run's requests are booked.
    """

    session: RunSession
    scope: RunScope
    defaults: Mapping[str, Any]
    ledger_url: str


class StepTask:
    """A step of one run.

    Args:
        storage: Where the step's result is kept.
        records_requests: Whether an answered request is not sent again when the step is.

    Attributes:
        session: The run.
        scope: Under what its results are found again.
        runs: The step as it is run here: itself, or what has a worker run it.
        task: Its body is `execute`.
        identity: What tells this execution from others, once its dependencies have ended.
        output_digest: What identifies the output in the keys of its dependents.
        attempts: How often the step's code was run.
        record: What that gave.
        error: What the last attempt raised.
        state: How the task ended.
        task_run_id: Known once the task has begun.
    """

    def __init__(
        self, run: RunOfTasks, node: PlannedStep, storage: StepStorage, records_requests: bool
    ) -> None:
        self.node = self.runs = node
        self.identity: StepIdentity | None = None
        self.output_digest = ""
        self.attempts = 0
        self.record: StepRecord | None = None
        self.error: BaseException | None = None
        self.state: State[Any] | None = None
        self.task_run_id: UUID | None = None
        self._told: Sequence[LedgerEntry] = ()
        self.session = session = run.session
        self.scope = scope = run.scope
        self.storage = storage
        self.records_requests = records_requests
        self._ledger_url = run.ledger_url
        self._codec = StepCodec.of(node.step_id, node.step)
        config = node.whole
        delays = range(1, min(config.retries, MAX_RETRY_DELAYS) + 1)
        options: dict[str, Any] = {
            "retries": config.retries,
            "retry_delay_seconds": list(map(partial(retry_delay, config), delays)),
            "cache_policy": config.cache_policy,
            "cache_expiration": expiration(config),
            "persist_result": config.persist_result is not False,
            "result_serializer": StepResultSerializer(),
            "retry_condition_fn": self.may_be_tried_again,
            "task_run_name": literal_name(node.step_id),
        }
        given: set[str] = config.__dict__.get("_given", set())
        for option, value in run.defaults.items():
            if FIELD_OF_OPTION.get(option) not in given:
                options[option] = value
        policy = resolve_cache_policy(options["cache_policy"], session.settings.cache_policy, scope)
        options["cache_policy"] = policy
        task: Task[[dict[str, Any]], Any] = Task(self.execute, name=node.step_id, **options)
        # Under a policy of its own it may use what other runs left.
        if isinstance(policy, StepCachePolicy) and policy.run is not None:
            storage.is_empty = not scope.may_have_results
        if task.persist_result:
            # Assigned, because Task() refuses a block that was not saved to the server.
            task.result_storage = storage
        self.task = task

    async def execute(self, identity: dict[str, Any]) -> StoredStep | State[Any] | None:
        """Run the step, and give what is to be stored; of a step that asked something in a state
        whose message says what it cost. The body of its task.

        Short, as Prefect reads the source of the body of each task.
        """
        with self._attempt():
            record = await run_step(self.session, self.runs, self.attempts)
            content, self.output_digest = self.stored_form(record)
        self.record = record
        stored = StoredStep(content) if self.task.persist_result else None
        entries = record.entries
        if not entries or any(map(is_in_flight, entries)):  # told when their costs are known
            return stored
        self._told = entries
        # Prefect shows the message with the task run, and logs it.
        return Completed(message=cost_line(entries), data=stored)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """What is around one attempt of the step's code."""
        context, flow = TaskRunContext.get(), FlowRunContext.get()
        # The results of a user's own tasks within a step are kept where the flow keeps them, not as
        # results of steps.
        results_of_the_flow: AbstractContextManager[Any] = nullcontext()
        if context is not None:
            self.task_run_id = context.task_run.id
            if flow is not None:
                own = {"result_store": flow.result_store, "persist_result": flow.persist_result}
                results_of_the_flow = context.model_copy(update=own)
        self.attempts += 1
        session, scope, task = self.session, self.scope, self.task
        state = session.step_state(self.node.step_id)
        if self.records_requests and state.journal is None:
            place = [scope.text, session.name, self.node.step_id, self.node.config.cache_scope]
            stored = None
            if task.persist_result and task.cache_policy is not NO_CACHE:
                # Beside the step's result, which may be used again; else in process.
                stored = StoredJournal(self.storage.store, scope, session.name, self._ledger_url)
            state.journal = Journal(digest(place), stored, is_empty=not scope.may_have_results)
        try:
            with results_of_the_flow:
                yield
        except BaseException as error:
            mask_secrets(error)
            self.error = error
            raise

    def tells_costs_of(self, entries: Sequence[LedgerEntry]) -> bool:
        """Whether the state in which the task ended says what these came to."""
        is_completed = self.state is not None and self.state.is_completed()
        return is_completed and self._told == entries

    def stored_form(self, record: StepRecord) -> tuple[dict[str, Any], str]:
        """What is stored of the finished step, and what identifies its output in the keys of its
        dependents.

        Raises:
            ResultStorageError: The output can't be stored, and the step's configuration asks for
                it.
        """
        session, policy, key = self.session, self.task.cache_policy, None
        if isinstance(policy, StepCachePolicy):
            assert self.identity is not None
            key = policy.key_of(vars(self.identity))
        reads: dict[str, str] = {}
        for name in sorted(session.step_state(self.node.step_id).reads):
            reads[name] = digest_of_input(session.inputs, name)
        try:
            stored = encode_record(record, self._codec, reads, key)
        except ResultStorageError as error:
            if asks_for_storage(self.node):
                raise
            plan = session.plan
            readers = map(plan.steps.__getitem__, plan.dependents[self.node.step_id])
            # A stream is read by a step that is mapped over it, which keeps its items.
            is_stream = isinstance(record.output, AsyncIterator | Iterator)
            is_mapped_over = is_stream and any(reader.is_mapped for reader in readers)
            if self.task.persist_result and not is_mapped_over:
                message = "%s The run goes on; were it tried again, this step would run again."
                logger.warning(message, error)
            return unstorable_record(record), digest_or_unique(object())
        return stored, digest_or_unique(stored["output"])

    async def may_be_tried_again(self, task: Any, task_run: Any, state: Any) -> bool:
        """Whether the step's last failure may be followed by another attempt.

        Asynchronous, because Prefect takes any other method for a refusal.
        """
        # None, or Prefect's own timeout.
        if self.error is None or isinstance(self.error, asyncio.CancelledError):
            return True
        return may_retry(self.session, self.node, self.error)

    async def find_under_former_names(self) -> None:
        """Have Prefect look under an earlier name where only that has a result."""
        assert self.identity is not None
        policy = self.task.cache_policy
        if not self.task.persist_result or not isinstance(policy, StepCachePolicy):
            return
        if await self.storage.has(policy.key_of(vars(self.identity)).digest()):
            return
        for former in former_identities(self.identity, self.session.plan):
            key = policy.key_of(vars(former)).digest()
            if await self.storage.has(key):
                policy.found_under = key
                return

    def replay(self, stored: StoredStep) -> StepRecord:
        """Take a stored record instead of running the step; its requests are booked as replayed.

        Raises:
            ResultStorageError: It is damaged, or of another shape than the code declares now.
        """
        step_id, session = self.node.step_id, self.session
        record = decode_record(stored, self._codec, self.node.config.formerly)
        step_state = session.step_state(step_id)
        if record.entries:
            session.recorder.replay(record.entries, step_state.next_attribution())
        session.outputs[step_id] = record.output
        self.output_digest = digest_or_unique(stored.content["output"])
        entries = step_state.entries
        return StepRecord(
            step_id=step_id,
            output=record.output,
            entries=entries,
            usage=step_state.usage if entries else None,
            attempts=record.attempts,
            replayed=True,
        )

    def task_anew(self) -> Task[[dict[str, Any]], Any]:
        """The task, to be run whatever is stored of it."""
        # Copied, because with_options() refuses a storage that was not saved to the server.
        task = copy.copy(self.task)
        task.refresh_cache = True
        if isinstance(task.cache_policy, StepCachePolicy):
            task.cache_policy.found_under = None
        return task

    async def failure(self, state: State[Any]) -> BaseException:
        """Why the task has failed: what the step raised, the same object, if it did."""
        error = self.error
        if state.name == "TimedOut" and isinstance(error, asyncio.CancelledError):
            # of default_task_config's timeout_seconds
            return TimeoutError(f"Step '{self.node.step_id}': {state.message}")
        if error is not None:
            return error
        result = await state.aresult(raise_on_failure=False)
        if isinstance(result, BaseException):
            return result
        return RuntimeError(f"Prefect ended the task as {state!r}")


def literal_name(name: str) -> str:
    """A name as Prefect takes it for a run: without parts to fill in."""
    return name.replace("{", "{{").replace("}", "}}")


def asks_for_storage(node: PlannedStep) -> bool:
    """Whether a step's configuration says that its result is to be kept, so that going on without
    would be wrong.
    """
    config = node.config
    if config.persist_result or config.result_storage is not None:
        return True
    return config.cache_policy not in (None, "off")
