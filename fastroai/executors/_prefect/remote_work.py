"""Steps that were sent to this process by a task runner: they run in its one event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

from prefect import Flow

from ...budgets import listen
from ...errors import FastroAIError, PipelineValidationError
from ...fingerprint.steps import fingerprint
from ...leases.followed import follow
from ...leases.run_lease import GuardedStore, Held
from ...ledger.entries import LedgerEntry
from ...ledger.store import shared_store
from ...pipelines.config import PipelineConfig
from ...pipelines.context import StepContext
from ...pipelines.deps import live_deps
from ...pipelines.plan import ExecutionPlan, PlannedStep
from ...pipelines.step_state import StepState
from ...pricing.price_file import with_readable_prices
from ...redaction import redact
from ...replay.journal import Journal
from ..session import RunSession
from .error_texts import mask_secrets
from .events import RunEvents
from .journal import StoredJournal
from .remote_orders import Answer, Asking, Call, Order, Packed, found_at, pack, place_of, unpack
from .run_scope import active_flow_run
from .run_storage import open_store


async def _nothing() -> None: ...


bare_flow: Flow[Any, Any] = Flow(_nothing, name="fastroai")
"""Stands for a run's flow on the way to another process: its own holds what can't be sent."""


def work_on(order: Packed, calls: list[Packed]) -> list[Packed]:
    """What a task runner runs; blocks until all calls have ended."""
    # One loop for the process: the clients of models belong to the loop that they were used in.
    return asyncio.run_coroutine_threadsafe(_work_on(unpack(order), calls), _loop()).result()


_starting = threading.Lock()  # a worker may have several threads that begin at once


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _running_loop()


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="fastroai-steps", daemon=True).start()
    return loop


async def _work_on(order: Order, calls: list[Packed]) -> list[Packed]:
    node: PlannedStep = unpack(order.node)
    _check_code(order, node)
    session, leave = await _session_of(order, node)
    with leave:
        async with live_deps(None, unpack(order.factory)) as deps, session:
            session.deps = deps
            work = partial(_answer, session, node, order)
            return await asyncio.gather(*map(work, map(unpack, calls)))


def _check_code(order: Order, node: PlannedStep) -> None:
    """
    Raises:
        PipelineValidationError: The code here is not that of the run.
    """
    place = place_of(node.step)
    if place is not None and order.fingerprint not in (None, _fingerprint_of(*place)):
        raise PipelineValidationError(
            f"The code of step '{order.step_id}' is not the same on the worker "
            f"{socket.gethostname()} as where the run is. Give both one version."
        )


@cache
def _fingerprint_of(module: str, name: str) -> str:
    return fingerprint(found_at(module, name))


async def _session_of(order: Order, node: PlannedStep) -> tuple[RunSession, ExitStack]:
    """The run as it is seen here, and what to leave when the work is done."""
    leave, asking = ExitStack(), order.asking
    config = PipelineConfig() if asking is None else unpack(asking.config)
    further = () if asking is None else asking.further_budgets
    plan = ExecutionPlan({node.step_id: node}, {node.step_id: ()}, config, further)
    store: GuardedStore | None = None
    leases: Held = ()
    settings = with_readable_prices(order.settings)
    if asking is not None:
        _check_ledger(order, asking)
        leases = follow(asking.claims, settings)
        ledger = await shared_store(asking.ledger_url, required=settings.ledger_required)
        store = GuardedStore(ledger, leases)
        if (flow_run := active_flow_run()) is not None:
            leave.callback(listen(RunEvents(flow_run, order.identity).hear))
    inputs = _Unpacked(order.inputs, order.over)
    session = RunSession(
        plan if asking is not None else _without_budgets(plan),
        inputs,
        None,
        None,
        identity=order.identity,
        store=store,
        settings=settings,
        leases=leases,
        began_before=None if asking is None else asking.began,
    )
    if asking is None:
        session.recorder.limits = _AsksNothing()
    session.outputs = _Unpacked(order.outputs, order.over)
    return session, leave


class _Unpacked(dict[str, Any]):
    """What a step may read, without what it is mapped over."""

    def __init__(self, packed: Mapping[str, Packed], over: str | None) -> None:
        super().__init__((name, unpack(value)) for name, value in packed.items())
        self._over = over

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self or name == self._over else default

    def __missing__(self, name: str) -> Any:
        if name == self._over:
            raise PipelineValidationError(
                f"An item that a worker of the task runner has can't read all of '{name}', which "
                "its step is mapped over. Have a step between them give what each item needs, or "
                "set remote=False."
            )
        raise KeyError(name)


def _without_budgets(plan: ExecutionPlan) -> ExecutionPlan:
    nodes = {
        step_id: node._replace(config=replace(node.config, cost_budget=None, budget=None))
        for step_id, node in plan.steps.items()
    }
    return replace(plan, steps=nodes)


def _check_ledger(order: Order, asking: Asking) -> None:
    """
    Raises:
        PipelineValidationError: The ledger is a file of another machine.
    """
    here = socket.gethostname()
    if asking.ledger_url.startswith("sqlite") and here != order.host:
        raise PipelineValidationError(
            f"Step '{order.step_id}' may ask models (remote=True) on {here}, and the ledger is a "
            f"file on {order.host}. Set FASTROAI_LEDGER_URL to a PostgreSQL database, or "
            "remote=False."
        )


class _AsksNothing:
    """Refuses each request of a step that computes."""

    async def admit(self, entry: LedgerEntry) -> LedgerEntry:
        raise PipelineValidationError(
            f"Step '{entry.attribution.step_id}' asks a model on a worker of the task runner, "
            "where it computes only. Have another step ask, which stays where the run is, or set "
            "remote=True in its StepConfig; items of a mapped step ask where the run is, or spread."
        )

    def note(self, entry: LedgerEntry) -> None: ...
    def forget(self, entry: LedgerEntry) -> None: ...


async def _answer(session: RunSession, node: PlannedStep, order: Order, call: Call) -> Packed:
    """Make one attempt; whatever it raises is in the answer."""
    state = session.step_state(node.step_id)
    if call.item is not None:
        state = StepState(node.step_id, session, item=call.item.key)
    session.recorder.adopt(call.entries)
    output: Packed | None = None
    failure: BaseException | None = None
    try:
        state.journal = await _journal_of(order, session)
        if state.journal is not None:
            state.journal.learn(call.records)
        state.begin_attempt(call.attempt)
        output = _packed_output(node, await _attempt(session, node, call, state))
    except BaseException as error:
        failure = error
    finally:
        await session.recorder.flush()
    known = {entry.id: entry for entry in call.entries}
    records = {} if state.journal is None else state.journal.records
    return pack(
        Answer(
            output=output,
            error=None if failure is None else _packed_error(failure),
            is_final=failure is not None and state.is_final(failure),
            entries=tuple(each for each in state.entries if known.get(each.id) != each),
            records={place: records[place] for place in records.keys() - call.records.keys()},
            reads=frozenset(state.reads),
            unmetered=session.recorder.unmetered.get(node.step_id, {}),
            tool_calls=state.tool_calls,
            processing_time_ms=state.processing_time_ms,
        )
    )


async def _journal_of(order: Order, session: RunSession) -> Journal | None:
    asking = order.asking
    if asking is None or asking.journal is None:
        return None
    if asking.recorded_for is None:
        return Journal(asking.journal)
    store = await open_store(unpack(asking.storage), session.settings)
    stored = StoredJournal(store, asking.recorded_for, session.name, asking.ledger_url)
    # Never empty: the runner may have had this very order worked on before, by a worker that died.
    return Journal(asking.journal, stored)


async def _attempt(session: RunSession, node: PlannedStep, call: Call, state: StepState) -> Any:
    config = node.config
    context: StepContext[Any] = StepContext(
        node.step_id,
        session.inputs,
        session.deps,
        session.outputs,
        session.tracer,
        config,
        state=state,
        item=call.item,
    )
    with state.scope_of():
        async with state.in_time(config):
            return await node.step.execute(context)


def _packed_output(node: PlannedStep, output: object) -> Packed:
    """
    Raises:
        PipelineValidationError: It can't be sent back.
    """
    try:
        packed = pack(output)
        unpack(packed)  # what only seems to be one has its error here
    except Exception as error:
        raise PipelineValidationError(
            f"Step '{node.step_id}' returned {type(output).__qualname__} on a worker of the task "
            f"runner, which can't be sent back: {error}. Return plain values, pydantic models or "
            "dataclasses, or keep the step where the run is with remote=False."
        ) from error
    return packed


def _packed_error(error: BaseException) -> Packed:
    """An error with where it was raised as a note."""
    mask_secrets(error)
    if not isinstance(error, FastroAIError):
        raised = "".join(traceback.format_exception(error)).rstrip()
        error.add_note(redact(f"On the worker {socket.gethostname()}:\n{raised}"))
    return pack(error)
