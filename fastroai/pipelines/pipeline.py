"""Pipeline: named steps and their dependencies, written once and run by any executor."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ..budgets import Budget, budgets_given
from ..errors import InputValidationError, PipelineValidationError, StepExecutionError
from .base import BaseStep
from .config import PipelineConfig, StepConfig
from .mapped import MappedStep
from .plan import ExecutionPlan, check_name
from .schemas import PipelineResult, PipelineUsage

if TYPE_CHECKING:
    from prefect import Flow

    from ..executors.protocol import ExecutionResult, Executor
    from ..tracing.tracer import Tracer
    from .estimates import CostEstimate

__all__ = ["Pipeline", "PipelineResult"]

DepsT = TypeVar("DepsT")
InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")


class Pipeline(Generic[DepsT, InputT, OutputT]):
    """A DAG of steps.

    Args:
        name: Names the pipeline in spans, in the ledger and in Prefect.
        steps: Steps by id.
        dependencies: For each step id, the ids of the steps whose outputs it reads. A step not
            listed has none.
        output_step: The step whose output is the run's. May be left out where only one step has no
            dependents.
        config: Configuration of the run, and what its steps inherit.
        step_configs: Configuration by step id, nearer than a step's own.
        input_type: A pydantic model. Inputs are validated against it, steps read its fields with
            `context.get_input`, and a deployed flow shows it as a form.
        executor: Runs the pipeline: `"memory"`, `"prefect"` or an `Executor`. None:
            `FASTROAI_EXECUTOR`, else Prefect.

    Raises:
        PipelineValidationError: The pipeline can't run as it is defined; nothing is sent before
            this is known.
    """

    def __init__(
        self,
        name: str,
        steps: dict[str, BaseStep[DepsT, Any]],
        dependencies: dict[str, list[str]] | None = None,
        output_step: str | None = None,
        config: PipelineConfig | None = None,
        step_configs: dict[str, StepConfig] | None = None,
        *,
        input_type: type[BaseModel] | None = None,
        executor: Executor | str | None = None,
    ) -> None:
        self.name = name
        self.steps = steps
        self.dependencies = dependencies if dependencies is not None else {}
        self.config = config
        self.step_configs = step_configs if step_configs is not None else {}
        self.input_type = input_type
        self.executor = executor
        _check_definition(name, input_type)
        _check_output_step(output_step, steps)
        self._plan = ExecutionPlan.build(steps, self.dependencies, config, self.step_configs)
        _check_maps(self._plan, input_type)
        self.output_step = (
            output_step if output_step is not None else _only_terminal_step(self._plan)
        )

    async def execute(
        self,
        input_data: InputT | Mapping[str, Any],
        deps: DepsT | None = None,
        tracer: Tracer | None = None,
        *,
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> PipelineResult[OutputT]:
        """Run the pipeline.

        Args:
            input_data: With an `input_type`, an instance of it or a mapping that fits it; otherwise
                a dict, or anything else, which steps then read as `get_input("data")`.
            deps: Live objects for the steps, handed on as they are and never stored.
            tracer: Receives a span for the run and one for each step.
            run_key: Names the piece of work, for example `"invoice-2026-11"`: executed again under
                the same key, a run under Prefect goes on where the last one stopped, and what all
                of them sent is booked under it. While one is under way, another waits for it.
            tags: Whom the run is for, for example `{"team": "search", "customer": "acme"}`: each of
                its ledger entries carries them. Texts, which everyone who reads the ledger can see.

        Raises:
            InputValidationError: The input does not fit `input_type`, or `run_key` or `tags` are no
                texts; no step has run.
            LedgerUnavailableError: The ledger can't be written, and must be; no step has run.
            RunLeaseError: It is executed from within itself, or another process took it over as
                this one had no heartbeat.
            StepExecutionError: A step failed; `partial_result` says what was finished and spent.
        """
        from ..executors import PlanExecutor, get_executor

        inputs = self.validate_input(input_data)
        options = {"name": self.name} | _run_options(run_key, tags)
        executor = get_executor(self.executor)
        try:
            if isinstance(executor, PlanExecutor):
                execution = await executor.execute_plan(self._plan, inputs, deps, tracer, **options)
            else:
                execution = await self._run_on(executor, inputs, deps, tracer, options)
        except StepExecutionError as error:
            raise self.with_partial_result(error) from error.original_error
        return self.result_of(execution)

    async def estimate(
        self,
        input_data: InputT | Mapping[str, Any],
        deps: DepsT | None = None,
        *,
        ledger: str | None = None,
        last: int = 100,
    ) -> CostEstimate:
        """What an execution will cost: an upper bound where there is one, and what earlier runs in
        the ledger let expect. Nothing is sent.

        Args:
            input_data: As for `execute`. Expectations do not depend on it; upper bounds may.
            deps: For prompts that are functions of the context: those of agent steps without
                dependencies are called.
            ledger: Where runs are recorded. None: `FASTROAI_LEDGER_URL`, or else the default
                ledger.
            last: How many recorded runs are looked at.

        Raises:
            InputValidationError: The input does not fit `input_type`.
            LedgerUnavailableError: There is a ledger, and it can't be read.
            SettingsError: A variable has a value it may not have.
        """
        from .estimates import estimate_cost  # only here: it needs what finds agents in code

        inputs = self.validate_input(input_data)
        return await estimate_cost(self.name, self._plan, inputs, deps, ledger=ledger, last=last)

    async def _run_on(
        self,
        executor: Executor,
        inputs: dict[str, Any],
        deps: DepsT | None,
        tracer: Tracer | None,
        options: dict[str, Any],
    ) -> ExecutionResult:
        """Run on an executor that knows nothing of sessions: its steps find the one open here."""
        from ..executors import ExecutionResult, open_session

        async with open_session(self._plan, inputs, deps, None, **options) as session:
            edges = {step_id: node.dependencies for step_id, node in self._plan.steps.items()}
            given = (self.steps, edges, inputs, deps, tracer, self.config)
            try:
                execution = await executor.execute(*given, self.step_configs, **options)
            except StepExecutionError as error:
                if error.partial_result is None:
                    error.partial_result = await session.complete(ExecutionResult(outputs={}))
                raise
            return await session.complete(execution)

    def to_flow(
        self,
        *,
        name: str | None = None,
        deps: DepsT | None = None,
        deps_factory: Any = None,
        tracer: Tracer | None = None,
        version: str | None = None,
        publish_output: bool = False,
        **flow_options: Any,
    ) -> Flow[Any, Any]:
        """This pipeline as a Prefect flow, to call, serve or deploy.

        The flow takes one parameter, `inputs`, typed as `input_type`. It returns the run's
        `PipelineResult`: a coroutine awaits it, a plain function gets it from the call. When
        Prefect tries the flow again (`retries=1`), finished steps are replayed; the result's usage
        and entries are then those of the last attempt. A budget of the run is for all of them.

        Args:
            name: The flow's name. None: the pipeline's.
            deps: Live objects for the steps, when the flow is called in this process.
            deps_factory: Makes them where the flow runs, which is what a deployment needs: a
                function without arguments that returns them, a coroutine of them, or a (plain or
                async) context manager of them.
            tracer: Receives the spans.
            version: The flow's version. None: a fingerprint of the pipeline.
            publish_output: Whether the output of a run is shown in Prefect's UI, as the artifact
                `output-<pipeline>`. Everyone who can open the UI can then read it.
            **flow_options: Passed on to `prefect.flow`.

        Raises:
            ExecutorUnavailableError: Prefect can't be imported.
            ValueError: Both `deps` and `deps_factory` are given.
        """
        from ..executors import get_executor

        # Whatever runs the pipeline elsewhere, a flow is Prefect's: only its own PrefectExecutor
        # keeps its options.
        executor: Any = (
            self.executor if hasattr(self.executor, "build_flow") else get_executor("prefect")
        )
        flow: Flow[Any, Any] = executor.build_flow(
            self,
            name=name,
            deps=deps,
            deps_factory=deps_factory,
            tracer=tracer,
            version=version,
            publish_output=publish_output,
            # Prefect records where a flow is found; that is the caller's module, not this one.
            module=sys._getframe(1).f_globals.get("__name__"),
            **flow_options,
        )
        return flow

    @property
    def plan(self) -> ExecutionPlan:
        """The validated plan."""
        return self._plan

    def with_executor(self, executor: Executor | str | None) -> Pipeline[DepsT, InputT, OutputT]:
        """The same pipeline on another executor."""
        other = copy.copy(self)
        other.executor = executor
        return other

    def with_budget(self, budget: Budget) -> Pipeline[DepsT, InputT, OutputT]:
        """The same pipeline with one more budget of each run; stored results are found as before.

        Raises:
            ValueError: It is not a run's: it has a scope or a window.
        """
        [checked] = budgets_given(budget)
        other = copy.copy(self)
        other._plan = self._plan.with_budget(checked)
        return other

    def validate_input(self, input_data: object) -> dict[str, Any]:
        """What the steps will read with `get_input`.

        Raises:
            InputValidationError: The input does not fit `input_type`; the message names each field.
        """
        if self.input_type is None:
            return input_data if isinstance(input_data, dict) else {"data": input_data}
        try:
            model = self.input_type.model_validate(input_data)
        except ValidationError as error:
            raise InputValidationError(
                f"The input of pipeline '{self.name}' does not fit "
                f"{self.input_type.__name__}:\n{_problems(error)}"
            ) from error
        # Not as model_dump would give it: models within the input stay models.
        return {field: getattr(model, field) for field in type(model).model_fields} | (
            model.model_extra or {}
        )

    def with_partial_result(self, error: StepExecutionError) -> StepExecutionError:
        """The error of a failed run, with what an executor noted of the run as a
        `PipelineResult`.
        """
        if error.partial_result is not None and not isinstance(
            error.partial_result, PipelineResult
        ):
            error.partial_result = self.result_of(error.partial_result)
        return error

    def result_of(self, execution: ExecutionResult | Any) -> PipelineResult[OutputT]:
        """What an executor gave back, as the caller's result."""
        usage = None
        if execution.usages:
            usage = PipelineUsage.from_step_usages(
                execution.usages, wall_time_ms=execution.wall_time_ms
            )
        return PipelineResult(
            output=execution.outputs.get(self.output_step),
            step_outputs=dict(execution.outputs),
            conversation_state=execution.conversation_state,
            usage=usage,
            stopped_early=execution.stopped_early,
            run_id=execution.run_id,
            entries=execution.entries,
            errors=dict(execution.errors),
            skipped=execution.skipped,
            not_stored=dict(execution.not_stored),
            unmetered={step_id: dict(hosts) for step_id, hosts in execution.unmetered.items()},
        )


