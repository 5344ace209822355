"""Stored results for people: the record of a step, whether it is valid, and its content."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect._internal.result_records import ResultRecordMetadata
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

from ...errors import ResultStorageError
from ...serialization.strict_json import loads_strictly
from ...settings import FastroAISettings
from ...storage.result_store import ResultStore
from ..step_codec import StepCodec
from .kept_items import stored_items
from .results import StoredStep, decode_record
from .run_storage import StepStorage, open_store
from .server import have_server

if TYPE_CHECKING:
    from ...pipelines.pipeline import Pipeline
    from ..protocol import StepRecord


_EVENTS_TAKE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What is stored of one step of one run.

    Attributes:
        run_id: The flow run's id.
        run_name: The name that Prefect gave it.
        step_id: The step.
        state: Name of the state of its task: `Completed`, `Cached`, ….
        location: The storage, and the record's name in it.
        content: The record as JSON: its format, output, ledger entries, usage, attempts, duration.
            Of a mapped step, the record of the item that was asked for, or `items` by their keys.
        record: The record decoded by the types that the pipeline declares; None where no pipeline
            was given, and of a mapped step.
    """

    run_id: str
    run_name: str
    step_id: str
    state: str
    location: str
    content: dict[str, Any]
    record: StepRecord | None = None


async def read_stored_result(
    run: str,
    step_id: str,
    *,
    settings: FastroAISettings,
    storage: object = None,
    pipeline: Pipeline[Any, Any, Any] | None = None,
    item: str | None = None,
) -> StoredResult:
    """See `fastroai.executors.stored_results.read_stored_result`."""
    await have_server()
    async with get_client() as client:
        flow_run = await find_flow_run(client, run)
        task_run = await find_task_run(client, flow_run, step_id)
    records = Records(settings, storage)
    stored = None if storage_key_of(task_run.state) else await records.of_items(task_run, item)
    location, content = stored or await records.of(task_run)
    if item is not None and stored is None:
        raise ResultStorageError(f"Step '{step_id}' is not mapped: it has no item {item!r}.")
    record = None
    if pipeline is not None and stored is None:
        node = pipeline.plan.steps.get(step_id)
        if node is None:
            raise ResultStorageError(f"Pipeline {pipeline.name!r} has no step '{step_id}'.")
        record = decode_record(StoredStep(content), StepCodec.of(step_id, node.step))
    return StoredResult(
        run_id=str(flow_run.id),
        run_name=flow_run.name,
        step_id=step_id,
        state=task_run.state_name or "",
        location=location,
        content=content,
        record=record,
    )


@dataclass(frozen=True, slots=True)
class Records:
    """The records of tasks, in the storage that was named, or else in the settings' own."""

    settings: FastroAISettings
    storage: object = None
    _opened: dict[object, ResultStore] = field(default_factory=dict)

    async def of(self, task_run: TaskRun) -> tuple[str, dict[str, Any]]:
        """Where the record of a task is, and its content.

        Raises:
            ResultStorageError: None is stored, or it is not valid.
        """
        key = storage_key_of(task_run.state)
        if key is None:
            raise ResultStorageError(
                f"Step '{task_run.name}' of run {task_run.flow_run_id} stored no result: its task "
                f"is {task_run.state_name or 'new'}."
            )
        storage = self._chosen()
        if self.storage is None and Path(key).is_absolute():
            # a local folder, whatever the settings say by now
            storage, key = Path(key).parent, Path(key).name
        store = await self._store_at(storage)
        location = f"{store.described}, {key}"
        step_storage = StepStorage(store=store, step_id=task_run.name)
        return location, await read_content(step_storage, key, location)

    async def of_items(
        self, task_run: TaskRun, item: str | None
    ) -> tuple[str, dict[str, Any]] | None:
        """Where the items of a mapped step are, and what is kept of them, or of one; None where
        none are.

        Raises:
            ResultStorageError: They can't be read, or the one is not there.
        """
        store = await self._store_at(self._chosen())
        found = await stored_items(store, task_run.flow_run_id, task_run.name)
        if found is None:
            return None
        items = {key: stored.model_dump(mode="json") for key, stored in found.items()}
        if item is None:
            return store.described, {"items": items}
        if item not in items:
            raise ResultStorageError(
                f"Nothing is kept of an item {item!r} of step '{task_run.name}': it was not "
                f"finished, or has another key. There are {len(items):,} others."
            )
        return store.described, items[item]

    def _chosen(self) -> object:
        return self.settings.result_storage if self.storage is None else self.storage

    async def _store_at(self, storage: object) -> ResultStore:
        name = str(storage)
        if name not in self._opened:
            self._opened[name] = await open_store(storage, self.settings)
        return self._opened[name]


