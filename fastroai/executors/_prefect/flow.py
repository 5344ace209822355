"""A pipeline as a Prefect flow."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import anyio
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from ...budgets import BudgetState, listen
from ...budgets.standing import states_for
from ...database.location import ledger_url
from ...errors import StepExecutionError, is_pause
from ...leases.run_lease import GuardedStore, Held
from ...ledger.entries import Attribution, LedgerEntry
from ...ledger.store import LedgerStore, shared_store
from ...pipelines.deps import DepsFactory, live_deps
from ...pipelines.pipeline import Pipeline
from ...pipelines.plan import ExecutionPlan
from ...pricing.price_file import with_readable_prices
from ...redaction import redact
from ...settings import FastroAISettings, load_settings
from ...storage.sources import input_given_by_others
from ..protocol import ExecutionResult
from ..scheduler import run_plan
from ..session import RunSession, leases_around
from .artifacts import ArtifactWriter, cost_line, write_output_artifact
from .budget_ends import end_at_budget, is_tried_again, may_be_suspended, outcome_at
from .chunk_runs import active_chunk_run
from .deployments import ANSWER_SECONDS, identity_of
from .events import RunEvents
from .flow_run_lease import NOT_STORED, flow_run_lease, outcome_of
from .options import PrefectOptions
from .paused_runs import raise_budgets
from .run_scope import active_flow_run, was_run_before
from .run_storage import RunStorage, describe_losses, open_storage
from .server import wait_for_task_runs
from .standing_costs import StandingCosts, ended
from .tasks import StepTasks

logger = logging.getLogger("fastroai.executors")


async def run_in_flow(
    plan: ExecutionPlan,
    inputs: dict[str, Any],
    deps: Any,
    tracer: Any,
    attribution: Attribution,
    options: PrefectOptions,
    settings: FastroAISettings,
    held: Held | None = None,
    *,
    deps_factory: DepsFactory | None = None,
) -> ExecutionResult:
    """Run a plan's steps as tasks of the flow run that is active here.

    Args:
        attribution: What the caller says of the run; the flow run adds what it knows.
        settings: As they were when the run began.
        held: The leases of this run and of those around it. None: those around it.
        deps_factory: Makes the deps of steps that a task runner has worked on elsewhere. None: as
            the options say.

    Raises:
        LedgerUnavailableError: The ledger can't be written, and must be; nothing was run.
        ResultStorageError: Results could not be kept; nothing was run.
        StepExecutionError: A step failed and the run does not go on without it.
        Abort: Somebody found the flow run dead and took it up.
    """
    context = FlowRunContext.get()
    assert context is not None, "called within a flow run"
    assert context.flow_run is not None
    flow_run = context.flow_run
    url = ledger_url(settings)
    store = await shared_store(url, required=settings.ledger_required)
    around = leases_around() if held is None else held
    async with flow_run_lease(flow_run, attribution, settings) as lease:
        leases = around if lease is None else (*around, lease)
        read = inputs if attribution.run_key is not None else None
        storage = await open_storage(plan, options.result_storage, settings, inputs=read)
        session = RunSession(
            plan,
            inputs,
            deps,
            tracer,
            identity=await identity_of(flow_run, attribution),
            store=GuardedStore(store, leases),
            settings=settings,
            leases=leases,
            began_before=_created(flow_run) if was_run_before(flow_run) else None,
        )
        if session.limits is not None:
            raise_budgets(session.all_limits(), flow_run)
        async with ArtifactWriter(settings.artifact_timeout) as artifacts:
            result = await _run_tasks(
                session, store, storage, options, artifacts, flow_run, deps_factory
            )
        if lease is not None:
            lease.lease.outcome = outcome_of(result)
        return result


async def _run_tasks(
    session: RunSession,
    store: LedgerStore,
    storage: RunStorage,
    options: PrefectOptions,
    artifacts: ArtifactWriter,
    flow_run: FlowRun,
    deps_factory: DepsFactory | None,
) -> ExecutionResult:
    """Run a session's steps as tasks, and report what they cost, however the run ends."""
    url = ledger_url(session.settings)
    events = RunEvents(flow_run, session.identity)
    steps = StepTasks(session, storage.by_step, options, artifacts, events, flow_run.id, url)
    # Only here: most runs send nothing elsewhere, and would wait for the imports.
    if options.task_runner is not None:
        from .remote_steps import send_steps

        send_steps(steps.all, session, options, deps_factory, url)
    if options.spread is not None and session.plan.has_maps:
        from .spread_steps import spread_items

        spread_items(options.spread, flow_run, steps.mapped, url)
    leave_budgets = listen(events.hear)
    outcome = "cancelled"
    try:
        async with storage, session:
            result = await session.conclude(await run_plan(session.plan, steps.run_one))
            _pause_if_asked(result, flow_run)
        result = replace(result, not_stored=storage.not_stored)
        outcome = outcome_of(result)
        return result
    except Exception as error:
        outcome = outcome_at(error, flow_run)
        raise
    finally:
        leave_budgets()
        standing: list[BudgetState] = []
        try:
            if store.has_budgets:
                standing = await _standing(session.recorder.entries, url)
        finally:  # cancelled while it asked, too: a run's cost table is not left out
            steps.report_run(storage.not_stored, standing)
        if session.recorder.entries:
            costs = StandingCosts(store, session.settings, artifacts)
            end = ended(flow_run, session.identity, outcome)
            artifacts.beside(costs.renew(end, flow_run.id))
        await wait_for_task_runs(steps.task_run_ids)


