"""An executor as somebody else would write it: the protocol and public names, nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from fastroai import (
    BaseStep,
    NoOpTracer,
    PipelineConfig,
    StepConfig,
    StepContext,
    StepExecutionError,
    StepUsage,
    Tracer,
)
from fastroai.executors import ExecutionResult, Executor

AnyExecutor = Executor | str


class OneByOne:
    """Runs the steps one after the other."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """The pipelines it ran."""

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
        self.names.append(name)
        outputs: dict[str, Any] = {}
        usages: dict[str, StepUsage] = {}
        order = TopologicalSorter(
            {step_id: dependencies.get(step_id, ()) for step_id in steps}
        ).static_order()
        for step_id in order:
            visible = {needed: outputs[needed] for needed in dependencies.get(step_id, ())}
            config = (step_configs or {}).get(step_id)
            context = StepContext(step_id, inputs, deps, visible, tracer or NoOpTracer(), config)
            try:
                outputs[step_id] = await steps[step_id].execute(context)
            except Exception as error:
                raise StepExecutionError(step_id, error) from error
            if context.usage != StepUsage():
                usages[step_id] = context.usage
        return ExecutionResult(outputs=outputs, usages=usages)
