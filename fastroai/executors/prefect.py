"""PrefectExecutor: runs a pipeline as a Prefect flow, each step as a task."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import anyio
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.task_runners import TaskRunner

from ..lazy_names import lazy_names
from ..leases.run_lease import only_execution
from ..ledger.entries import Attribution
from ..pipelines.config import Durable
from ..pipelines.deps import DepsFactory
from ..pipelines.plan import ExecutionPlan
from ..pricing.price_file import with_readable_prices
from ..redaction import redact
from ..settings import load_settings
from ._prefect.flow import (
    PipelineFlow,
    as_ended,
    as_failed,
    build_flow,
    flow_options_of,
    run_in_flow,
)
from ._prefect.options import PrefectOptions, Spread
from ._prefect.run_storage import probe_storage
from ._prefect.server import (
    answering_server,
    check_server,
    configured_server,
    stop_retrying_if_silent,
)
from ._prefect.step_task import literal_name
from ._prefect.zombie_runs import (
    TrackedRun,
    report_ended_runs,
    report_own_ended_runs,
    resume_run,
    tracked_runs,
)
from .protocol import ExecutionResult, PlanExecutor
from .session import leases_around

if TYPE_CHECKING:
    from ..pipelines.pipeline import Pipeline
    from ..tracing.tracer import Tracer
    from ._prefect.automations import AutomationChange, WantedAutomations, install_automations
    from ._prefect.bootstrap import Change, Essentials, bootstrap
    from ._prefect.links import links_to_run
    from ._prefect.misses import MissExplanation, StoredBefore
    from ._prefect.pool_templates import WantedPool
    from ._prefect.run_pages import RunPage, read_run_pages, read_step_pages
    from ._prefect.work_pools import (
        EndedRun,
        PoolState,
        RunRefusedError,
        client_at,
        deployed,
        look_at,
        make_process_pools,
        run_deployment,
        server_url,
    )
else:
    # What commands ask for, and no run.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".._prefect.automations": "AutomationChange WantedAutomations install_automations",
            ".._prefect.bootstrap": "Change Essentials bootstrap",
            ".._prefect.links": "links_to_run",
            ".._prefect.misses": "MissExplanation StoredBefore",
            ".._prefect.pool_templates": "WantedPool",
            ".._prefect.run_pages": "RunPage read_run_pages read_step_pages",
            ".._prefect.work_pools": (
                "EndedRun PoolState RunRefusedError client_at deployed look_at make_process_pools "
                "run_deployment server_url"
            ),
        },
    )

__all__ = [
    "AutomationChange",
    "Change",
    "EndedRun",
    "Essentials",
    "MissExplanation",
    "PipelineFlow",
    "PoolState",
    "PrefectClient",
    "PrefectExecutor",
    "RunPage",
    "RunRefusedError",
    "Spread",
    "StoredBefore",
    "TrackedRun",
    "WantedAutomations",
    "WantedPool",
    "bootstrap",
    "check_server",
    "client_at",
    "configured_server",
    "deployed",
    "install_automations",
    "links_to_run",
    "look_at",
    "make_process_pools",
    "probe_storage",
    "read_run_pages",
    "read_step_pages",
    "report_ended_runs",
    "resume_run",
    "run_deployment",
    "server_url",
    "tracked_runs",
]

logger = logging.getLogger("fastroai.executors")


class PrefectExecutor(PlanExecutor):
    """Each run is a flow run and each step a task run of it, in the caller's process and event
    loop.

    Within someone's own flow the run is a subflow. Input and deps reach the steps by closure:
    nothing of them is stored on the server.

    Args:
        result_storage: Where results are kept: as `FASTROAI_RESULT_STORAGE`, or a Prefect storage
            block. None: as that variable says.
        default_task_config: Options of `prefect.task` for every step; a step's own configuration
            wins.
        flow_config: Options of `prefect.flow`, for example `log_prints`.
        durable: As `StepConfig.durable`, for steps that don't say.
        spread: Has the items of mapped steps worked on by further runs of the deployment, which
            any worker of its pool takes. None: where the run is.
        task_runner: A task runner of Prefect whose workers are processes, such as `DaskTaskRunner`:
            has those steps run that `StepConfig.remote` says. None: all run where the run is.
        deps_factory: Makes the deps of such steps where they are; one given to `to_flow` wins.
    """

    def __init__(
        self,
        result_storage: Any = None,
        default_task_config: Mapping[str, Any] | None = None,
        flow_config: Mapping[str, Any] | None = None,
        durable: Durable = "request",
        spread: Spread | None = None,
        task_runner: TaskRunner[Any] | None = None,
        deps_factory: DepsFactory | None = None,
    ) -> None:
        task_config = dict(default_task_config or {})
        # Resolved and probed before each run, like every other storage.
        of_tasks = task_config.pop("result_storage", None)
        storage = of_tasks if of_tasks is not None else result_storage
        flow_options = dict(flow_config or {})
        if task_runner is not None:
            flow_options["task_runner"] = task_runner
        self._options = PrefectOptions(
            storage, task_config, flow_options, durable, spread, task_runner, deps_factory
        )

    async def execute_plan(
        self,
        plan: ExecutionPlan,
        inputs: dict[str, Any],
        deps: Any,
        tracer: Tracer | None,
        *,
        name: str = "pipeline",
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecutionResult:
        """See `PlanExecutor.execute_plan`. A run with a key is a flow run of that name, and waits
        for another with it.

        Raises:
            LedgerUnavailableError: The ledger can't be written, and must be; nothing was run.
            ExecutorUnavailableError: No Prefect server answers; nothing was run.
            ResultStorageError: Results could not be kept; nothing was run.
            RunLeaseError: It is executed from within itself; or another process took it over, as
                this one had no heartbeat.
            SettingsError: A variable has a value it may not have, or `FASTROAI_PRICES` can't be
                read; nothing was run.
        """
        settings = with_readable_prices(load_settings())
        attribution = Attribution(run_key=run_key, pipeline=name, tags=tags or {})
        ended: list[ExecutionResult | BaseException] = []
        sigterm_handler = signal.getsignal(signal.SIGTERM)

        # Without parameters, which Prefect would store: input and deps reach it by closure.
        async def run_pipeline() -> Any:
            try:
                with _terminated_as_before(sigterm_handler):
                    result = await run_in_flow(
                        plan, inputs, deps, tracer, attribution, self._options, settings, held
                    )
                ended.append(result)
                return await as_ended(None, result)
            except BaseException as error:
                ended.append((isinstance(error, Abort) and error.__cause__) or error)
                if (state := await as_failed(error, attribution)) is not None:
                    return state
                raise
            finally:
                await stop_retrying_if_silent()

        is_nested = FlowRunContext.get() is not None
        named = {} if run_key is None else {"flow_run_name": literal_name(run_key)}
        options = flow_options_of(name, plan, named | dict(self._options.flow_config))
        flow = Flow(run_pipeline, **options)
        async with nullcontext() if is_nested else answering_server():
            if not is_nested:
                await report_own_ended_runs(settings)
            async with only_execution(name, run_key, settings, leases_around()) as held:
                failure = await _run_to_its_end(flow, name)
        return _result(name, ended[-1] if ended else None, failure)

    def build_flow(
        self,
        pipeline: Pipeline[Any, Any, Any],
        *,
        name: str | None = None,
        deps: Any = None,
        deps_factory: Any = None,
        tracer: Tracer | None = None,
        version: str | None = None,
        publish_output: bool = False,
        module: str | None = None,
        **flow_options: Any,
    ) -> Flow[Any, Any]:
        """The pipeline as a flow to call, serve or deploy; see `Pipeline.to_flow`."""
        return build_flow(
            pipeline,
            self._options,
            name=name,
            deps=deps,
            deps_factory=deps_factory,
            tracer=tracer,
            version=version,
            publish_output=publish_output,
            module=module or __name__,
            flow_options=dict(self._options.flow_config) | flow_options,
        )


async def _run_to_its_end(flow: Any, name: str) -> BaseException | None:
    """Run a flow in a task of its own, in whose context Prefect may be told to give up; returns
    what it raised.

    A cancellation reaches that task once, and what it then does is waited for, whoever cancels: a
    cancel scope, such as the deadline of a flow around this one, cancels again and again, so that
    Prefect could not note how the run ended.
    """
    task = asyncio.create_task(flow(), name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with anyio.CancelScope(shield=cancelled is not None):
                await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            task.cancel()
    failure = asyncio.CancelledError() if task.cancelled() else task.exception()
    if cancelled is not None:
        raise cancelled from failure  # Prefect may have ended with an error of its own instead
    if failure is None or isinstance(failure, Exception | Abort):
        return failure
    raise failure


@contextmanager
def _terminated_as_before(handler: Any) -> Iterator[None]:
    """Leave SIGTERM to a program that handles it itself: Prefect's handler raises in whatever the
    event loop does.
    """
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    prefects = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, prefects)


def _result(
    name: str, ended: ExecutionResult | BaseException | None, failure: BaseException | None
) -> ExecutionResult:
    """What the steps came to, whatever Prefect could note of it."""
    if ended is None:
        raise failure or RuntimeError(f"Prefect ended the run of {name!r} without executing it")
    if isinstance(ended, asyncio.CancelledError) and failure is not None:
        # Prefect cancelled the flow, for example at its deadline; nobody cancelled the caller
        raise failure
    if failure is not None and failure is not ended and not isinstance(failure, Abort):
        # The steps are done and paid for; that Prefect could not note the end must not lose them.
        message = "Prefect could not record the end of the run of %r: %s"
        logger.warning(message, name, redact(str(failure)))
    if isinstance(ended, BaseException):
        raise ended
    return ended
