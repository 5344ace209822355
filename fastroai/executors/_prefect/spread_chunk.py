"""A flow run that works on some items of another run's mapped step."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Failed

from ...budgets import listen
from ...database.location import ledger_url
from ...errors import MappedStepError, PipelineValidationError, ResultStorageError
from ...leases.run_lease import GuardedStore
from ...ledger.store import shared_store
from ...pipelines.context import StepContext
from ...pipelines.item_sources import GivenItems
from ...pipelines.map_state import Item
from ...pipelines.mapped import MappedStep
from ...pipelines.plan import ExecutionPlan, PlannedStep
from ...redaction import redact
from ...replay.chunked_records import ChunkedRecords
from ...serialization.canonical_json import digest
from ...settings import FastroAISettings
from ..session import RunSession
from ..step_codec import StepCodec
from .chunk_runs import CHUNK_LABEL, STEP_LABEL
from .events import RunEvents
from .flow_run_lease import flow_run_lease
from .kept_items import ItemsOf, KeptItems
from .map_task import gathering_seconds, with_options
from .options import PrefectOptions
from .run_scope import UNIDENTIFIED, was_run_before
from .run_storage import open_storage
from .spread_records import (
    ChunkRecord,
    FailureRecord,
    SharedRecord,
    read_record,
)

logger = logging.getLogger("fastroai.executors")

LOOK = 3.0
"""Seconds between two looks at whether somebody still waits for the items."""
NO_LIMIT = 2**31


async def run_chunk(
    flow_run: FlowRun,
    plan: ExecutionPlan,
    inputs: Mapping[str, Any],
    deps: Any,
    tracer: Any,
    options: PrefectOptions,
    settings: FastroAISettings,
) -> State[Any]:
    """Work on the items that the labels of a flow run name.

    Each item is kept, booked and reused as if the run that spreads it had worked on it.

    Returns:
        How the flow run ends.

    Raises:
        ResultStorageError: They can't be read.
        PipelineValidationError: The code here is not that of the run that waits for them.
        LedgerUnavailableError: The ledger can't be written, and must be.
    """
    planned = _planned(plan, flow_run.labels.get(STEP_LABEL))
    node = planned._replace(config=with_options(planned.config, options.default_task_config))
    storage = await open_storage(plan, options.result_storage, settings)
    store, name = storage.by_step[node.step_id].store, flow_run.labels[CHUNK_LABEL]
    chunk = await read_record(store, name, ChunkRecord)
    shared = await read_record(store, chunk.shared, SharedRecord)
    if shared.step_id != node.step_id or shared.fingerprint != plan.fingerprints[node.step_id]:
        raise PipelineValidationError(
            f"The code of step '{node.step_id}' is not the same here as in flow run "
            f"{shared.flow_run}, whose items it is to work on. Deploy one version to all workers."
        )
    ledger = await shared_store(ledger_url(settings), required=settings.ledger_required)
    async with flow_run_lease(flow_run, shared.attribution, settings) as lease:
        leases = () if lease is None else (lease,)
        session = RunSession(
            plan,
            inputs,
            deps,
            tracer,
            identity=shared.attribution,
            store=GuardedStore(ledger, leases),
            settings=settings,
            leases=leases,
            began_before=shared.began,
        )
        work = ChunkWork(session, node, shared, chunk, str(name), store, was_run_before(flow_run))
        leave_budgets = listen(RunEvents(flow_run, shared.attribution).hear)
        try:
            async with storage, session:
                state = await work.unless_given_up()
        finally:
            leave_budgets()
        if lease is not None:
            lease.lease.outcome = "completed" if state.is_completed() else "partial"
    return state


def _planned(plan: ExecutionPlan, step_id: object) -> PlannedStep:
    """
    Raises:
        PipelineValidationError: There is no such mapped step.
    """
    if not isinstance(step_id, str) or step_id not in plan.steps:
        raise PipelineValidationError(f"The pipeline has no step {step_id!r}; deploy it again.")
    node = plan.steps[step_id]
    if not node.is_mapped:
        raise PipelineValidationError(f"Step '{step_id}' is not mapped here; deploy it again.")
    return node


@dataclass(frozen=True, slots=True)
class _ItemsOfChunk(ItemsOf):
    """Records of items that are found by the digests that the other run has made of them."""

    digests: Mapping[str, str]

    def key_of(self, item: Item) -> str:
        """See `ItemsOf.key_of`."""
        # Not super(): a dataclass with slots is another class than the one it is written in.
        return ItemsOf.key_of(self, replace(item, digest=self.digests[item.key]))


@dataclass(eq=False)
class ChunkWork:
    """The work on one chunk.

    Attributes:
        name: Of the chunk's record.
        store: Where records are.
        is_again: Whether it was begun before.
    """

    session: RunSession
    node: PlannedStep
    shared: SharedRecord
    chunk: ChunkRecord
    name: str
    store: Any
    is_again: bool
    _items: KeptItems = field(init=False)
    _errors: ChunkedRecords = field(init=False)

    def __post_init__(self) -> None:
        digests = dict(zip(self.chunk.keys, self.chunk.digests, strict=True))
        self._errors = ChunkedRecords(self.store, self.shared.errors)
        # The other run has looked for them before it gave them away.
        records = ChunkedRecords(
            self.store,
            self.shared.items[:32],
            self.node.step_id,
            is_empty=not self.is_again,
            gathering=gathering_seconds(self.shared.requests is not None),
        )
        requests = None
        if (base := self.shared.requests) is not None:
            is_empty = not (self.is_again or self.shared.may_have_requests)
            requests = _ItemsOfChunk(
                base, ChunkedRecords(self.store, base[:32], is_empty=is_empty), digests
            )
        self._items = KeptItems(
            [_ItemsOfChunk(self.shared.items, records, digests)],
            requests,
            inputs=self.session.inputs,
            source=object,
        )

    async def unless_given_up(self) -> State[Any]:
        """Work on the items until they are done, or nobody waits for them any more."""
        working = asyncio.create_task(self._work(), name="fastroai-chunk")
        watching = asyncio.create_task(self._until_nobody_waits(), name="fastroai-parent")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return await working
            return Cancelled(message=await watching)
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.wait({working, watching})
            await self._errors.close()
            await self.session.recorder.flush()

    async def _until_nobody_waits(self) -> str:
        """Returns, with the reason, once the run that waits for the items has ended."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                async with get_client() as client:
                    state = (await client.read_flow_run(self.shared.flow_run)).state
            except Exception as error:  # a server that does not answer says nothing
                logger.debug("Whether anybody waits is not known: %s", redact(repr(error)))
                continue
            # One that crashed may be resumed, and then uses what was done meanwhile.
            has_ended = state is not None and state.is_final() and not state.is_crashed()
            if state is not None and (has_ended or state.is_cancelling()):
                return f"Flow run {self.shared.flow_run}, which waited for it, is {state.name}."

    async def _work(self) -> State[Any]:
        session, node = self.session, self.node
        step = copy.copy(node.step)
        assert isinstance(step, MappedStep)
        # Items have their keys; which share of all may fail is for the other run to say.
        step.key = None
        step.max_failures = NO_LIMIT if isinstance(step.max_failures, float) else step.max_failures
        config = copy.copy(node.config)
        config.persist_result = True  # that is how they come back
        state, shared = session.step_state(node.step_id), session.map_state(node.step_id)
        shared.store, shared.around = self._items, self._told
        outputs = self._dependencies() | {step.over: GivenItems(await self._given(step.over))}
        context: StepContext[Any] = StepContext(
            node.step_id,
            session.inputs,
            session.deps,
            outputs,
            session.tracer,
            config,
            state=state,
        )
        state.begin_attempt(1)
        try:
            with state.scope_of():
                await step.execute(context)
        except MappedStepError as error:
            words = f"{shared.progress.in_words()}. {error}"
            return Failed(message=redact(words))
        return Completed(message=shared.progress.in_words())

    async def _told(self, item: Item, run: Callable[[], Awaitable[None]]) -> None:
        """Run an item; that it failed is told the run that waits for it."""
        try:
            await run()
        except Exception as error:
            recorder, step_id = self.session.recorder, self.node.step_id
            await recorder.flush()
            entries = recorder.of_item(step_id, item.key)
            record = FailureRecord.made_of(error, entries)
            await self._errors.write(self._name_of(item.key), record.as_bytes())
            raise

    def _name_of(self, key: str) -> str:
        """Of the record of an item's failure."""
        folder = self._items.folders[0]
        return f"{self.name}:{folder.key_of(Item(key, None, '', 0))}"

    async def _given(self, over: str) -> list[tuple[str, Any]]:
        """The items with their keys, without those that failed before.

        Raises:
            ResultStorageError: The input is not that of the other run.
        """
        if self.is_again:
            await self._errors.look()
        values = self._values(over)
        return [
            (key, value)
            for key, value in zip(self.chunk.keys, values, strict=True)
            if self._name_of(key) not in self._errors
        ]

    def _values(self, over: str) -> list[Any]:
        chunk = self.chunk
        if chunk.values is not None:
            node = self.session.plan.steps[over]
            codec = StepCodec.of(over, node.step)
            decoded = map(codec.decode, chunk.values)
            return list(decoded) if node.is_mapped else [value for [value] in decoded]
        source = self.session.inputs.get(over, ())
        for position, expected in zip(chunk.positions, chunk.digests, strict=True):
            if not expected.startswith(UNIDENTIFIED) and (
                position >= len(source) or digest(source[position]) != expected
            ):
                raise ResultStorageError(
                    f"Element {position} of {over!r} in the input is not what it is in flow run "
                    f"{self.shared.flow_run}, whose items are worked on here. Deploy one version "
                    "to all workers."
                )
        return [source[position] for position in chunk.positions]

    def _dependencies(self) -> dict[str, Any]:
        plan, stored = self.session.plan, self.shared.dependencies
        return {
            step_id: StepCodec.of(step_id, plan.steps[step_id].step).decode(stored[step_id])
            for step_id in stored
        }