async def find_flow_run(client: PrefectClient, run: str) -> FlowRun:
    try:
        filter_ = FlowRunFilter.model_validate({"id": {"any_": [UUID(run)]}})
    except ValueError:
        filter_ = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
    # The executions of a run key have its name: the latest is the one to ask about.
    latest = FlowRunSort.EXPECTED_START_TIME_DESC
    found = await client.read_flow_runs(flow_run_filter=filter_, sort=latest, limit=1)
    if found:
        return found[0]
    raise ResultStorageError(
        f"Prefect knows no flow run {run!r}. Give its id or its name, and PREFECT_API_URL of the "
        "server that ran it."
    )


async def find_task_run(client: PrefectClient, flow_run: FlowRun, step_id: str) -> TaskRun:
    of_run = FlowRunFilter.model_validate({"id": {"any_": [flow_run.id]}})
    task_runs = partial(client.read_task_runs, flow_run_filter=of_run)
    by_name = TaskRunFilter(name=TaskRunFilterName(any_=[step_id]))
    found = await task_runs(task_run_filter=by_name)
    # States of tasks reach the server as events, some time after the run has ended.
    while has_just_ended(flow_run) and not have_ended(found):
        await asyncio.sleep(0.1)
        found = await task_runs(task_run_filter=by_name)
    if not found:
        names = ", ".join(sorted({task_run.name for task_run in await task_runs()}))
        raise ResultStorageError(
            f"Run {flow_run.name!r} has no step '{step_id}'. It has: {names or 'none yet'}."
        )
    # A record that was not believed leaves a second task, which ran the step anew.
    return max(found, key=by_record)


def by_record(task_run: TaskRun) -> tuple[bool, datetime | None]:
    """Sorts tasks that stored a record behind those that did not, and the latest last."""
    return storage_key_of(task_run.state) is not None, task_run.start_time or task_run.created


def has_just_ended(flow_run: FlowRun) -> bool:
    """Whether states of its tasks may still be on their way."""
    return flow_run.end_time is not None and datetime.now(UTC) - flow_run.end_time < _EVENTS_TAKE


def have_ended(task_runs: Sequence[TaskRun]) -> bool:
    states = [task_run.state for task_run in task_runs]
    return bool(states) and all(state is not None and state.is_final() for state in states)


def storage_key_of(state: State[object] | None) -> str | None:
    data = state.data if state is not None and state.is_completed() else None
    return data.storage_key if isinstance(data, ResultRecordMetadata) else None


async def read_content(storage: StepStorage, key: str, location: str) -> dict[str, Any]:
    try:
        content = loads_strictly(loads_strictly(await storage.read_path(key))["result"])
        if type(content) is not dict:
            raise ValueError("it holds no record")
    except Exception as error:
        cause = error.__cause__ or error
        raise ResultStorageError(
            f"There is no result that can be believed at {location}: {type(cause).__name__}: "
            f"{cause}. A run would take "
            "it for missing. FASTROAI_RESULT_STORAGE and FASTROAI_RESULT_SECRET have to be those "
            "of the run."
        ) from error
    return content
