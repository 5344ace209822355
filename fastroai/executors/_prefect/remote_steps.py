"""Which steps of a run its task runner has worked on, and what becomes of that in the run."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prefect.context import FlowRunContext

from ...database.location import MEMORY
from ...errors import LedgerUnavailableError, PipelineValidationError
from ...fingerprint.steps import fingerprint
from ...ledger.filters import LedgerFilter
from ...pipelines.base import AnyStep, BaseStep
from ...pipelines.context import ContextParts, StepContext
from ...pipelines.decorators import FunctionStep
from ...pipelines.deps import DepsFactory
from ...pipelines.mapped import MappedStep
from ...pipelines.plan import PlannedStep
from ...pipelines.step_state import StepState
from ..session import RunSession
from .journal import StoredJournal
from .options import PrefectOptions
from .remote_calls import RemoteCalls
from .remote_orders import Answer, Asking, Call, Order, Packed, pack, pack_for, place_of, unpack
from .run_scope import was_run_before
from .step_task import StepTask

logger = logging.getLogger("fastroai.executors")


def is_remote(node: PlannedStep) -> bool:
    """Whether a task runner has a step worked on."""
    if node.config.remote is not None:
        return node.config.remote
    inner = node.step.step if isinstance(node.step, MappedStep) else node.step
    return isinstance(inner, FunctionStep) and inner.is_plain


def send_steps(
    steps: Iterable[StepTask],
    session: RunSession,
    options: PrefectOptions,
    deps_factory: DepsFactory | None,
    ledger_url: str,
) -> None:
    """Have the code of those steps of a run that are remote run by the task runner of its flow.

    Raises:
        PipelineValidationError: One of them can't be: it, the input or the deps can't go to another
            process, or its requests could not be booked there. Nothing was run.
    """
    sent = [step for step in steps if is_remote(step.node)]
    if options.spread is not None:
        # Further runs of the deployment work on their items.
        sent = [step for step in sent if not step.node.is_mapped]
    if not sent:
        return
    flow = FlowRunContext.get()
    assert flow is not None, "called within a flow run"
    factory = deps_factory or options.deps_factory
    if factory is None and session.deps is not None:
        raise PipelineValidationError(
            f"Step '{sent[0].node.step_id}' is worked on by the task runner, in another process "
            "that the run's deps don't reach. Give what makes them there: "
            "PrefectExecutor(deps_factory=…), or to_flow(deps_factory=…)."
        )
    common = _Common(session, options, factory, ledger_url, flow)
    for step in sent:
        common.check(step.node)
        remote = RemoteStep(common, step)
        inner: AnyStep = remote
        if isinstance(step.node.step, MappedStep):
            inner = mapped = copy.copy(step.node.step)
            mapped.step = remote
        step.runs = step.node._replace(
            step=inner,
            config=_without_deadline(step.node.config),
            whole=_without_deadline(step.node.whole),
        )


def _without_deadline(config: Any) -> Any:
    """A configuration for where the run is: the time in which a step waits for a worker is not its
    own.
    """
    changed = copy.copy(config)
    changed.timeout = None
    return changed


@dataclass(eq=False)
class _Common:
    """What the remote steps of one run share."""

    session: RunSession
    options: PrefectOptions
    factory: DepsFactory | None
    ledger_url: str
    flow: FlowRunContext
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    submitting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _inputs: dict[str, Packed] = field(default_factory=dict)

    def inputs(self, step_id: str, left_out: str | None) -> Mapping[str, Packed]:
        """The run's input, each value packed once.

        Args:
            left_out: What a step is mapped over; its items have their elements.
        """
        found = self._inputs
        for key, value in self.session.inputs.items():
            if key not in found and key != left_out:
                found[key] = pack_for(step_id, f"the input {key!r}", value)
        return {key: packed for key, packed in found.items() if key != left_out}

    def check(self, node: PlannedStep) -> None:
        """Refuse what could not be booked where the step is.

        Raises:
            PipelineValidationError: The ledger is of this process, or a budget is kept by it.
        """
        if not may_ask(node):
            return
        if self.ledger_url == MEMORY:
            raise PipelineValidationError(
                f"Step '{node.step_id}' has remote=True, and may ask models in another process, "
                "which can't book them in FASTROAI_LEDGER_URL=memory://. Give a database."
            )
        limits, own = self.session.limits, self.session.plan.budgets[0]
        held = () if limits is None else limits.of_step(None)
        is_reserved = any(limit.budget.strength == "reserved" for limit in held)
        if is_reserved or len(held) > len(own):
            raise PipelineValidationError(
                f"Step '{node.step_id}' has remote=True, and may ask models in another process, "
                "while its run is within a budget that this process keeps by itself: one of "
                "strength 'reserved', or of a step around the run. Give a standing budget "
                "(`fastroai budgets set`) or one of strength 'settled', or leave remote out."
            )


def may_ask(node: PlannedStep) -> bool:
    """Whether a remote step may ask models where it is."""
    return node.config.remote is True and not node.is_mapped


class RemoteStep(BaseStep[Any, Any]):
    """Stands for a step, or for that of each item: has its code run by the task runner.

    Raises:
        PipelineValidationError: It can't be sent.
    """

    def __init__(self, common: _Common, task: StepTask) -> None:
        node = task.node
        self._node, self._common = node, common
        self._asks = may_ask(node)
        self._over = node.step.over if isinstance(node.step, MappedStep) else None
        inner = node.step.step if isinstance(node.step, MappedStep) else node.step
        where = node._replace(step=inner, is_mapped=False, streams_from=None)
        self._is_empty = not task.scope.may_have_results
        step_id = node.step_id
        self._packed = pack_for(step_id, "its code", where)
        self._inputs = common.inputs(step_id, self._over)
        self._factory = pack_for(step_id, "its deps factory", common.factory)
        self._fingerprint = None
        if place_of(inner) is not None:
            self._fingerprint = fingerprint(inner)
        self._config = self._storage = pack(None)
        if self._asks:
            config, options = common.session.plan.config, common.options
            self._config = pack_for(step_id, "the pipeline's configuration", config)
            storage = node.config.result_storage or options.result_storage
            storage = storage or common.session.settings.result_storage
            self._storage = pack_for(step_id, "its result storage", storage)
        self._calls = RemoteCalls(step_id, common.flow, common.submitting, node.is_mapped)
        self._order: Packed | None = None

    async def execute(self, context: StepContext[Any]) -> Any:
        """Run an attempt elsewhere.

        Raises:
            PipelineValidationError: What it needs can't be sent.
            RemoteItemError: Its worker was lost; or it raised what could not be sent back.
            BaseException: What it raised, as its worker sent it.
        """
        parts = ContextParts.of(context)
        if self._order is None:
            self._order = pack(self._order_of(parts))
        state = parts.state
        call = Call(
            attempt=state.attempt,
            item=parts.item,
            entries=state.entries if self._asks else (),
            records={} if not self._asks or state.journal is None else state.journal.records,
        )
        what = "its state" if parts.item is None else f"item {parts.item.key!r}"
        packed = pack_for(self._node.step_id, what, call)
        try:
            answer = await self._calls.send(self._order, packed)
        finally:
            if self._asks:
                await self._adopt_what_is_booked()
        return self._taken(answer, state)

    def _order_of(self, parts: ContextParts) -> Order:
        node, session = self._node, self._common.session
        outputs = {
            step_id: pack_for(node.step_id, f"the output of step '{step_id}'", output)
            for step_id, output in parts.outputs.items()
            if step_id != self._over
        }
        return Order(
            step_id=node.step_id,
            node=self._packed,
            fingerprint=self._fingerprint,
            over=self._over,
            inputs=self._inputs,
            outputs=outputs,
            factory=self._factory,
            identity=session.identity,
            settings=session.settings,
            asking=self._asking(parts.state) if self._asks else None,
        )

    def _asking(self, state: StepState) -> Asking:
        session, common = self._common.session, self._common
        journal = state.journal
        stored = None if journal is None else journal.store
        created = common.flow.flow_run.created if common.flow.flow_run is not None else None
        return Asking(
            ledger_url=common.ledger_url,
            claims=tuple(held.lease.claim for held in session.leases),
            # Prefect's times are of a class of their own.
            began=common.began if created is None else _plain(created),
            config=self._config,
            further_budgets=session.plan.further_budgets,
            journal=None if journal is None else journal.step,
            recorded_for=stored.run if isinstance(stored, StoredJournal) else None,
            storage=self._storage,
        )

    async def _adopt_what_is_booked(self) -> None:
        """Count what the ledger has of a worker that died before it could tell."""
        session = self._common.session
        recorder, step_id = session.recorder, self._node.step_id
        flow_run = self._common.flow.flow_run
        is_first = self._is_empty and flow_run is not None and not was_run_before(flow_run)
        # All of it in a first execution, whatever the clocks of other machines say.
        since = None if is_first else self._common.began
        where = LedgerFilter(run_id=session.identity.run_id, step_id=step_id, since=since)
        try:
            booked = await recorder.stored(where)
        except LedgerUnavailableError as error:  # what came of it must not be lost for that
            logger.warning("What step %r has booked elsewhere can't be read: %s", step_id, error)
            return
        known = {entry.id for entry in recorder.of_step(step_id)}
        recorder.adopt(entry for entry in booked if entry.id not in known)

    def _taken(self, answer: Answer, state: StepState) -> Any:
        """Count what was done elsewhere as this run's; then its output, or its error."""
        recorder = self._common.session.recorder
        recorder.adopt(answer.entries)
        state.reads |= answer.reads
        state.add_work(answer.tool_calls, answer.processing_time_ms)
        if state.journal is not None:
            state.journal.learn(answer.records)
        for host, requests in answer.unmetered.items():
            for _ in range(requests):
                recorder.notice(self._node.step_id, host)
        if answer.error is not None:
            error: BaseException = unpack(answer.error)
            raise state.final(error) if answer.is_final else error
        assert answer.output is not None, "of a call that did not fail"
        return unpack(answer.output)


def _plain(created: datetime) -> datetime:
    return datetime.fromtimestamp(created.timestamp(), UTC)
