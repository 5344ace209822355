"""PipelineExecutor: the published name for running steps in process without a Pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import StepExecutionError
from .base import BaseStep
from .config import PipelineConfig, StepConfig
from .plan import ExecutionPlan

if TYPE_CHECKING:
    from ..executors.protocol import ExecutionResult
    from ..tracing.tracer import Tracer

__all__ = ["PipelineExecutor", "StepExecutionError"]


class PipelineExecutor:
    """Steps and dependencies bound to the in-memory executor; new code uses `Pipeline(executor=…)`.

    Raises:
        PipelineValidationError: The steps can't run as they are defined.
    """

    def __init__(
        self,
        steps: dict[str, BaseStep[Any, Any]],
        dependencies: dict[str, list[str]],
        pipeline_config: PipelineConfig | None = None,
        step_configs: dict[str, StepConfig] | None = None,
    ) -> None:
        self._plan = ExecutionPlan.build(steps, dependencies, pipeline_config, step_configs)

    async def execute(
        self, inputs: dict[str, Any], deps: Any, tracer: Tracer | None = None
    ) -> ExecutionResult:
        """Run the steps; the result has `outputs`, `usages`, `conversation_state` and
        `stopped_early`.
        """
        from ..executors.in_memory import InMemoryExecutor

        return await InMemoryExecutor().execute_plan(self._plan, inputs, deps, tracer)