async def _standing(entries: Iterable[LedgerEntry], url: str) -> list[BudgetState]:
    """The standing budgets that a run counts in, for its cost table; none where nobody can say."""
    try:
        with anyio.fail_after(ANSWER_SECONDS, shield=True):
            return await states_for(entries, url)
    except Exception as error:
        logger.warning("Standing budgets could not be read: %s", redact(str(error)))
        return []


def _pause_if_asked(result: ExecutionResult, flow_run: FlowRun) -> None:
    """Have a run wait that went on after a step failed, where a budget says that it is to pause."""
    for error in result.errors.values():
        if is_pause(error) and may_be_suspended(flow_run):
            error.partial_result = result
            raise error


def _created(flow_run: FlowRun) -> datetime | None:
    """When a flow run was created."""
    if flow_run.created is None:
        return None
    # Prefect's times are of a class of their own, with which plain ones do not calculate.
    return datetime.fromtimestamp(flow_run.created.timestamp(), UTC)


class PipelineFlow(Flow[Any, Any]):
    """A pipeline's flow, which plain functions can call, too.

    Attributes:
        pipeline: Whose flow it is.
        deps_factory: What makes the deps where it runs, if it was made with one.
    """

    pipeline: Pipeline[Any, Any, Any]
    deps_factory: DepsFactory | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the flow: awaited in a coroutine; where no event loop runs, until it has ended."""
        call: Any = super().__call__
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(call(*args, **kwargs))
        return call(*args, **kwargs)

    def with_options(self, **options: Any) -> PipelineFlow:
        """The same flow with other options of `prefect.flow`."""
        made = super().with_options(**options)
        made.__class__ = PipelineFlow  # Prefect makes a plain Flow of it
        return cast("PipelineFlow", made)._of(self.pipeline, self.deps_factory)

    def _of(self, pipeline: Pipeline[Any, Any, Any], factory: DepsFactory | None) -> PipelineFlow:
        self.pipeline, self.deps_factory = pipeline, factory
        return self


@dataclass(frozen=True, slots=True)
class _Body:
    """What a pipeline's flow does; for its fields, see `Pipeline.to_flow`."""

    pipeline: Pipeline[Any, Any, Any]
    options: PrefectOptions
    deps: Any
    deps_factory: DepsFactory | None
    tracer: Any
    publish_output: bool

    async def run(self, inputs: Any) -> Any:
        """Run the pipeline, or the items of a mapped step that this flow run was made for."""
        settings = with_readable_prices(load_settings())
        validated = self.pipeline.validate_input({} if inputs is None else inputs)
        chunk_run = active_chunk_run()
        async with live_deps(self.deps, self.deps_factory) as live:
            given = (self.pipeline.plan, validated, live, self.tracer)
            if chunk_run is not None:
                from .spread_chunk import run_chunk

                with input_given_by_others():
                    return await run_chunk(chunk_run, *given, self.options, settings)
            attribution = Attribution(pipeline=self.pipeline.name)
            try:
                with input_given_by_others(is_deployed()):
                    execution = await run_in_flow(
                        *given,
                        attribution,
                        self.options,
                        settings,
                        deps_factory=self.deps_factory,
                    )
            except StepExecutionError as error:
                return await self._failed(error, attribution)
        result = self.pipeline.result_of(execution)
        if self.publish_output:
            await write_output_artifact(
                self.pipeline.name, result.output, timeout=settings.artifact_timeout
            )
        return await as_ended(result, execution)

    async def _failed(self, error: StepExecutionError, attribution: Attribution) -> State[Any]:
        """The state in which a run ends whose step failed; raises where Prefect is to say it."""
        failure = self.pipeline.with_partial_result(error)
        failure.__cause__ = error.original_error
        if (state := await as_failed(failure, attribution)) is not None:
            return state
        raise failure from error.original_error


