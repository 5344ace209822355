"""Executor: the protocol of everything that runs a pipeline.

Anything with this `execute` can be given as `Pipeline(executor=…)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..ledger.entries import LedgerEntry
from ..pipelines.base import BaseStep
from ..pipelines.config import PipelineConfig, StepConfig
from ..pipelines.plan import ExecutionPlan
from ..pipelines.schemas import ConversationState, StepUsage

if TYPE_CHECKING:
    from ..errors import StepExecutionError
    from ..tracing.tracer import Tracer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One finished step: the unit that is persisted and replayed.

    Attributes:
        usage: None when the step made no request.
        attempts: How often the step was tried, from 1.
        duration_ms: From the start of the first attempt to the end of the last.
        replayed: Taken from a stored result; the step's code did not run.
    """

    step_id: str
    output: Any
    entries: tuple[LedgerEntry, ...] = ()
    usage: StepUsage | None = None
    attempts: int = 1
    duration_ms: int = 0
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """What an executor gives back; the first two fields are all that a simple executor needs to
    fill.

    Attributes:
        outputs: Outputs of the finished steps by step id.
        usages: Usage by step id, of the steps that made requests, failed ones included.
        conversation_state: The last conversation state a step returned.
        stopped_early: An incomplete conversation state ended the run.
        entries: The run's ledger entries in the order in which they were sent.
        errors: What failed, by step id.
        skipped: Optional steps that a budget left out, and steps that did not run because one they
            depend on failed.
        run_id: Identity of this execution.
        wall_time_ms: How long the execution took.
        not_stored: Why the result of a step could not be stored, by step id; another run would pay
            for it again.
        unmetered: By step and host, how many requests to providers went past all meters; their
            cost is unknown. `""` for those of no step.
    """

    outputs: Mapping[str, Any]
    usages: Mapping[str, StepUsage] = field(default_factory=dict)
    conversation_state: ConversationState[Any] | None = None
    stopped_early: bool = False
    entries: tuple[LedgerEntry, ...] = ()
    errors: Mapping[str, StepExecutionError] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    run_id: str | None = None
    wall_time_ms: int = 0
    not_stored: Mapping[str, str] = field(default_factory=dict)
    unmetered: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@runtime_checkable
class Executor(Protocol):
    """Runs the steps of a pipeline.

    It keeps no state of a run: one instance serves many pipelines at once.
    """

    async def execute(
        self,
        steps: Mapping[str, BaseStep[Any, Any]],
        dependencies: Mapping[str, Sequence[str]],
        inputs: dict[str, Any],
        deps: Any,
        tracer: Tracer | None,
        pipeline_config: PipelineConfig | None,
        step_configs: Mapping[str, StepConfig] | None,
        *,
        name: str = "pipeline",
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecutionResult:
        """Run the steps, each once those it depends on are done.

        Args:
            steps: Steps by id.
            dependencies: For each step id, the ids of the steps whose outputs it reads; a missing
                key means none.
            inputs: What `StepContext.get_input` reads.
            deps: The caller's live objects, handed to each step as they are.
            tracer: None means no tracing.
            pipeline_config: None means the defaults.
            step_configs: What overrides a step's own configuration.
            name: The pipeline's name.
            run_key: As in `Pipeline.execute`. Given only when the caller gave one, like `tags`.
            tags: As in `Pipeline.execute`.

        Raises:
            StepExecutionError: A step failed and the run does not go on without it.
            PipelineValidationError: The steps can't be run as they are.
        """
        ...


@runtime_checkable
class PlanExecutor(Executor, Protocol):
    """An executor that takes the plan a pipeline has made already, instead of having it made anew
    for each run.

    Subclasses implement `execute_plan`; `execute` is made of it.
    """

    async def execute(
        self,
        steps: Mapping[str, BaseStep[Any, Any]],
        dependencies: Mapping[str, Sequence[str]],
        inputs: dict[str, Any],
        deps: Any,
        tracer: Tracer | None = None,
        pipeline_config: PipelineConfig | None = None,
        step_configs: Mapping[str, StepConfig] | None = None,
        *,
        name: str = "pipeline",
        run_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExecutionResult:
        """See `Executor.execute`."""
        plan = ExecutionPlan.build(steps, dependencies, pipeline_config, step_configs)
        return await self.execute_plan(
            plan, inputs, deps, tracer, name=name, run_key=run_key, tags=tags
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
        """Run a validated plan; otherwise as `Executor.execute`."""
        ...
