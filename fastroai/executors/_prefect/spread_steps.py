"""Which mapped steps of a run have their items worked on by other runs, and which can't."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial

from prefect.client.schemas.objects import FlowRun
from pydantic_core import to_jsonable_python

from ...database.location import MEMORY
from ...errors import PipelineValidationError
from ...pipelines.map_state import MapState
from ...pipelines.mapped import MappedStep
from ...pipelines.plan import ExecutionPlan, PlannedStep
from ...replay.chunked_records import ChunkedRecords
from ...serialization.canonical_json import digest
from .kept_items import KeptItems
from .map_task import MapTask
from .options import Spread
from .spread_given import GivenRecords
from .spread_map import SpreadItems
from .spread_runs import ChunkRuns


def spread_items(
    spread: Spread, flow_run: FlowRun, mapped: Iterable[MapTask], ledger_url: str
) -> None:
    """Have the items of a run's mapped steps worked on by other runs of its deployment; a run of no
    deployment, where none is named, does so itself.

    Raises:
        PipelineValidationError: See `check_can_be_spread`.
    """
    if spread.deployment is None and flow_run.deployment_id is None:
        return
    for step in mapped:
        check_can_be_spread(step.node, step.session.plan, ledger_url)
        step.spread = partial(_spread, spread, flow_run)


def _spread(
    spread: Spread, flow_run: FlowRun, step: MapTask, shared: MapState, kept: KeptItems
) -> None:
    session, step_id = step.session, step.node.step_id
    subject = digest([step.scope.text, session.name, step_id, "spread"])[:32]
    parameters = flow_run.parameters
    if flow_run.deployment_id is None:
        parameters = {"inputs": to_jsonable_python(dict(session.inputs))}
    items = SpreadItems(
        spread=spread,
        kept=kept,
        errors=ChunkedRecords(step.storage.store, subject),
        given=GivenRecords(session, step.node, kept, flow_run.id, _created(flow_run), subject),
        runs=ChunkRuns(
            parent=flow_run.id,
            deployment=spread.deployment or flow_run.deployment_id or "",
            parameters=parameters,
            step_id=step_id,
            tag=f"fastroai-map-{subject[:16]}",
            settings=session.settings,
        ),
        session=session,
        node=step.node,
        may_go_on=step.scope.may_have_results,
    )
    shared.store, shared.around = items, items.work_on
    shared.at_once = spread.items * spread.runs


def _created(flow_run: FlowRun) -> datetime:
    # Prefect's times are of a class of their own.
    created = flow_run.created
    return (
        datetime.now(UTC) if created is None else datetime.fromtimestamp(created.timestamp(), UTC)
    )


def check_can_be_spread(node: PlannedStep, plan: ExecutionPlan, ledger_url: str) -> None:
    """Refuse what processes that do not see each other can't do, before anything is spent.

    Raises:
        PipelineValidationError: The run has a budget that holds what requests may cost, a mapped
            step needs the whole of another, or keeps no items; or the ledger is of this process.
    """
    if ledger_url == MEMORY:
        raise PipelineValidationError(
            "Items are spread over processes, which can't share FASTROAI_LEDGER_URL=memory://. "
            "Give a database."
        )
    if any(budget.strength == "reserved" for budget in plan.budgets[0]):
        raise PipelineValidationError(
            "The run has a budget of strength 'reserved', which its process keeps by itself, and "
            "its items are spread over processes. Give a standing budget (`fastroai budgets set`), "
            "one of strength 'settled', or budgets of items."
        )
    if node.config.cache_policy == "off" or node.config.persist_result is False:
        raise PipelineValidationError(
            f"Step '{node.step_id}' keeps no items (cache_policy='off' or persist_result=False), "
            "by which those that are spread over processes come back."
        )
    assert isinstance(node.step, MappedStep)
    for dependency in node.dependencies:
        if dependency != node.step.over and plan.steps[dependency].is_mapped:
            raise PipelineValidationError(
                f"Step '{node.step_id}' depends on all outputs of '{dependency}', which can't be "
                "handed to other processes. Have a step between them give what each item needs."
            )