def _check_definition(name: object, input_type: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise PipelineValidationError(
            f"A pipeline's name must be a non-empty string, not {name!r}."
        )
    check_name("Pipeline name", name)
    is_model = isinstance(input_type, type) and issubclass(input_type, BaseModel)
    if not (is_model or input_type is None):
        raise PipelineValidationError(
            f"input_type must be a pydantic model class, not {input_type!r}."
        )


def _check_output_step(output_step: object, steps: object) -> None:
    # What is wrong with the steps themselves, the plan says.
    if output_step is None or not isinstance(steps, Mapping) or not steps:
        return
    if output_step not in steps:
        raise PipelineValidationError(
            f"output_step '{output_step}' not in steps: {sorted(map(str, steps))}."
        )


def _check_maps(plan: ExecutionPlan, input_type: type[BaseModel] | None) -> None:
    """What is mapped over is a step or, as far as that is known, a field of the input."""
    if input_type is None or input_type.model_config.get("extra") == "allow":
        return
    for step_id, node in plan.steps.items():
        over = node.step.over if isinstance(node.step, MappedStep) else None
        if over is not None and over not in plan.steps and over not in input_type.model_fields:
            raise PipelineValidationError(
                f"Step '{step_id}' maps over '{over}', which is neither a step nor a field of "
                f"{input_type.__name__}. Its fields: {', '.join(input_type.model_fields)}."
            )


def _run_options(run_key: object, tags: object) -> dict[str, Any]:
    """What is given of a run's options: an executor that knows none of them is not handed any."""
    options: dict[str, Any] = {}
    if run_key is not None:
        if not isinstance(run_key, str) or not run_key.strip():
            raise InputValidationError(
                f"run_key={run_key!r}: give a non-empty text that names the piece of work."
            )
        options["run_key"] = run_key
    if tags:
        if not isinstance(tags, Mapping) or not all(
            isinstance(text, str) for text in (*tags, *tags.values())
        ):
            raise InputValidationError(
                f"tags={tags!r}: give a dict of texts, for example {{'team': 'search'}}."
            )
        options["tags"] = dict(tags)
    return options


def _only_terminal_step(plan: ExecutionPlan) -> str:
    terminal: Sequence[str] = plan.terminal_steps
    if len(terminal) > 1:
        raise PipelineValidationError(
            f"Multiple terminal steps ({', '.join(map(repr, terminal))}): name the one whose "
            "output is the result with output_step."
        )
    return terminal[0]


def _problems(error: ValidationError) -> str:
    return "\n".join(
        f"  {'.'.join(map(str, problem['loc'])) or 'input'}: {problem['msg']} (got "
        f"{problem['input']!r:.200})"
        for problem in error.errors(include_url=False)
    )