def build_flow(
    pipeline: Pipeline[Any, Any, Any],
    options: PrefectOptions,
    *,
    name: str | None,
    deps: Any,
    deps_factory: DepsFactory | None,
    tracer: Any,
    version: str | None,
    publish_output: bool,
    module: str,
    flow_options: dict[str, Any],
) -> Flow[Any, Any]:
    """The flow for `Pipeline.to_flow`; see there.

    Raises:
        ValueError: Both `deps` and `deps_factory` are given.
    """
    if deps is not None and deps_factory is not None:
        raise ValueError(
            "Give deps (for a flow called here) or deps_factory (for one deployed), not both."
        )

    body = _Body(pipeline, options, deps, deps_factory, tracer, publish_output)

    async def run_pipeline(inputs: Any = None) -> Any:
        return await body.run(inputs)

    _dress(run_pipeline, pipeline, module)
    given = {
        "description": f"Pipeline {pipeline.name!r}: {', '.join(pipeline.plan.steps)}"
    } | flow_options
    if name is not None:
        given["name"] = name
    if version is not None:
        given["version"] = version
    made = PipelineFlow(run_pipeline, **flow_options_of(pipeline.name, pipeline.plan, given))
    return made._of(pipeline, deps_factory)


async def as_ended(value: Any, execution: ExecutionResult) -> Any:
    """What a flow gives back: in a state that says what the run cost, if it asked something, and
    of another name where it could not store what it should.
    """
    told = [describe_losses(execution.not_stored)] if execution.not_stored else []
    # Of a flow that failed before and returns a state, the engine raises what that try raised.
    flow_run = active_flow_run()
    is_first = flow_run is not None and flow_run.run_count <= 1
    if execution.entries and is_first and await _takes_a_state():
        told.append(cost_line(execution.entries))
    if not told:
        return value
    name = NOT_STORED if execution.not_stored else None
    return Completed(name=name, message=" · ".join(told), data=value)


async def _takes_a_state() -> bool:
    """Whether the flow run that is active here goes on. Of one that is cancelled meanwhile, the
    engine would not give back what it returned, but what the server says of it.
    """
    flow_run = active_flow_run()
    assert flow_run is not None
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            async with get_client() as client:
                state = (await client.read_flow_run(flow_run.id)).state
    except Exception:  # it will not take any state now
        return False
    return state is not None and state.is_running()


async def as_failed(error: BaseException, attribution: Attribution) -> State[Any] | None:
    """The final state of a run that ends with an error, where there is more to say than what was
    raised: which budget ended it, or what the run cost. None: leave it to Prefect.

    The state holds the error, so that whoever calls the flow has it raised all the same.
    """
    if (state := await end_at_budget(error, attribution)) is not None:
        return state
    flow_run = active_flow_run()
    partial = error.partial_result if isinstance(error, StepExecutionError) else None
    # The engine runs a flow again for an exception only, not for a state that it is given.
    if partial is None or not partial.entries or flow_run is None or is_tried_again(flow_run):
        return None
    if not await _takes_a_state():
        return None
    get_run_logger().error("The run failed: %s", error, exc_info=error)
    return Failed(message=f"{error} · {cost_line(partial.entries)}", data=error)


def flow_options_of(name: str, plan: ExecutionPlan, given: dict[str, Any]) -> dict[str, Any]:
    """What is given for a flow, and what we set where nothing is."""
    # Prefect refuses some characters in names; the ledger keeps the pipeline's own name.
    flow_name = re.sub(r"[/%&<>]", "-", name)
    return {"name": flow_name, "version": plan.version, "persist_result": False} | given


def is_deployed() -> bool:
    """Whether the flow run that is active here is of a deployment."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run is not None and run.deployment_id is not None


def _dress(function: Any, pipeline: Pipeline[Any, Any, Any], module: str) -> None:
    """Give the flow's function the name, module and typed signature that Prefect records and shows
    as a form.
    """
    identifier = re.sub(r"\W+", "_", pipeline.name.lower()).strip("_") or "pipeline"
    function.__module__ = module
    function.__name__ = function.__qualname__ = identifier
    function.__doc__ = None
    annotation: Any = (
        pipeline.input_type if pipeline.input_type is not None else dict[str, Any] | None
    )
    default: Any = inspect.Parameter.empty if pipeline.input_type is not None else None
    function.__annotations__ = {"inputs": annotation}
    parameter = inspect.Parameter(
        "inputs", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )
    function.__signature__ = inspect.Signature([parameter])
